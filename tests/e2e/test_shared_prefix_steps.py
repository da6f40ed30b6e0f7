"""Three real trainer steps: what stock TRL does from the same seed, vrft does too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import three_steps
from small_models import save_model

AGREE = (
    "loss",
    "grad_norm",
    "kl",
    "entropy",
    "entropy_coef",
    "reward",
    "completions/mean_length",
    "num_tokens",
    "step",
)
KL = {"beta": 0.04}
STEPS = {
    "Qwen2-VL": {"family": "qwen2_vl", "arguments": KL},
    "Qwen2.5-VL, two images in some rows": {"family": "qwen2_5_vl", "arguments": KL, "n_images": [1, 2]},
    "Qwen3-VL": {"family": "qwen3_vl", "arguments": KL},
    "LoRA, the reference without it": {"family": "qwen2_vl", "arguments": KL, "lora": True},
    "LoRA and a frozen tower": {"family": "qwen3_vl", "arguments": KL, "lora": True, "freeze_vision": True},
    "a frozen tower": {"family": "qwen2_vl", "arguments": KL, "freeze_vision": True, "n_images": [2, 1]},
    "checkpointing, reentrant": {
        "family": "qwen2_vl",
        "arguments": {**KL, "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    },
    "checkpointing, not reentrant": {
        "family": "qwen2_5_vl",
        "arguments": {**KL, "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    },
    "four micro-batches": {
        "family": "qwen2_vl",
        "arguments": {**KL, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    },
    "micro-batches smaller than a group": {
        "family": "qwen2_vl",
        "arguments": {**KL, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    },
    "two iterations on a generation": {"family": "qwen2_vl", "arguments": {**KL, "num_iterations": 2}},
    "truncated completions masked": {
        "family": "qwen2_vl",
        "arguments": {**KL, "mask_truncated_completions": True},
    },
    "rows skipped, AdamW": {
        "family": "qwen2_vl",
        # 1e-8 would let a gradient that is rounding alone move a weight by a whole step
        "arguments": {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-4, "adam_epsilon": 1e-5},
        "reward": "first_token",
    },
    "rows skipped, DAPO in two iterations": {
        "family": "qwen2_5_vl",
        "arguments": {"loss_type": "dapo", "num_iterations": 2, "per_device_train_batch_size": 16},
        "reward": "first_token",
    },
    "nothing to learn from": {"family": "qwen2_vl", "arguments": {"optim": "adamw_torch"}, "reward": "constant"},
    "adaptive entropy, steps wholly masked": {
        "family": "qwen2_vl",
        "arguments": {
            "mask_truncated_completions": True,
            "max_completion_length": 1,
            "use_adaptive_entropy": True,
            "entropy_target": 0.5,
            "entropy_coef": 0.01,
        },
    },
    "GSPO": {"family": "qwen2_vl", "arguments": {"importance_sampling_level": "sequence", "loss_type": "grpo"}},
}
ZERO3 = {"stage": 3, "stage3_param_persistence_threshold": 0}
DEEPSPEED = dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"), "auto")
PROCESSES = {
    "DDP": {
        "plain": {"family": "qwen2_vl", "arguments": KL, "n_images": [1, 2]},
        "a group over both": {"family": "qwen2_vl", "arguments": {**KL, "per_device_train_batch_size": 2}},
        "rows skipped": {
            "family": "qwen2_vl",
            "arguments": {"gradient_accumulation_steps": 2},
            "reward": "first_token",
        },
    },
    "ZeRO-3": {
        "plain": {
            "family": "qwen2_vl",
            "arguments": {
                **KL,
                "deepspeed": {"zero_optimization": ZERO3, "zero_allow_untested_optimizer": True, **DEEPSPEED},
            },
        },
        "unlike numbers of calls": {
            "family": "qwen2_vl",
            "arguments": {
                **KL,
                "deepspeed": {"zero_optimization": ZERO3, "zero_allow_untested_optimizer": True, **DEEPSPEED},
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 4,
                "mask_truncated_completions": True,
            },
        },
    },
}


def assert_agree(made: dict, settings: dict) -> None:
    """Both sides' logs to a relative 1e-5 (numbers below 0.01 to 1e-7), and the weights they end at.

    Where there are several micro-batches they hold other rows than TRL's, so its means of their means (KL, entropy)
    weigh rows otherwise.
    """
    arguments = settings["arguments"]
    is_split = arguments.get("gradient_accumulation_steps", 1) > 1
    stock, shared = made["stock"], made["shared"]
    assert len(stock) == len(shared) == 3
    for theirs, ours in zip(stock, shared, strict=True):
        for name in AGREE:
            if name == "entropy" and ours["shared_prefix/skipped"] > 0:
                continue  # that of the other rows
            if theirs.get(name) is not None and not (is_split and name in ("kl", "entropy")):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-7), (name, theirs, ours)
    has_gradient = any(step["grad_norm"] > 0.01 for step in stock)
    assert has_gradient == (settings.get("reward") != "constant"), "steps without a gradient would show nothing"
    assert made["largest_difference"] <= 1e-6
    if arguments.get("max_completion_length") != 1:
        assert all(step["completions/min_length"] < step["completions/max_length"] for step in stock[:1])
    assert all(step["shared_prefix/fraction"] == 1.0 for step in shared)


@pytest.mark.parametrize("settings", STEPS.values(), ids=STEPS)
def test_three_steps_agree_with_trl(tmp_path, settings):
    save_model(tmp_path / "model", settings["family"])
    made = three_steps.both_sides(tmp_path, settings)
    assert_agree(made, settings)
    skipped = [step["shared_prefix/skipped"] for step in made["shared"]]
    assert (max(skipped) > 0.2) == ("reward" in settings or "mask_truncated_completions" in settings["arguments"])


@pytest.mark.parametrize("kind", PROCESSES)
def test_three_steps_of_two_processes_agree_with_trl(tmp_path, kind):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"),
        *(str(Path(__file__).with_name("three_steps.py")), json.dumps(PROCESSES[kind]), str(tmp_path)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    made = json.loads((tmp_path / "steps.json").read_text())
    assert made.keys() == PROCESSES[kind].keys()
    for name, settings in PROCESSES[kind].items():
        assert_agree(made[name], settings)
    if "a group over both" in PROCESSES[kind]:
        assert done.stderr.count("the 4 completions of a prompt are spread over processes, 2 rows each") == 1
