"""What the trainer shares around the scoring: preprocessing, batches by group, rows that cannot matter, TRL's
methods."""

from __future__ import annotations

import copy
import hashlib
import inspect
import re

import pytest
import torch
from small_models import FAMILIES, make_trainer, picture, prompt_rows, save_model, small_model, small_processor
from transformers import ProcessorMixin, Qwen2VLImageProcessor
from trl import GRPOTrainer
from trl.data_utils import apply_chat_template, prepare_multimodal_messages

from vrft.data.images import decode_upright
from vrft.errors import UserError
from vrft.tasks import load_task
from vrft.train import dataset as dataset_module
from vrft.train.dataset import training_dataset
from vrft.train.prompt_once import PromptOnce
from vrft.train.shared_prefix import rows_without_effect
from vrft.train.trl_overrides import SharedPrefixTrainer


def paid_for_first_token(completion_ids, **kwargs):
    """Rewards that are often all 0 in a group."""
    return [float(ids[0] % 8 == 0) for ids in completion_ids]


def batch_from(trainer):
    """One generation batch as the trainer's own dataloader gives it, with the model in training mode."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return next(iter(trainer.get_train_dataloader()))


# --- preprocessing ---------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How often images were preprocessed and conversations rendered."""
    counts = {"preprocessed": 0, "rendered": 0}
    preprocess, render = Qwen2VLImageProcessor.preprocess, ProcessorMixin.apply_chat_template

    def count_images(self, images, **kwargs):
        counts["preprocessed"] += 1
        return preprocess(self, images, **kwargs)

    def count_renderings(self, conversation, **kwargs):
        counts["rendered"] += len(conversation) if isinstance(conversation[0], list) else 1
        return render(self, conversation, **kwargs)

    monkeypatch.setattr(Qwen2VLImageProcessor, "preprocess", count_images)
    monkeypatch.setattr(ProcessorMixin, "apply_chat_template", count_renderings)
    return counts


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_prepared_once_are_those_of_the_processor(family, counted):
    processor = small_processor(family)
    first, second, third = picture(112, 84), picture(56, 56, 1), picture(84, 84, 2)
    asked = [("find it", [first]), ("find it", [second]), ("count them all", [first, third])]
    prompts = [
        prepare_multimodal_messages([{"role": "user", "content": text}], images=images)
        for text, images in [asked[0], asked[0], asked[1], asked[2], asked[0], asked[2]]
    ]
    images = [[part["image"] for part in prompt[0]["content"] if part["type"] == "image"] for prompt in prompts]

    def as_trl_asks(asked_processor):
        tokenized = asked_processor.apply_chat_template(
            conversation=prompts, tools=None, chat_template=None, add_generation_prompt=True, tokenize=True,
            return_dict=True,
        )  # fmt: skip
        texts = [apply_chat_template({"prompt": prompt}, asked_processor)["prompt"] for prompt in prompts]
        return tokenized, texts, asked_processor(images=images, text=texts, padding=True, return_tensors="pt")

    theirs = as_trl_asks(processor)
    counted.update(preprocessed=0, rendered=0)
    ours = as_trl_asks(PromptOnce(processor))
    assert counted == {"preprocessed": 3, "rendered": 2}, "three distinct prompts, two texts"
    assert ours[1] == theirs[1]
    for one, other in ((ours[0], theirs[0]), (ours[2], theirs[2])):
        assert one.keys() == other.keys()
        for name in one:
            if isinstance(one[name], list):
                assert one[name] == other[name], name
            else:
                assert torch.equal(one[name], torch.as_tensor(other[name])), name


