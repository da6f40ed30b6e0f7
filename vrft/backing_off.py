"""Out of memory: what it looks like, and the smaller micro-batches with which a run goes on."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from vrft import heartbeat
from vrft.batch_sizes import batch_sizes
from vrft.rows import append_lines, write_text_atomically

RECORD = "oom.jsonl"
_WORDS = (
    "not enough memory: you tried to allocate",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_SAMPLING, _JUDGING = "_generate_single_turn", {"evaluate_splits", "completions_of"}  # on the way to where it happened


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch, its allocators and Python raise where memory runs out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def phase_of(error: BaseException) -> str:
    """`evaluation`, `rollout` or `step`: what a worker was at when it raised."""
    names, frame = set(), error.__traceback__
    while frame is not None:
        names.add(frame.tb_frame.f_code.co_name)
        frame = frame.tb_next
    if _JUDGING & names:
        return "evaluation"
    return "rollout" if _SAMPLING in names else "step"


def backed_off(run_dir: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The frozen config with half the micro-batch and as many more of them, written for the workers to go on with.

    G and the prompts of a step stay. Each time adds a line to `oom.jsonl`. None where that cannot help; what can is
    then said.
    """
    word = next((word for word in heartbeat.heard(run_dir) if "oom" in word), {"oom": "step"})
    now = batch_sizes(config)["per_device_train_batch_size"]
    changed = with_limit(config, max(now // 2, 1))
    after = changed["derived"]["per_device_train_batch_size"]
    is_of_use = word["oom"] == "step" and after < now and after >= _least(config)
    line = {"phase": word["oom"], "step": word.get("step"), "rank": word.get("rank"), "error": word.get("error")}
    append_lines(run_dir / RECORD, [line | {"from": now, "to": after if is_of_use else None}])
    if not is_of_use:
        print(f"vrft: out of memory {_where(word)}: {_knobs(config, word['oom'])}", file=sys.stderr)
        return None
    print(
        f"vrft: out of memory {_where(word)}; going on with memory.completions_per_device={after} (it was {now}) and "
        f"{changed['derived']['gradient_accumulation_steps']} micro-batches a step; G and the prompts of a step stay",
        file=sys.stderr,
    )
    changed["run"]["resume"] = True
    write_text_atomically(run_dir / "config.yaml", yaml.safe_dump(changed, sort_keys=False, allow_unicode=True))
    return changed


def remembered(run_dir: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config with the micro-batch to which the run has backed off before, if it has."""
    path = run_dir / RECORD
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    limits = [line["to"] for line in lines if line.get("to")]
    if not limits or limits[-1] >= batch_sizes(config)["per_device_train_batch_size"]:
        return config
    print(f"memory.completions_per_device={limits[-1]}, as {path} says", file=sys.stderr)
    return with_limit(config, limits[-1])


def with_limit(config: dict[str, Any], limit: int) -> dict[str, Any]:
    """A copy of the frozen config with at most so many completions (rows of SFT) in a micro-batch."""
    changed = copy.deepcopy(config)
    changed["memory"]["completions_per_device"] = limit
    changed["derived"] |= batch_sizes(changed)
    return changed


def _least(config: dict[str, Any]) -> int:
    """The smallest micro-batch that the rest of the config allows."""
    if config["trainer"]["args"].get("steps_per_generation"):
        return sys.maxsize  # it counts micro-batches, so a generation would shrink with them
    return 2 if config["rollout"].get("sharing") == "on" else 1


def _where(word: dict[str, Any]) -> str:
    step = f" of step {word['step']}" if word.get("step") is not None else ""
    return f"in the {word['oom']}{step}" if word["oom"] != "step" else f"in the loss{step}"


def _knobs(config: dict[str, Any], phase: str) -> str:
    """What is left to turn."""
    memory, ways = config["memory"], []
    if phase == "evaluation":
        ways.append(f"memory.evaluation_batch_size (now {memory['evaluation_batch_size']})")
    if phase == "rollout":
        ways.append(f"trainer.prompts_per_step (now {config['trainer']['prompts_per_step']})")
    if phase == "step" and config["trainer"]["args"].get("steps_per_generation"):
        ways.append("trainer.args.steps_per_generation (without it the micro-batch is halved here)")
    if phase == "step" and not memory["gradient_checkpointing"]:
        ways.append("memory.gradient_checkpointing=true")
    if (config["deepspeed"]["config"] or {}).get("zero_optimization", {}).get("stage") != 3:
        ways.append("deepspeed=zero3")
    ways += [f"memory.max_pixels (now {memory['max_pixels']})"]
    if not config["model"]["peft"]:
        ways.append("model/peft=lora")
    if phase != "evaluation":
        ways.append(f"memory.num_generations (now {memory['num_generations']})")
    return f"smaller micro-batches cannot help; left to turn in a new run are {', '.join(ways)}; see vrft plan"
