"""Out of memory: what it looks like, and the smaller batches with which a run goes on."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vrft.config.batch_sizes import batch_sizes
from vrft.config.model_checks import quantization_faults
from vrft.config.schema import Config
from vrft.config.section import with_values
from vrft.config.vllm_checks import vllm_faults
from vrft.files import append_lines, write_text_atomically
from vrft.memory.fit import BY_MICRO_BATCH, Change, first_changes, weighs_by_micro_batch
from vrft.memory.setup import Setup
from vrft.run import health

RECORD = "oom.jsonl"
_WORDS = (
    "not enough memory: you tried to allocate",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_MICRO_BATCH, _EVALUATION = "memory.completions_per_device", "memory.evaluation_batch_size"
_KEYS = {"step": _MICRO_BATCH, "evaluation": _EVALUATION}  # what is halved where; the other phases have no such batch
_EVALUATED = "; greedy completions stay, but for rounding; where an evaluation samples too, it draws others"
_HELPS = {  # in which phases a knob of the planner's helps
    "evaluation batch": (),  # halved above
    "micro-batch": (),
    "checkpointing": ("step",),
    "ZeRO stage": ("loading", "step", "rollout", "evaluation"),
    "max_pixels": ("step", "rollout", "evaluation"),
    "LoRA": ("loading", "step", "rollout", "evaluation"),
    "num_generations": ("step", "rollout"),
}


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch, its allocators and Python raise where memory runs out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def backed_off(run_dir: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The frozen config with half the batch that was at hand, written for the workers to go on with.

    In the loss that is the micro-batch, of which there are as many more: G and the prompts of a step stay. In an
    evaluation it is its own. Each time adds a line to `oom.jsonl`. None where that cannot help; what can is then said.
    """
    word = next((word for word in health.read_statuses(run_dir) if "oom" in word), {"oom": "step"})
    key = _KEYS.get(word["oom"])
    now = _size(config, key)
    changed = with_limit(config, max(now // 2, 1), key=key or _MICRO_BATCH)
    after = _size(changed, key)
    is_of_use = key is not None and after < now and (key == _EVALUATION or after >= _least(config))
    line = {"phase": word["oom"], "step": word.get("step"), "rank": word.get("rank"), "error": word.get("error")}
    append_lines(run_dir / RECORD, [line | {"from": now, "to": after if is_of_use else None}])
    if not is_of_use:
        print(f"vrft: out of memory {_where(word)}: {_knobs(config, word['oom'])}", file=sys.stderr)
        return None
    said = _price(changed) if key == _MICRO_BATCH else _EVALUATED
    print(f"vrft: out of memory {_where(word)}; going on with {key}={after} (it was {now}){said}", file=sys.stderr)
    changed["run"]["resume"] = True
    write_text_atomically(run_dir / "config.yaml", yaml.safe_dump(changed, sort_keys=False, allow_unicode=True))
    return changed


def _price(changed: dict[str, Any]) -> str:
    """What smaller micro-batches change, and what they leave."""
    n_pieces = changed["derived"]["gradient_accumulation_steps"]
    warning = f"; {BY_MICRO_BATCH}" if weighs_by_micro_batch(Config.model_validate(changed).trainer) else ""
    return f" and {n_pieces} micro-batches a step; G and the prompts of a step stay{warning}"


def _size(config: dict[str, Any], key: str | None) -> int:
    """The batch that a key limits, as it is."""
    if key == _EVALUATION:
        return config["memory"]["evaluation_batch_size"]
    return _batch_sizes(config)["per_device_train_batch_size"]


def remembered(run_dir: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config with the batches to which the run has backed off before, if it has."""
    path = run_dir / RECORD
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    for phase, key in _KEYS.items():
        limits = [line["to"] for line in lines if line.get("to") and line["phase"] == phase]
        if limits and limits[-1] < _size(config, key):
            print(f"{key}={limits[-1]}, as {path} says", file=sys.stderr)
            config = with_limit(config, limits[-1], key=key)
    return config


def with_limit(config: dict[str, Any], limit: int, *, key: str = _MICRO_BATCH) -> dict[str, Any]:
    """A copy of the frozen config with at most so many completions (rows of SFT) in a micro-batch, or at most so many
    rows in a batch of an evaluation."""
    changed = copy.deepcopy(config)
    changed["memory"][key.partition(".")[2]] = limit
    changed["derived"] |= _batch_sizes(changed)
    return changed


def _least(config: dict[str, Any]) -> int:
    """The smallest micro-batch that the rest of the config allows."""
    if config["trainer"]["args"].get("steps_per_generation"):
        return sys.maxsize  # it counts micro-batches, so a generation would shrink with them
    return 2 if config["rollout"].get("sharing") == "on" else 1


def _where(word: dict[str, Any]) -> str:
    if word["oom"] == "loading":
        return "while the weights were loaded"
    step = f" of step {word['step']}" if word.get("step") is not None else ""
    return f"in the {word['oom']}{step}" if word["oom"] != "step" else f"in the loss{step}"


def _knobs(config: dict[str, Any], phase: str) -> str:
    """What is left to turn: what the planner would turn, and what it leaves alone for it makes another experiment."""
    trainer, vllm = config["trainer"], config["rollout"].get("vllm")
    changes = {knob: change for knob, change in _first_changes(config).items() if phase in _HELPS[knob]}
    if config["derived"]["device"] == "cpu" and Config.model_validate(config).launch.n_processes == 1:
        changes.pop("ZeRO stage", None)  # it would move states to main memory, which is what ran out
    if not config["evaluate"]["train"]:  # a model that is only judged has neither
        changes.pop("ZeRO stage", None)
        changes.pop("LoRA", None)
    ways = []
    if phase == "step" and trainer["args"].get("steps_per_generation"):
        ways.append("trainer.args.steps_per_generation (without it the micro-batch is halved here)")
    if phase in ("loading", "rollout") and config["rollout"]["name"] == "vllm_colocate":
        ways.append(f"rollout.vllm.gpu_memory_utilization (now {vllm['gpu_memory_utilization']})")
    if phase == "rollout":
        ways.append(f"trainer.prompts_per_step (now {trainer['prompts_per_step']})")
    ways += [change.words for change in changes.values()]
    if phase == "loading":
        ways += [*_four_bits(config, changes.get("LoRA")), "a smaller model="]
    elif phase != "step" or trainer["name"] == "grpo":
        ways.append(f"memory.max_completion_length (now {config['memory']['max_completion_length']})")
    return f"smaller batches cannot help; left to turn in a new run are {', '.join(ways)}; see vrft plan"


def _batch_sizes(config: dict[str, Any]) -> dict[str, int]:
    typed = Config.model_validate(config)
    return batch_sizes(typed.trainer, typed.memory, typed.launch)


def _first_changes(config: dict[str, Any]) -> dict[str, Change]:
    return first_changes(Config.model_validate(config).part(Setup))


def _four_bits(config: dict[str, Any], lora: Change | None) -> Iterator[str]:
    """How the language model would take a quarter of its memory, where that is possible. lora: the change to it."""
    if config["model"]["quantization"] or config["derived"]["device"] == "cpu":
        return
    values = {"model.quantization": "nf4"} | (lora.values if lora else {})
    changed = with_values(Config.model_validate(config), values)
    faults = [
        *quantization_faults(changed.model, changed.deepspeed, is_training=changed.evaluate.train, is_remote=True),
        *vllm_faults(changed, device="cuda", is_remote=True),
    ]
    if not faults:
        yield "model/peft=qlora" if config["evaluate"]["train"] else "model.quantization=nf4"
