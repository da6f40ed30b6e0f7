"""Three real steps by stock TRL and by vrft from the same weights and seed; prints both logs as JSON.

    python tests/e2e/three_steps.py '{"a name": {"family": "qwen2_vl", "arguments": {"beta": 0.04}}}' FOLDER

Also under torchrun. Settings: `family`, `arguments` of `trl.GRPOConfig`, `lora` and `freeze_vision` (true or false),
`n_images` by row, `reward` (`ids`, `first_token` or `constant`).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from accelerate import PartialState
from peft import LoraConfig
from small_models import make_trainer, prompt_rows, reward_by_ids, save_model
from transformers import AutoModelForImageTextToText
from trl import GRPOTrainer

from vrft.train.trl_overrides import SharedPrefixTrainer

SIDES = {"stock": GRPOTrainer, "shared": SharedPrefixTrainer}


def first_token(completion_ids: list, **kwargs) -> list[float]:
    """Mostly equal rewards."""
    return [float(ids[0] % 16 == 0) for ids in completion_ids]


def constant(completion_ids: list, **kwargs) -> list[float]:
    """Nothing to learn from."""
    return [1.0] * len(completion_ids)


REWARDS = {"ids": reward_by_ids, "first_token": first_token, "constant": constant}


def three_steps(
    side: str,
    folder: Path,
    *,
    family: str,
    arguments: dict,
    lora: bool = False,
    freeze_vision: bool = False,
    n_images: tuple[int, ...] = (1,),
    reward: str = "ids",
) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """The log entries of the steps, and the weights after them by name."""
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    model.base_model.visual.requires_grad_(not freeze_vision)
    model.generation_config.eos_token_id = list(range(0, 570, 24))  # completions end at many lengths
    trainer = make_trainer(
        SIDES[side],
        model,
        family,
        prompt_rows(24, n_images=n_images),
        folder,
        reward=REWARDS[reward],
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora else None,
        **arguments,
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = dict(trainer.model.named_parameters())
    is_sharded = any(hasattr(weight, "ds_id") for weight in weights.values())
    gathered = contextlib.nullcontext()
    if is_sharded:
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(list(weights.values()))
    with gathered:
        return steps, {name: weight.detach().clone() for name, weight in weights.items()}


def both_sides(folder: Path, settings: dict) -> dict:
    """`{"stock": [...], "shared": [...], "largest_difference": of any weight}`; the model is in `folder / "model"`."""
    logs, weights = {}, {}
    for side in SIDES:
        logs[side], weights[side] = three_steps(side, folder, **settings)
    moved = max((weights["stock"][name] - weight).abs().max().item() for name, weight in weights["shared"].items())
    return {**logs, "largest_difference": moved}


def main() -> None:
    cases, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    if any(settings["arguments"].get("deepspeed") for settings in cases.values()):
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")  # accelerate skips its DeepSpeed branch on a CPU
    with PartialState(cpu=True).main_process_first():  # before ZeRO-3 would make all processes build them together
        for name, settings in cases.items():
            if not (folder / name).is_dir():
                save_model(folder / name / "model", settings["family"])
    made = {name: both_sides(folder / name, settings) for name, settings in cases.items()}
    if os.environ.get("RANK", "0") == "0":
        (folder / "steps.json").write_text(json.dumps(made), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
