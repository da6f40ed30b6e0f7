"""Out of memory: how to recognise it, and the smaller batches with which a run resumes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from vrft.config.batch_sizes import batch_sizes, derive
from vrft.config.model_checks import quantization_faults
from vrft.config.schema import Config
from vrft.config.section import with_values
from vrft.config.vllm_checks import vllm_faults
from vrft.files import append_lines, read_rows
from vrft.memory.changes import BY_MICRO_BATCH, Change, first_changes, weighs_by_micro_batch
from vrft.memory.training_setup import Setup
from vrft.run import health
from vrft.run.resume import write_config

RECORD = "oom.jsonl"
_WORDS = (
    "not enough memory: you tried to allocate",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_MICRO_BATCH, _EVALUATION = "memory.completions_per_device", "memory.evaluation_batch_size"
_KEYS = {"step": _MICRO_BATCH, "evaluation": _EVALUATION}  # which batch is halved in which phase; the others have none
_EVALUATED = "; greedy completions stay, but for rounding; sampled ones change"
_HELPS = {  # in which phases a knob of the planner's helps
    "evaluation batch": (),  # halved above
    "micro-batch": (),
    "checkpointing": ("step",),
    "ZeRO stage": ("loading", "step", "rollout", "evaluation"),
    "max_pixels": ("step", "rollout", "evaluation"),
    "LoRA": ("loading", "step", "rollout", "evaluation"),
    "num_generations": ("step", "rollout"),
}


class _Line(BaseModel):
    """A line of the record."""

    phase: str
    to: Annotated[int, Field(ge=1)] | None


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch, its allocators and Python raise where memory runs out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def backed_off(run_dir: Path, config: Config) -> Config | None:
    """The frozen config with half of the batch that was too large, written to the run directory for the workers.

    In the loss that is the micro-batch: there are as many more of them, so G and the prompts of a step stay. In an
    evaluation it is the evaluation's batch. Each call adds a line to `oom.jsonl`. Returns None, and prints what could
    help, if no smaller batch can.
    """
    status = next((status for status in health.read_statuses(run_dir) if "oom" in status), {"oom": "step"})
    key = _KEYS.get(status["oom"])
    now = _size(config, key)
    changed = with_limit(config, max(now // 2, 1), key=key or _MICRO_BATCH)
    after = _size(changed, key)
    is_of_use = key is not None and after < now and (key == _EVALUATION or after >= _least(config))
    line = {"phase": status["oom"], "step": status.get("step"), "rank": status.get("rank")}
    line |= {"error": status.get("error"), "from": now, "to": after if is_of_use else None}
    append_lines(run_dir / RECORD, [line])
    if not is_of_use:
        print(f"vrft: out of memory {_where(status)}: {_knobs(config, status['oom'])}", file=sys.stderr)
        return None
    price = _price(changed) if key == _MICRO_BATCH else _EVALUATED
    print(f"vrft: out of memory {_where(status)}; resuming with {key}={after} (it was {now}){price}", file=sys.stderr)
    changed = with_values(changed, {"run.resume": True})
    write_config(run_dir, changed)
    return changed


def _price(changed: Config) -> str:
    """What smaller micro-batches change, and what they keep."""
    n_pieces = changed.derived.gradient_accumulation_steps
    warning = f"; {BY_MICRO_BATCH}" if weighs_by_micro_batch(changed.trainer) else ""
    return f" and {n_pieces} micro-batches a step; G and the prompts of a step stay{warning}"


def _size(config: Config, key: str | None) -> int:
    """The current size of the batch that a key limits."""
    if key == _EVALUATION:
        return config.memory.evaluation_batch_size
    return batch_sizes(config.trainer, config.memory, config.launch)["per_device_train_batch_size"]


def remembered(run_dir: Path, config: Config) -> Config:
    """The config with the smaller batches that the run has used before, if there are any."""
    path = run_dir / RECORD
    lines = read_rows(path, _Line, may_be_cut=True) if path.is_file() else []
    for phase, key in _KEYS.items():
        limits = [line["to"] for line in lines if line["to"] and line["phase"] == phase]
        if limits and limits[-1] < _size(config, key):
            print(f"{key}={limits[-1]}, as {path} says", file=sys.stderr)
            config = with_limit(config, limits[-1], key=key)
    return config


def with_limit(config: Config, limit: int, *, key: str = _MICRO_BATCH) -> Config:
    """The config with at most `limit` completions (of SFT: rows) in a micro-batch, or rows in a batch of an
    evaluation."""
    return derive(with_values(config, {key: limit}), device=config.derived.device)


def _least(config: Config) -> int:
    """The smallest micro-batch that the rest of the config allows."""
    if config.trainer.args.get("steps_per_generation"):
        return sys.maxsize  # it counts micro-batches, so a generation would shrink with them
    return 2 if config.rollout.sharing == "on" else 1


def _where(status: dict[str, Any]) -> str:
    if status["oom"] == "loading":
        return "while the weights were loaded"
    step = f" of step {status['step']}" if status.get("step") is not None else ""
    return f"in the {status['oom']}{step}" if status["oom"] != "step" else f"in the loss{step}"


def _knobs(config: Config, phase: str) -> str:
    """What can still be turned: the planner's knobs, and keys that the planner leaves alone, as they make it another
    experiment."""
    trainer = config.trainer
    changes = {knob: change for knob, change in first_changes(config.part(Setup)).items() if phase in _HELPS[knob]}
    if config.derived.device == "cpu" and config.launch.n_processes == 1:
        changes.pop("ZeRO stage", None)  # it would move states to main memory, which is what ran out
    if not config.evaluate.train:  # neither applies to a model that is only evaluated
        changes.pop("ZeRO stage", None)
        changes.pop("LoRA", None)
    ways = []
    if phase == "step" and trainer.args.get("steps_per_generation"):
        ways.append("trainer.args.steps_per_generation (without it the micro-batch is halved here)")
    if phase in ("loading", "rollout") and config.rollout.name == "vllm_colocate":
        ways.append(f"rollout.vllm.gpu_memory_utilization (now {config.rollout.vllm.gpu_memory_utilization})")
    if phase == "rollout":
        ways.append(f"trainer.prompts_per_step (now {trainer.prompts_per_step})")
    ways += [change.words for change in changes.values()]
    if phase == "loading":
        ways += [*_four_bits(config, changes.get("LoRA")), "a smaller model="]
    elif phase != "step" or trainer.name == "grpo":
        ways.append(f"memory.max_completion_length (now {config.memory.max_completion_length})")
    return f"smaller batches cannot help; left to turn in a new run are {', '.join(ways)}; see vrft plan"


def _four_bits(config: Config, lora: Change | None) -> Iterator[str]:
    """How to load the language model in 4 bits, where that is possible. lora: the change to it."""
    if config.model.quantization or config.derived.device == "cpu":
        return
    changed = with_values(config, {"model.quantization": "nf4"} | (lora.values if lora else {}))
    faults = [
        *quantization_faults(changed.model, changed.deepspeed, is_training=changed.evaluate.train, is_remote=True),
        *vllm_faults(changed, device="cuda", is_remote=True),
    ]
    if not faults:
        yield "model/peft=qlora" if config.evaluate.train else "model.quantization=nf4"