def test_a_generation_prepares_each_prompt_once_and_decodes_each_file_once(tmp_path, counted, monkeypatch):
    for number in range(2):
        picture(56, 56, number).save(tmp_path / f"{number}.png")
    rows = [{"row_id": str(n), "images": [f"{n}.png"], "phrase": "seven", "gold": [0, 0, 9, 9]} for n in range(2)]
    task = load_task("grounding")
    dataset = training_dataset(rows, tmp_path, question=lambda row: f"find {row['row_id']}")
    assert dataset[1]["images"][0].size == (56, 56)
    n_decoded = []
    monkeypatch.setattr(dataset_module, "decode_upright", lambda data: n_decoded.append(1) or decode_upright(data))
    trainer = make_trainer(SharedPrefixTrainer, small_model("qwen2_vl"), "qwen2_vl", dataset, tmp_path)
    batch = batch_from(trainer)
    assert len(batch) == 8
    assert len({id(row["images"][0]) for row in batch}) == len(n_decoded) == 2
    counted.update(preprocessed=0, rendered=0)
    trainer._generate_and_score_completions(batch)
    assert counted == {"preprocessed": 2, "rendered": 2}
    assert trainer._metrics["train"]["shared_prefix/fraction_sampled"] == [1.0]
    assert dataset.select_columns(["row_id"])[0] == {"row_id": "0"}
    assert trainer.processing_class.__class__.__name__ == "Qwen2VLProcessor", "as it was before"
    assert task.name == "grounding"


def test_what_is_asked_otherwise_the_processor_answers(counted):
    processor = small_processor("qwen2_vl")
    once = PromptOnce(processor)
    assert once(text=["find it", "count"])["input_ids"] == processor(text=["find it", "count"])["input_ids"]
    right = {"text": ["find it", "count"], "padding": True, "padding_side": "right", "return_tensors": "pt"}
    assert torch.equal(once(**right)["input_ids"], processor(**right)["input_ids"])
    assert once.tokenizer is processor.tokenizer


ASKED = [[{"role": "user", "content": [{"type": "text", "text": "find it"}]}]]
TRLS = {"tools": None, "chat_template": None, "add_generation_prompt": True, "tokenize": True, "return_dict": True}


@pytest.mark.parametrize("value", [False, None, 0, "", True])
def test_a_switch_of_the_template_reaches_it_whatever_its_value(value):
    processor = small_processor("qwen2_vl")
    processor.chat_template += "{{ switch is defined }} {{ switch }}"
    once = PromptOnce(processor)
    theirs, ours = (one.apply_chat_template(ASKED, **TRLS, switch=value) for one in (processor, once))
    assert ours["input_ids"] == theirs["input_ids"] != once.apply_chat_template(ASKED, **TRLS)["input_ids"]
    assert once.apply_chat_template(ASKED[0], switch=value) == processor.apply_chat_template(ASKED[0], switch=value)


@pytest.mark.parametrize(
    "options",
    [{"return_dict": False}, {"tools": [lambda: None]}, {"add_special_tokens": False}, {"return_tensors": "np"}],
    ids=lambda options: next(iter(options)),
)
def test_what_the_processor_takes_otherwise_is_left_to_it(options, monkeypatch):
    processor, asked = small_processor("qwen2_vl"), []
    monkeypatch.setattr(processor, "apply_chat_template", lambda *args, **rest: asked.append(rest) or "its own")
    assert PromptOnce(processor).apply_chat_template(ASKED, **TRLS | options) == "its own"
    assert options.items() <= asked[0].items()


