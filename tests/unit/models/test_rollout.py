"""Rollouts that share their prompt: the tokens of transformers' generate under the same seed, with fewer rows fed."""

from __future__ import annotations

import pytest
import torch
from small_models import FAMILIES, picture, small_model, small_processor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, GenerationConfig

from vrft.models import group_cache
from vrft.models.generate import render_prompt
from vrft.models.rollout import generate_shared
from vrft.models.shareable import sampling_fault

N_NEW = 24
QUESTIONS = [("find it", [(112, 84)]), ("where is the digit seven", [(56, 56), (84, 84)]), ("count", [(84, 140)])]
ROWS = {
    "two groups": [0, 0, 0, 0, 1, 1, 1, 1],
    "groups of unlike size, mixed": [1, 0, 2, 0, 1, 0],
    "no two alike": [0, 1, 2],
    "one row": [0],
}
SAMPLING = {
    "plain": {},
    "cool, top-p and top-k": {"temperature": 0.7, "top_p": 0.9, "top_k": 40},
    "greedy": {"do_sample": False},
    "never an end": {"min_new_tokens": N_NEW},
}


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    """A row's cache grows often, as it does in long completions."""
    monkeypatch.setattr(group_cache, "_ROOM", 3)


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request):
    return small_model(request.param)


@pytest.fixture(scope="module")
def processor(model):
    return small_processor(model.config.model_type)


def prompts_of(processor, numbers):
    """What the processor makes of the questions with these numbers."""
    return processor(
        text=[render_prompt(processor, QUESTIONS[n][0], len(QUESTIONS[n][1])) for n in numbers],
        images=[[picture(*size, seed=10 * n + i) for i, size in enumerate(QUESTIONS[n][1])] for n in numbers],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


def sampling(**options):
    """A third of the vocabulary ends a completion, so that rows leave at many steps."""
    defaults = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": N_NEW, "pad_token_id": 576}
    return GenerationConfig(
        **defaults | {"eos_token_id": list(range(0, 570, 12)), "suppress_tokens": [576, 581]} | options
    )


def both(model, processor, prompt_of_row, config):
    """Stock and shared sequences from the same seed, and what they left of the random numbers."""
    sides = []
    distinct = sorted(set(prompt_of_row))
    for is_shared in (False, True):
        torch.manual_seed(0)
        if is_shared:
            rows = [distinct.index(prompt) for prompt in prompt_of_row]
            made = generate_shared(model.generate, prompts_of(processor, distinct), rows, generation_config=config)
        else:
            made = model.generate(**prompts_of(processor, prompt_of_row), generation_config=config)
        sides.append((made, torch.rand(1)))
    return sides


@pytest.mark.parametrize("options", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("prompt_of_row", ROWS.values(), ids=ROWS)
def test_tokens_are_those_of_generate(model, processor, prompt_of_row, options):
    (stock, after_stock), (shared, after_shared) = both(model, processor, prompt_of_row, sampling(**options))
    assert torch.equal(stock, shared)
    assert torch.equal(after_stock, after_shared), "the next draws are the same too"


def test_rows_that_have_ended_leave_and_prompts_are_computed_once(model, processor, monkeypatch):
    n_fed, patches, kept = [], [], []
    attend = group_cache.GroupCache.attend

    def attend_and_tell(cache, layer, *args, **kwargs):
        made = attend(cache, layer, *args, **kwargs)
        kept.append((len(cache.prompt[layer][0]), cache.own[layer][0].shape[2]))
        return made

    monkeypatch.setattr(group_cache.GroupCache, "attend", attend_and_tell)
    hooks = [
        model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: n_fed.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
        ),
        model.model.visual.patch_embed.register_forward_pre_hook(lambda _, args: patches.append(len(args[0]))),
    ]
    _, (shared, _) = both(model, processor, ROWS["two groups"], sampling())
    for hook in hooks:
        hook.remove()
    n_prompt = prompts_of(processor, [0, 1])["input_ids"].shape[1]
    lengths = (shared[:, n_prompt:] != 576).sum(1)
    assert len(set(lengths.tolist())) > 4, "rows end at many steps"
    n_stock = 1 + int(lengths.max()) - 1
    assert n_fed[0] == (8, n_prompt)
    assert n_fed[n_stock] == (2, n_prompt), "each prompt once"
    assert patches[0] == 4 * patches[1]
    for step, fed in enumerate(n_fed[n_stock + 1 :], start=1):
        alive = (lengths > step).view(2, 4).sum(1)
        assert fed == (int((alive > 0).sum()), int(alive.max()))
    assert kept[::2] == kept[1::2] == n_fed[n_stock + 1 :], (
        "of each of the two layers, prompts and rows that still write"
    )


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_a_checkpoints_cache_settings_change_nothing(model, processor, monkeypatch, settings):
    config = sampling(do_sample=False)
    inputs = prompts_of(processor, [0, 1])
    before = config.to_dict()
    expected = generate_shared(model.generate, inputs, [0, 1, 1], generation_config=config)
    assert config.to_dict() == before, "the caller's settings are its own"
    for name, value in settings.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert torch.equal(generate_shared(model.generate, inputs, [0, 1, 1], generation_config=config), expected)


def test_a_token_looks_at_its_prompt_and_at_its_own_row_alone():
    n_prompts, width, n_keys, n_heads, n_prompt, size, n_written = 2, 3, 2, 4, 7, 8, 5
    cache = DynamicCache()
    cache.update(*torch.randn(2, n_prompts, n_keys, n_prompt, size), layer_idx=0)
    groups = group_cache.GroupCache(cache, torch.ones(n_prompts, n_prompt, dtype=torch.bool))
    rows = torch.arange(n_prompts * width)
    query = torch.randn(n_prompts, n_heads, width, size)
    flops = []
    for _ in range(n_written):
        groups.arrange(rows, rows // width)
        with FlopCounterMode(display=False) as counter:
            groups.attend(0, query, *torch.randn(2, n_prompts, n_keys, width, size), scaling=1.0)
        flops.append(counter.get_total_flops())
    per_key = 2 * 2 * n_prompts * width * n_heads * size  # a product with the key, one with the value
    assert flops == [per_key * (n_prompt + n_own) for n_own in range(1, n_written + 1)]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"repetition_penalty": 1.3}, "repetition_penalty"),
        ({"num_beams": 2, "do_sample": False}, "num_beams"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"repetition_penalty": 1.0}, None),
        ({"min_new_tokens": 3, "bad_words_ids": [[5]]}, None),
    ],
)
def test_settings_that_know_the_batch_are_left_to_transformers(options, name):
    fault = sampling_fault(sampling(**options), GenerationConfig())
    assert fault is None if name is None else name in fault


