"""Scoring a group as one row: the same numbers and gradients as TRL's, by fewer computations."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import FAMILIES, make_trainer, prompt_rows, small_model
from torch.nn.functional import pad
from transformers import GenerationConfig
from trl import GRPOTrainer

from vrft.errors import UserError
from vrft.models.generate import render_prompt
from vrft.models.shared_prefix import Prompts, pack, rotary_positions
from vrft.train.trl_overrides import SharedPrefixTrainer

N_COMPLETION = 12
# Rows of two or three prompts, of unequal group sizes and not in the order of their prompts.
ROWS = {
    "one group": [0, 0, 0, 0],
    "three groups of unlike size, mixed": [1, 0, 2, 0, 1, 0],
    "nothing to share": [0, 1, 2],
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def trainer(request, tmp_path_factory):
    """A trainer whose every parameter is trained, on a model of each family."""
    rows = prompt_rows(3, n_images=(1, 2, 1))
    made = make_trainer(
        SharedPrefixTrainer, small_model(request.param), request.param, rows, tmp_path_factory.mktemp("run")
    )
    made.model.train()
    return made


def batch_of(trainer, prompt_of_row, *, seed=0, masked_out=()):
    """What TRL hands to the scoring: prompts of unlike length padded on the left, completions of unlike length on the
    right."""
    rows = trainer.train_dataset
    texts = [render_prompt(trainer.processing_class, row["prompt"][0]["content"], len(row["images"])) for row in rows]
    inputs = trainer.processing_class(
        text=[texts[one] for one in prompt_of_row],
        images=[rows[one]["images"] for one in prompt_of_row],
        padding=True,
        return_tensors="pt",
    )
    generator = torch.Generator().manual_seed(seed)
    n_rows = len(prompt_of_row)
    lengths = torch.randint(1, N_COMPLETION + 1, (n_rows, 1), generator=generator)
    lengths[0] = N_COMPLETION
    lengths[list(masked_out)] = 0
    mask = (torch.arange(N_COMPLETION) < lengths).long()
    completions = torch.randint(10, 570, (n_rows, N_COMPLETION), generator=generator)
    return {
        "input_ids": torch.cat([inputs["input_ids"], completions], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], mask], dim=1),
        "mm_token_type_ids": pad(inputs["mm_token_type_ids"], (0, N_COMPLETION)),
        "pixel_values": inputs["pixel_values"],
        "image_grid_thw": inputs["image_grid_thw"],
        "num_images": [len(rows[one]["images"]) for one in prompt_of_row],
        "logits_to_keep": N_COMPLETION,
        "compute_entropy": True,
    }


def score(trainer, batch, *, by=SharedPrefixTrainer, model=None):
    logps, entropies, _ = by._get_per_token_logps_and_entropies(trainer, model or trainer.model, **batch)
    return logps, entropies


def loss_and_gradients(trainer, batch, *, by, seed=0):
    """A GRPO loss with ratio, KL and entropy, and the gradient of every parameter."""
    mask = batch["attention_mask"][:, -N_COMPLETION:]
    generator = torch.Generator().manual_seed(seed)
    old, ref = (torch.randn(mask.shape, generator=generator) * 0.1 - 6 for _ in range(2))
    advantages = torch.randn((len(mask), 1), generator=generator)
    trainer.model.zero_grad()
    logps, entropies = score(trainer, batch, by=by)
    ratio = (logps - old).exp()
    per_token = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    per_token = per_token + 0.04 * ((ref - logps).exp() - (ref - logps) - 1) - 0.01 * entropies
    loss = ((per_token * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}


def count_calls(module):
    """A list that grows by one with every forward of the module, and the hook to remove."""
    calls: list[int] = []
    return calls, module.register_forward_hook(lambda *_: calls.append(1))


@pytest.mark.parametrize("prompt_of_row", ROWS.values(), ids=ROWS)
def test_log_probabilities_and_entropies_are_those_of_trl(trainer, prompt_of_row):
    batch = batch_of(trainer, prompt_of_row, masked_out=[1])
    mask = batch["attention_mask"][:, -N_COMPLETION:].bool()
    with torch.no_grad():
        stock, shared = score(trainer, batch, by=GRPOTrainer), score(trainer, batch)
    for theirs, ours in zip(stock, shared, strict=True):
        assert (theirs - ours)[mask].abs().max() <= 1e-5
        assert (ours[~mask] == 0).all()
    assert stock[0][mask].std() > 0.05, "numbers that hardly differ would show nothing"


@pytest.mark.parametrize("prompt_of_row", ROWS.values(), ids=ROWS)
def test_loss_and_every_gradient_are_those_of_trl(trainer, prompt_of_row):
    batch = batch_of(trainer, prompt_of_row, masked_out=[2])
    loss, gradients = loss_and_gradients(trainer, batch, by=GRPOTrainer)
    shared_loss, shared = loss_and_gradients(trainer, batch, by=SharedPrefixTrainer)
    assert abs(loss - shared_loss) <= 1e-6
    assert gradients.keys() == shared.keys()
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    assert max((gradients[name] - shared[name]).abs().max().item() for name in gradients) <= 1e-6 * max(1, largest)
    for part in ("visual", "language_model"):
        assert max(g.abs().max() for name, g in gradients.items() if part in name) > 1e-3


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradients_stay_the_same_under_gradient_checkpointing(trainer, use_reentrant):
    batch = batch_of(trainer, ROWS["three groups of unlike size, mixed"])
    _, plain = loss_and_gradients(trainer, batch, by=SharedPrefixTrainer)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    trainer.model.enable_input_require_grads()
    layer_calls, hook = count_calls(trainer.model.model.language_model.layers[0].self_attn)
    _, checkpointed = loss_and_gradients(trainer, batch, by=SharedPrefixTrainer)
    hook.remove()
    trainer.model.gradient_checkpointing_disable()
    trainer.model.disable_input_require_grads()
    assert len(layer_calls) == 2, "the layer is computed again in the backward pass"
    assert max((plain[name] - checkpointed[name]).abs().max().item() for name in plain) <= 1e-7


def test_a_completion_sees_nothing_of_another(trainer):
    batch = batch_of(trainer, [0, 0, 0])
    with torch.no_grad():
        before, _ = score(trainer, batch)
        batch["input_ids"] = batch["input_ids"].clone()
        batch["input_ids"][1, -N_COMPLETION:] = 100
        after, _ = score(trainer, batch)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_rows_come_back_in_their_order(trainer):
    batch = batch_of(trainer, [0, 1, 0, 1])
    order = [3, 0, 2, 1]
    images = [batch["pixel_values"].split(_patches(batch))[row] for row in order]
    grids = [batch["image_grid_thw"].split(batch["num_images"])[row] for row in order]
    moved = batch | {
        **{name: batch[name][order] for name in ("input_ids", "attention_mask", "mm_token_type_ids")},
        "pixel_values": torch.cat(images),
        "image_grid_thw": torch.cat(grids),
        "num_images": [batch["num_images"][row] for row in order],
    }
    with torch.no_grad():
        torch.testing.assert_close(score(trainer, moved)[0], score(trainer, batch)[0][order], atol=1e-6, rtol=0)


def _patches(batch):
    return [int(grids.prod(-1).sum()) for grids in batch["image_grid_thw"].split(batch["num_images"])]


def test_the_same_question_about_another_image_is_another_prompt(trainer):
    batch = batch_of(trainer, [0, 0, 0])
    with torch.no_grad():
        same = score(trainer, batch)[0]
        changed = batch | {"pixel_values": batch["pixel_values"].clone()}
        changed["pixel_values"][sum(_patches(batch)[:1]) + 3] += 1.0  # one patch of the second row's image
        stock, ours = score(trainer, changed, by=GRPOTrainer)[0], score(trainer, changed)[0]
    prompts = Prompts.of(*_prompt_part(changed), changed, changed["num_images"])
    assert prompts.groups() == [[0, 2], [1]]
    mask = batch["attention_mask"][:, -N_COMPLETION:].bool()
    assert (stock - ours)[mask].abs().max() <= 1e-5
    assert (ours - same)[1].abs().max() > 1e-3


def _prompt_part(batch):
    return batch["input_ids"][:, :-N_COMPLETION], batch["attention_mask"][:, :-N_COMPLETION]


def test_one_call_of_the_model_and_one_look_at_each_prompts_image(trainer):
    batch = batch_of(trainer, [1, 0, 2, 0, 1, 0])
    looked = []
    visual = trainer.model.model.visual
    hook = visual.register_forward_pre_hook(
        lambda _, args, kwargs: looked.append(len(args[0]) if args else len(kwargs["hidden_states"])), with_kwargs=True
    )
    calls, language_hook = count_calls(trainer.model.model.language_model)
    with torch.no_grad():
        score(trainer, batch)
    hook.remove()
    language_hook.remove()
    assert len(calls) == len(looked) == 1
    assert looked == [sum(_patches(batch)[:3])], "the patches of the three distinct prompts"


@pytest.mark.parametrize(("limit", "n_calls"), [(1, 6), (2, 4), (3, 2), (5, 2), (6, 1)])
def test_the_limit_on_rows_is_kept_by_whole_groups(trainer, limit, n_calls):
    """Groups of 3, 2 and 1 rows; a larger group than the limit comes in parts."""
    batch = batch_of(trainer, [0, 0, 0, 1, 1, 2])
    calls, hook = count_calls(trainer.model.model.language_model)
    with torch.no_grad():
        whole = score(trainer, batch)[0]
        calls.clear()
        parts = score(trainer, batch | {"batch_size": limit})[0]
    hook.remove()
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=0)
    assert len(calls) == n_calls


def test_half_precision_is_no_further_from_float32_than_trl_is(trainer):
    batch = batch_of(trainer, [0, 0, 0, 0, 1, 1, 1, 1])
    mask = batch["attention_mask"][:, -N_COMPLETION:].bool()
    half = copy.deepcopy(trainer.model).to(torch.bfloat16)
    with torch.no_grad():
        exact = score(trainer, batch, by=GRPOTrainer)[0][mask]
        stock = score(trainer, batch, by=GRPOTrainer, model=half)[0][mask]
        shared = score(trainer, batch, model=half)[0][mask]
    error, stock_error = ((one - exact).square().mean().sqrt() for one in (shared, stock))
    assert stock_error > 1e-3
    assert error <= 1.1 * stock_error


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda batch, trainer: batch.update(num_tiles=[1]), "the batch has num_tiles"),
        (lambda batch, trainer: batch["mm_token_type_ids"][:, -N_COMPLETION - 1].fill_(1), "ends in an image"),
        (lambda batch, trainer: batch["attention_mask"][1, : -N_COMPLETION - 1].fill_(0), "fewer than 2 tokens"),
        (lambda batch, trainer: trainer.model.set_attn_implementation("eager"), "model.attention=eager"),
    ],
    ids=["unknown field", "image at the end", "one token", "eager attention"],
)
def test_a_batch_that_cannot_be_shared_takes_trls_path_or_says_why(trainer, monkeypatch, change, reason):
    batch = batch_of(trainer, [0, 0])
    change(batch, trainer)
    taken = []
    monkeypatch.setattr(
        GRPOTrainer,
        "_get_per_token_logps_and_entropies",
        lambda self, model, *args, **kwargs: taken.append((args, kwargs)) or ("TRL's", None, None),
    )
    trainer._metrics["train"].clear()
    assert score(trainer, batch)[0] == "TRL's"
    assert trainer._metrics["train"]["shared_prefix/fraction"] == [0.0]
    assert {
        **dict(zip(["input_ids", "attention_mask", "logits_to_keep"], taken[0][0], strict=True)),
        **taken[0][1],
    } == {
        **batch,
        "batch_size": None,
        "compute_aux_loss": False,
    }
    trainer.sharing.must_share = True
    with pytest.raises(UserError, match=reason):
        score(trainer, batch)
    trainer.sharing.must_share = False
    trainer.model.set_attn_implementation("sdpa")


def test_prompts_without_images_are_shared_too(trainer):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 570, (4, 9 + N_COMPLETION), generator=generator)
    ids[:2, :9] = ids[0, :9]
    mask = torch.ones_like(ids)
    mask[:2, :3] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "logits_to_keep": N_COMPLETION, "compute_entropy": True}
    with torch.no_grad():
        stock, shared = score(trainer, batch, by=GRPOTrainer)[0], score(trainer, batch)[0]
    torch.testing.assert_close(stock, shared, atol=1e-5, rtol=0)


def test_a_packed_row_by_hand():
    """Prompt 5 6 7 (one pad in front) with completions 1 2 3 and 4; prompt 8 9 with completion 1 2."""
    ids = torch.tensor([[0, 5, 6, 7, 1, 2, 3], [0, 5, 6, 7, 4, 0, 0], [0, 0, 8, 9, 1, 2, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 0]])
    prompts = Prompts(ids[:, :4], mask[:, :4])
    assert prompts.groups() == [[0, 1], [2]]
    packed = pack(ids, mask, 3, prompts.groups(), rotary_positions(None, prompts.inputs([0, 2])))
    assert packed.input_ids.tolist() == [[5, 6, 7, 1, 2, 7, 8, 9, 1]]
    assert packed.labels.tolist() == [[-100, -100, 1, 2, 3, 4, -100, 1, 2]]
    assert packed.position_ids[:, 0].tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 2]] * 3
    assert packed.place.tolist() == [[2, 3, 4], [5, -1, -1], [7, 8, -1]]
    assert packed.unpack(torch.arange(9.0)[None]).tolist() == [[2, 3, 4], [5, 0, 0], [7, 8, 0]]


def test_other_attention_is_left_as_it_was(trainer):
    """`generate` without sharing, on a model whose attention functions have learnt to read packed rows."""
    batch = batch_of(trainer, [0, 1])
    inputs = {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
    ids, mask = _prompt_part(batch)
    config = GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=0)
    made = trainer.model.generate(
        input_ids=ids, attention_mask=mask, mm_token_type_ids=batch["mm_token_type_ids"][:, : ids.shape[1]], **inputs,
        generation_config=config,
    )  # fmt: skip
    assert made.shape == (2, ids.shape[1] + 4)
