"""One step dealt out to processes and micro-batches."""

from __future__ import annotations

import re

import pytest

from vrft.config.batch_sizes import batch_sizes, fitting_step, rows_at_once, uneven_share
from vrft.config.launch_schema import TorchrunLaunch
from vrft.config.schema import Memory, Trainer
from vrft.errors import UserError


def settings(*, trainer="grpo", prompts, group=8, limit=None, processes=1, machines=1, args=None) -> tuple:
    """The sections that decide how a step is dealt out, with nothing else in them."""
    return (
        Trainer.model_construct(name=trainer, prompts_per_step=prompts, args=args or {}),
        Memory.model_construct(num_generations=group, completions_per_device=limit),
        TorchrunLaunch.model_construct(nproc_per_node=processes, nnodes=machines),
    )


@pytest.mark.parametrize(
    ("given", "per_device", "accumulation"),
    [
        (settings(prompts=8), 64, 1),  # the demo: everything at once
        (settings(prompts=16, limit=8, processes=8), 8, 2),  # published: 8 GPUs, 16 prompts of 8
        (settings(prompts=16, group=4, limit=1, processes=8), 1, 8),  # gpu_24gb
        (settings(prompts=2, group=3, limit=5), 3, 2),  # 5 does not divide 6: the next smaller that does
        (settings(prompts=7, group=1, limit=4, trainer="sft"), 1, 7),  # a prime share
        (settings(prompts=16, group=8, limit=4, trainer="sft"), 4, 4),  # SFT counts rows, whatever G is
        (settings(prompts=1, group=8, processes=2), 4, 1),  # a group may be shared out
    ],
)
def test_a_step_is_shared_out(given, per_device, accumulation):
    assert batch_sizes(*given) == {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
    }


def test_sweeping_the_group_leaves_the_prompts_of_a_step():
    for group in (2, 4, 8, 16):
        sizes = batch_sizes(*settings(prompts=16, group=group, limit=8, processes=4))
        completions = sizes["per_device_train_batch_size"] * sizes["gradient_accumulation_steps"] * 4
        assert completions == 16 * group


def test_processes_that_cannot_share_a_step_are_refused_with_the_arithmetic():
    fault = uneven_share(*settings(prompts=2, group=3, processes=4))
    assert re.search(r"2 × 3 = 6 .*nproc_per_node=4 .*prompts_per_step=4 would do", fault)
    assert uneven_share(*settings(prompts=2, group=3, processes=2)) is None


def test_processes_of_all_machines_share_a_step():
    assert batch_sizes(*settings(prompts=2, processes=2, machines=2))["per_device_train_batch_size"] == 4
    assert "nproc_per_node=2 × launch.nnodes=3 processes" in uneven_share(*settings(prompts=2, processes=2, machines=3))


@pytest.mark.parametrize(
    ("n_rows", "given", "step"),
    [
        (16, settings(prompts=16), 16),  # just enough
        (10, settings(prompts=16), 10),  # all there are
        (1, settings(prompts=16, trainer="sft"), 16),  # the last step of SFT may be smaller
        (10, settings(prompts=16, group=2, processes=8), 8),  # 10 × 2 is no multiple of 8
        (4, settings(prompts=2, args={"steps_per_generation": 2}), 2),
        (4, settings(prompts=4, limit=8, args={"steps_per_generation": 2}), 4),  # half of a step at once
    ],
)
def test_a_step_takes_no_more_rows_than_there_are(n_rows, given, step):
    assert fitting_step(n_rows, *given) == step


@pytest.mark.parametrize(
    ("n_rows", "given", "words"),
    [
        (3, settings(prompts=16, group=2, processes=8), "3 rows .*prompts_per_step=16.*lower launch.nproc_per_node"),
        (
            3,
            settings(prompts=2, args={"steps_per_generation": 2}),
            "steps_per_generation=2 samples 4 at once",
        ),
    ],
)
def test_rows_that_fill_no_step_are_refused(n_rows, given, words):
    with pytest.raises(UserError, match=words):
        fitting_step(n_rows, *given)


def test_rows_sampled_together_are_those_of_a_step_or_of_a_generation():
    assert rows_at_once(*settings(prompts=16)) == 16
    assert rows_at_once(*settings(prompts=16, limit=8, args={"steps_per_generation": 4})) == 4
    assert rows_at_once(*settings(prompts=16, trainer="sft")) == 1
