"""What sharing the prompt saves, as counts that do not wobble: FLOPs, calls and bytes of one whole GRPO step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers

sys.path.append(str(Path(__file__).parents[1] / "bench"))

import step
from step_cases import Case, save_random_model

# (P, C, G): times fewer FLOPs, times fewer bytes kept for the backward pass; what is asked for, not what was measured
LEAST = {Case(345, 64, 8): (4.2, 3.5), Case(665, 64, 8): (5.5, 4.5)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("step")
    save_random_model(path)
    transformers.logging.set_verbosity_error()
    return path


@pytest.mark.parametrize(
    "case", [Case(345, 64, 8), pytest.param(Case(665, 64, 8), marks=pytest.mark.slow)], ids=lambda case: f"P={case[0]}"
)
def test_a_step_takes_several_times_fewer_flops_and_bytes(folder, case):
    figures = step.measured(case, folder, repeats=0)
    least_flops, least_bytes = LEAST[case]
    assert figures["flops_stock"] / figures["flops_shared"] >= least_flops
    assert figures["saved_bytes_stock"] / figures["saved_bytes_shared"] >= least_bytes
    assert figures["max_logp_difference"] <= 1e-5
    assert figures["max_loss_difference"] <= 1e-6
    assert figures["max_gradient_difference"] <= 1e-6


def test_the_counter_sees_attention_and_its_backward():
    """Without the formulas torch counts them as nothing on a CPU."""
    query = torch.randn(1, 2, 16, 8, requires_grad=True)
    counts = {}
    for name, formulas in {"torch's": {}, "with formulas": step.FLOP_FORMULAS}.items():
        with step.FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()
        counts[name] = counter.get_total_flops()
    forward = 2 * 2 * (2 * 16 * 16 * 8)  # two products, each of 2 heads, 16 queries, 16 keys, 8 wide
    assert counts == {"torch's": 0, "with formulas": forward + 5 * forward // 2}