def test_rows_without_an_image_stand_beside_rows_with_one(tmp_path):
    """TRL itself refuses such a batch. Whatever shares a micro-batch, the gradient is the same."""
    gradients = []
    for per_device in (16, 4):
        trainer = make_trainer(
            SharedPrefixTrainer, small_model("qwen2_vl"), "qwen2_vl", prompt_rows(4, n_images=(1, 0)), tmp_path,
            per_device_train_batch_size=per_device, gradient_accumulation_steps=16 // per_device, loss_type="grpo",
        )  # fmt: skip
        inputs = batch_from(trainer)
        torch.manual_seed(0)
        for number in range(16 // per_device):
            trainer._step = number
            trainer._compute_loss(trainer.model, trainer._prepare_inputs(inputs)).backward()
        gradients.append({name: weight.grad for name, weight in trainer.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=0)


# --- batches by group ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_device", [4, 8, 2])
def test_the_completions_of_a_prompt_stay_together(tmp_path, per_device):
    options = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": 32 // per_device}
    trainer = make_trainer(
        SharedPrefixTrainer, small_model("qwen2_vl"), "qwen2_vl", prompt_rows(8), tmp_path, **options
    )
    batch = batch_from(trainer)
    made, generate = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: made.append(generate(inputs)) or made[-1]
    torch.manual_seed(0)
    trainer._prepare_inputs(batch)
    drawn = torch.rand(1)
    rows = [
        row for step in trainer._buffered_inputs for row in zip(step["prompt_ids"], step["completion_ids"], strict=True)
    ]
    prompts = [tuple(prompt.tolist()) for prompt, _ in rows]
    of_group = [prompts[start : start + 4] for start in range(0, 32, 4)]
    assert all(len(set(group)) == 1 for group in of_group)
    assert len({group[0] for group in of_group}) == 8
    assert {tuple(completion.tolist()) for _, completion in rows} == {
        tuple(completion.tolist()) for completion in made[0]["completion_ids"]
    }
    for step in trainer._buffered_inputs:  # every row kept its own image
        assert len(step["prompt_ids"]) == per_device == len(step["num_images"])
        assert len(step["pixel_values"]) == int(step["image_grid_thw"].prod(-1).sum())
    stock = make_trainer(GRPOTrainer, small_model("qwen2_vl"), "qwen2_vl", prompt_rows(8), tmp_path, **options)
    batch = batch_from(stock)
    torch.manual_seed(0)
    stock._prepare_inputs(batch)
    assert torch.equal(torch.rand(1), drawn), "TRL's shuffle draws the same numbers"


# --- rows that cannot matter -----------------------------------------------------------------------------------------


def first_loss(trainer_class, folder, *, advantages, **options):
    """Loss and gradients of one generated batch with these advantages by group, the tokens fed to each forward, and the
    trainer."""
    trainer = make_trainer(
        trainer_class, small_model("qwen2_vl"), "qwen2_vl", prompt_rows(4), folder, reward=paid_for_first_token,
        per_device_train_batch_size=16, **options,
    )  # fmt: skip
    inputs, generate = batch_from(trainer), trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: (
        generate(rows) | {"advantages": torch.tensor(advantages).repeat_interleave(4)}
    )
    torch.manual_seed(1)
    batch = trainer._prepare_inputs(inputs)
    fed = []
    hook = trainer.model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    hook.remove()
    return loss.item(), {n: p.grad for n, p in trainer.model.named_parameters()}, fed, trainer


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "bnpo"])
def test_rows_with_no_advantage_are_left_out_and_nothing_changes(tmp_path, loss_type):
    some = [1.0, 0.0, -1.5, 0.0]
    loss, gradients, _, _ = first_loss(GRPOTrainer, tmp_path, advantages=some, loss_type=loss_type)
    ours, shared, fed, trainer = first_loss(SharedPrefixTrainer, tmp_path, advantages=some, loss_type=loss_type)
    *_, fed_by_all, _ = first_loss(SharedPrefixTrainer, tmp_path, advantages=[1.0, 2.0, -1.5, 1.0], loss_type=loss_type)
    assert fed[0] < 0.7 * fed_by_all[0]
    assert abs(loss - ours) <= 1e-6
    assert max((gradients[name] - shared[name]).abs().max().item() for name in gradients) <= 1e-6
    assert trainer._metrics["train"]["shared_prefix/skipped"] == [0.5]


def test_a_step_without_any_advantage_needs_no_forward_and_has_zeros_as_gradients(tmp_path):
    none = [0.0] * 4
    loss, gradients, _, _ = first_loss(GRPOTrainer, tmp_path, advantages=none)
    ours, shared, fed, trainer = first_loss(SharedPrefixTrainer, tmp_path, advantages=none)
    assert fed == []
    assert loss == ours == 0.0
    assert all(torch.equal(gradients[name], shared[name]) for name in gradients)
    assert trainer._metrics["train"]["shared_prefix/skipped"] == [1.0]
    assert str(trainer._metrics["train"]["entropy"]) == "[nan]", "there is none to speak of"


