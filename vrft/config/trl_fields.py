"""The fields of TRL's trainer configs, read from its source: a typo is reported without importing TRL for seconds."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from vrft.errors import describe, suggestion

_SOURCES = {
    "grpo": (("trl", "trainer/grpo_config.py", "GRPOConfig"),),
    "sft": (("trl", "trainer/sft_config.py", "SFTConfig"),),
}
_BASES = (
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("transformers", "training_args.py", "TrainingArguments"),
)
_CLASS_NAMES = {"grpo": "trl.GRPOConfig", "sft": "trl.SFTConfig"}
_SIMPLE_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "dict": dict, "list": list, "None": type(None)}

OWN_KEYS = {
    "auto_find_batch_size": "memory.completions_per_device",
    "bf16": "model.dtype",
    "deepspeed": "deepspeed",
    "eval_steps": "trainer.eval_steps",
    "eval_strategy": "trainer.eval_steps",
    "fp16": "model.dtype",
    "generation_batch_size": "trainer.prompts_per_step",
    "gradient_accumulation_steps": "trainer.prompts_per_step",
    "gradient_checkpointing": "memory.gradient_checkpointing",
    "hub_token": "the hub's own login (`hf auth login`)",
    "learning_rate": "trainer.learning_rate",
    "load_best_model_at_end": "evaluate.checkpoint",
    "max_completion_length": "memory.max_completion_length",
    "max_steps": "trainer.max_steps",
    "model_init_kwargs": "model",
    "num_generations": "memory.num_generations",
    "num_train_epochs": "trainer.epochs",
    "output_dir": "run.dir",
    "per_device_train_batch_size": "memory.completions_per_device",
    "report_to": "logging",
    "resume_from_checkpoint": "run.resume",
    "reward_weights": "reward.weights",
    "run_name": "run.name",
    "save_steps": "trainer.save_steps",
    "save_strategy": "trainer.save_steps",
    "seed": "run.seed",
    "temperature": "rollout.temperature",
    "top_k": "rollout.top_k",
    "top_p": "rollout.top_p",
    "trust_remote_code": "model.trust_remote_code",
    "use_cpu": "launch.device",
    "use_vllm": "rollout",
    "vllm_enable_sleep_mode": "rollout.vllm.sleep",
    "vllm_gpu_memory_utilization": "rollout.vllm.gpu_memory_utilization",
    "vllm_group_port": "rollout.vllm.group_port",
    "vllm_max_model_length": "rollout.vllm.max_model_len",
    "vllm_mode": "rollout",
    "vllm_server_base_url": "rollout.vllm.host",
    "vllm_server_host": "rollout.vllm.host",
    "vllm_server_port": "rollout.vllm.port",
    "vllm_server_timeout": "rollout.vllm.timeout_s",
    "vllm_tensor_parallel_size": "rollout.vllm.tensor_parallel_size",
}
"""TRL fields that vrft sets from a key of its own, and that key."""

FIXED = {
    "ignore_data_skip": "a resumed run would train on other rows",
    "logging_first_step": "every step is logged",
    "logging_steps": "every step is logged, so that alarms see it and a resumed run's log has no seam",
    "logging_strategy": "every step is logged",
    "remove_unused_columns": "reward terms need the columns",
    "save_only_model": "the run could not be resumed",
}
"""TRL fields that vrft sets itself, and why they stay so."""


def argument_faults(trainer: str, args: dict[str, Any]) -> Iterator[str]:
    """Yield one sentence for each of `trainer.args` that TRL does not know, has another type, or vrft sets itself."""
    known = trl_fields(trainer)
    for name, value in args.items():
        if name in OWN_KEYS:
            yield f"trainer.args.{name} is set from {OWN_KEYS[name]}; state it there"
        elif name in FIXED:
            yield f"trainer.args.{name} cannot be chosen: {FIXED[name]}"
        elif name not in known:
            free = [field for field in known if field not in OWN_KEYS and field not in FIXED]
            hint = _owner(trainer, name) or suggestion(name, free) or "its fields are listed in TRL's documentation"
            yield f"trainer.args.{name} is no field of {_CLASS_NAMES[trainer]}; {hint.strip()}"
        elif not any(_fits(value, option) for option in known[name]):
            wanted = " or ".join(describe(option) for option in known[name])
            yield f"trainer.args.{name} is {value!r}; {wanted} is needed"


def _owner(trainer: str, name: str) -> str:
    others = [other for other in _SOURCES if other != trainer and name in trl_fields(other)]
    return "".join(f"it belongs to trainer={other}" for other in others)


@cache
def trl_fields(trainer: str) -> dict[str, tuple]:
    """`{field: types}` of the config class of `grpo` or `sft`, inherited fields included.

    A type that is not simple (an enum, a class) is given as `Any`.
    """
    found: dict[str, tuple] = {}
    for package, path, class_name in (*_SOURCES[trainer], *_BASES):
        for name, annotation in _class_fields(package, path, class_name).items():
            found.setdefault(name, _read_annotation(annotation))
    return found


def _class_fields(package: str, path: str, class_name: str) -> dict[str, ast.expr]:
    source = Path(importlib.util.find_spec(package).origin).parent / path
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return {
                statement.target.id: statement.annotation
                for statement in node.body
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            }
    raise LookupError(f"{source} has no class {class_name}")


def _read_annotation(annotation: ast.expr) -> tuple:
    """The types of an annotation such as `dict[str, Any] | str | None`, with `Any` for one that is not simple."""
    if isinstance(annotation, ast.BinOp):
        return (*_read_annotation(annotation.left), *_read_annotation(annotation.right))
    if isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    name = annotation.id if isinstance(annotation, ast.Name) else str(getattr(annotation, "value", ""))
    return (_SIMPLE_TYPES.get(name, Any),)


def _fits(value: Any, kind: Any) -> bool:
    """True if the value is of that simple type; an int fits a float, and a bool fits neither."""
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return kind is Any or isinstance(value, kind)
