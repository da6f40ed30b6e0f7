"""A step's completions dealt out to micro-batches in several ways: the same loss and gradients."""

from __future__ import annotations

import pytest
import torch
from small_models import make_trainer, prompt_rows, small_model
from trl import GRPOTrainer

from vrft.train.grpo import ResumableGRPO, ResumableSharing

GROUPINGS = [(8, 1), (4, 2), (2, 4)]  # per device × accumulation; G = 4, so 2 × 4 splits the groups
PATHS = {"TRL": ResumableGRPO, "shared": ResumableSharing}


def first_step(trainer_class, folder, *, grouping, **options):
    """`(loss, {name: gradient}, batch)` of one real step on 8 completions of 2 prompts, by plain SGD with a
    learning rate of 1 and no clipping."""
    model = small_model("qwen2_vl")
    model.generation_config.eos_token_id = list(range(0, 570, 24))  # completions end at many lengths
    per_device, accumulation = grouping
    trainer = make_trainer(
        trainer_class, model, "qwen2_vl", prompt_rows(2), folder, max_steps=1, learning_rate=1.0, max_grad_norm=0.0,
        per_device_train_batch_size=per_device, gradient_accumulation_steps=accumulation, **options,
    )  # fmt: skip
    sampled, generate = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: sampled.append(generate(rows)) or sampled[-1]
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    (batch,) = sampled
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    after = dict(trainer.model.named_parameters())
    return loss, {name: before[name] - after[name].detach() for name in before}, batch


def largest_difference(one: dict, other: dict) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    """`at_once(loss_type)`: the step of TRL's own trainer with all completions in one batch."""
    known = {}

    def made(loss_type):
        if loss_type not in known:
            folder = tmp_path_factory.mktemp("at_once")
            known[loss_type] = first_step(GRPOTrainer, folder, grouping=(8, 1), loss_type=loss_type)
        return known[loss_type]

    return made


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("grouping", GROUPINGS, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_first_step_is_the_same_however_its_completions_are_grouped(tmp_path, at_once, path, grouping, loss_type):
    loss, gradients, batch = at_once(loss_type)
    other_loss, others, same = first_step(PATHS[path], tmp_path, grouping=grouping, loss_type=loss_type)
    assert torch.equal(batch["completion_ids"], same["completion_ids"])
    assert len(batch["completion_mask"].sum(1).unique()) > 2, "equal lengths would hide how completions are weighed"
    assert abs(loss - other_loss) <= 1e-5
    assert largest_difference(gradients, others) <= 1e-5
    assert max(gradient.abs().max().item() for gradient in gradients.values()) > 1e-2, "there is something to compare"


def test_a_loss_that_divides_by_the_tokens_of_a_micro_batch_is_seen_to_differ(tmp_path, at_once):
    """`bnpo` does, by definition: the comparison above can fail."""
    _, gradients, batch = at_once("bnpo")
    _, others, same = first_step(ResumableGRPO, tmp_path, grouping=(2, 4), loss_type="bnpo")
    assert torch.equal(batch["completion_ids"], same["completion_ids"])
    assert largest_difference(gradients, others) > 1e-4