def test_entropy_is_that_of_the_rows_computed(tmp_path):
    *_, trainer = first_loss(SharedPrefixTrainer, tmp_path, advantages=[1.0, 0.0, 0.0, 0.0])
    batch = trainer._buffered_inputs[0]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    fields = {name: batch[name] for name in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")}
    n_kept = batch["completion_ids"].shape[1]
    with torch.no_grad():
        entropies = GRPOTrainer._get_per_token_logps_and_entropies(
            trainer, trainer.model, ids, mask, n_kept, compute_entropy=True, **fields
        )[1]
    scored = batch["completion_mask"] * (batch["advantages"] != 0)[:, None]
    expected = (entropies * scored).sum() / scored.sum()
    assert trainer._metrics["train"]["entropy"][-1] == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.04},
        {"entropy_coef": 0.01},
        {"use_adaptive_entropy": True},
        {"top_entropy_quantile": 0.5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_no_row_is_left_out_where_the_loss_depends_on_more_than_the_advantage(tmp_path, options):
    folder = save_model(tmp_path / "model", "qwen2_vl")
    model = small_model("qwen2_vl")
    model.config._name_or_path = str(folder)
    trainer = make_trainer(SharedPrefixTrainer, model, "qwen2_vl", prompt_rows(4), tmp_path, **options)
    trainer.model.train()
    inputs = {"advantages": torch.zeros(4), "completion_mask": torch.ones(4, 3)}
    assert not rows_without_effect(trainer, inputs).any()
    inputs["completion_mask"][1] = 0
    assert rows_without_effect(trainer, inputs).tolist() == [False, True, False, False], "masked out as a whole"


def test_all_rows_count_in_an_evaluation_and_one_where_processes_wait(tmp_path, monkeypatch):
    trainer = make_trainer(SharedPrefixTrainer, small_model("qwen2_vl"), "qwen2_vl", prompt_rows(4), tmp_path)
    inputs = {"advantages": torch.zeros(4), "completion_mask": torch.ones(4, 3)}
    trainer.model.train()
    assert rows_without_effect(trainer, inputs).all()
    monkeypatch.setattr(trainer.accelerator.state, "distributed_type", "MULTI_CPU")
    assert rows_without_effect(trainer, inputs).tolist() == [False, True, True, True]
    trainer.model.eval()
    assert not rows_without_effect(trainer, inputs).any()


@pytest.mark.parametrize(
    ("rewards", "share"),
    [
        ([0.1] * 4 + [0.7] * 4, 1.0),
        ([0.1] * 3 + [0.2] + [0.7] * 4, 0.5),
        ([0.1, 0.2] * 4, 0.0),
        ([None, 1.0, 1.0, 1.0] + [0.1, 0.2] * 2, 0.5),  # None is no reward of 0
        ([None] * 4 + [0.7] * 4, 0.5),  # a group without rewards has no equal ones
    ],
)
def test_the_share_of_groups_with_equal_rewards(tmp_path, rewards, share):
    """TRL looks at the spread, which the mean's rounding may lift off zero."""
    trainer = make_trainer(
        SharedPrefixTrainer, small_model("qwen2_vl"), "qwen2_vl", prompt_rows(2), tmp_path,
        reward=lambda completion_ids, **kwargs: rewards,
    )  # fmt: skip
    trainer._generate_and_score_completions(batch_from(trainer))
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [share]


# --- a frozen vision tower -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_vision_tower_looks_once_at_each_image(tmp_path, family):
    """Once for rollout, reference and policy together; both micro-batches, two prompts that share an image."""
    folder = save_model(tmp_path / "model", family)
    rows = prompt_rows(4)
    rows = rows.map(lambda row, index: {"images": rows[index // 2 * 2]["images"]}, with_indices=True)
    losses, looks = {}, []
    for is_frozen in (False, True):
        model = small_model(family)
        model.config._name_or_path = str(folder)
        model.base_model.visual.requires_grad_(not is_frozen)
        trainer = make_trainer(
            SharedPrefixTrainer, model, family, rows, tmp_path, beta=0.04, gradient_accumulation_steps=2
        )
        batch = batch_from(trainer)
        looks.clear()
        for each in (trainer.model, trainer.ref_model):
            each.base_model.visual.patch_embed.register_forward_hook(lambda _, args, out: looks.append(len(args[0])))
        losses[is_frozen] = []
        torch.manual_seed(0)
        for step in range(2):
            trainer._step = step
            losses[is_frozen].append(trainer._compute_loss(trainer.model, trainer._prepare_inputs(batch)).item())
    n_patches = {tuple(grid.tolist()) for step in trainer._buffered_inputs for grid in step["image_grid_thw"]}
    assert looks == [sum(t * h * w for t, h, w in n_patches)], "one call, each image once"
    assert losses[True] == pytest.approx(losses[False], abs=1e-6)


# --- TRL's methods ---------------------------------------------------------------------------------------------------

# What is relied on, by method: the first digits of its source's SHA-256 (comments and white space left out), and what
# to look at again where it has changed.
RELIED_ON = {
    "_get_per_token_logps_and_entropies": (
        "abd146ea17ef",
        "the packed row must score what it scores: labels, temperature, masks, new inputs",
    ),
    "_compute_loss": (
        "8b367871012c",
        "a skipped row may act through its advantage alone; how rows are counted in the normaliser",
    ),
    "_generate_single_turn": (
        "44dcde71d119",
        "that it calls `generate` of the unwrapped model, with which arguments, and cuts the prompt off",
    ),
    "_generate_and_score_completions": (
        "ff9a889ad5f7",
        "which calls it makes of `processing_class`, and which fields the batch has",
    ),
    "_calculate_rewards": ("2029e83821e8", "that it returns the terms of all processes' rows, unweighted"),
    "_prepare_inputs": (
        "fd080c17e077",
        "when it generates, how it shuffles and splits: SharedPrefixTrainer._prepare_inputs repeats it",
    ),
    "_tokenize_prompts": ("c83931760275", "which calls it makes of `processing_class`"),
}


def test_every_method_that_is_overridden_is_watched():
    overridden = {
        name for name in vars(SharedPrefixTrainer) if hasattr(GRPOTrainer, name) and not name.startswith("__")
    }
    assert overridden <= RELIED_ON.keys()
    assert "_tokenize_prompts" not in overridden, "only relied on"


def digest(source: str) -> str:
    """Of code without comments, white space and docstring-like texts."""
    code = re.sub(r"\s+", "", re.sub(r"#.*", "", source))
    return hashlib.sha256(code.encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", RELIED_ON)
def test_trls_method_is_the_one_that_was_read(name):
    known, advice = RELIED_ON[name]
    found = digest(inspect.getsource(getattr(GRPOTrainer, name)))
    assert found == known, f"TRL's {name} has changed (now {found}); look again: {advice}"


def test_the_watch_sees_a_change():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert digest(source) == digest(source.replace("    # Compute", "    # compute"))
    assert digest(source) != digest(source.replace("advantages.dim() == 1", "advantages.dim() == 2"))


@pytest.mark.parametrize("name", ["_generate_single_turn", "_get_per_token_logps_and_entropies"])
def test_signatures_still_fit(name):
    theirs, ours = (inspect.signature(getattr(owner, name)).parameters for owner in (GRPOTrainer, SharedPrefixTrainer))
    named = [key for key, parameter in ours.items() if parameter.kind == parameter.POSITIONAL_OR_KEYWORD]
    assert [key for key in theirs if key in named] == named
    assert {key: theirs[key].default for key in named} == {key: ours[key].default for key in named}


def test_what_cannot_be_shared_is_said_once(tmp_path, capsys):
    model = copy.deepcopy(small_model("qwen2_vl"))
    trainer = make_trainer(SharedPrefixTrainer, model, "qwen2_vl", prompt_rows(2), tmp_path, repetition_penalty=1.1)
    trainer.train()
    told = capsys.readouterr().err
    assert told.count("warning: prompts are not shared: the sampling setting repetition_penalty") == 1
    assert trainer.state.global_step > 1


def test_what_cannot_be_shared_is_refused_before_the_first_step(tmp_path):
    model = copy.deepcopy(small_model("qwen2_vl"))
    options = {"must_share": True, "repetition_penalty": 1.1}
    with pytest.raises(UserError, match=r"rollout\.sharing=on, but .*repetition_penalty.*rollout\.sharing=auto"):
        make_trainer(SharedPrefixTrainer, model, "qwen2_vl", prompt_rows(2), tmp_path, **options)
