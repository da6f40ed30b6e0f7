"""One step dealt out to processes and micro-batches."""

from __future__ import annotations

import pytest

from vrft.config.batch_sizes import batch_sizes, uneven_share
from vrft.config.launch_schema import TorchrunLaunch
from vrft.config.schema import Memory, Trainer
from vrft.errors import UserError


def settings(*, trainer="grpo", prompts, group=8, limit=None, processes=1, machines=1) -> tuple:
    """The sections that decide how a step is dealt out, with nothing else in them."""
    return (
        Trainer.model_construct(name=trainer, prompts_per_step=prompts),
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
    with pytest.raises(UserError, match=r"2 × 3 = 6 .*nproc_per_node=4 .*prompts_per_step=4 would do"):
        batch_sizes(*settings(prompts=2, group=3, processes=4))
    assert uneven_share(*settings(prompts=2, group=3, processes=2)) is None


def test_processes_of_all_machines_share_a_step():
    assert batch_sizes(*settings(prompts=2, processes=2, machines=2))["per_device_train_batch_size"] == 4
    assert "nproc_per_node=2 × launch.nnodes=3 processes" in uneven_share(*settings(prompts=2, processes=2, machines=3))