def test_greedy_rows_of_one_prompt_are_all_the_same(model, processor):
    config = sampling(do_sample=False)
    made = generate_shared(model.generate, prompts_of(processor, [0]), [0, 0, 0], generation_config=config)
    assert (made == made[0]).all()


@pytest.mark.parametrize("is_autocast", [False, True], ids=["bfloat16", "autocast"])
def test_half_precision_is_no_further_from_float32_than_generate_is(processor, model, is_autocast):
    """Greedy tokens may part at a tie, so the scores of one step are compared."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "self_attn" in name and name.endswith(("q_proj.bias", "k_proj.bias")):
                parameter.mul_(0.0).add_(torch.linspace(-15, 15, len(parameter)))  # large scores, which round badly
    config = sampling(do_sample=True, max_new_tokens=9, min_new_tokens=9)
    seen = {}

    def record(name):
        def keep(ids, scores):
            seen.setdefault(name, []).append(scores.clone())
            return torch.zeros_like(scores).index_fill(1, torch.tensor([100]), 50.0)  # all sides write the same token

        return [keep]

    rows, distinct = [0, 0, 1, 1], prompts_of(processor, [0, 1])
    for name, dtype in {"exact": torch.float32, "stock": torch.bfloat16, "shared": torch.bfloat16}.items():
        model.to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast and name != "exact"):
            if name == "shared":
                generate_shared(model.generate, distinct, rows, generation_config=config, logits_processor=record(name))
            else:
                repeated = prompts_of(processor, rows)
                model.generate(**repeated, generation_config=config, logits_processor=record(name))
    model.to(torch.float32).load_state_dict(state)
    exact, stock, shared = (torch.stack(seen[name])[1:].clamp(min=-50) for name in ("exact", "stock", "shared"))
    stock_error, error = ((side - exact).square().mean().sqrt() for side in (stock, shared))
    assert stock_error > 1e-3
    assert error <= 1.1 * stock_error
