"""What is wrong with a config: every fault as a sentence that names its key and says what would be right."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vrft.config.batch_sizes import batch_sizes, n_processes
from vrft.config.model_checks import part_faults, quantization_faults
from vrft.config.package_files import TINY_MODEL, config_folder
from vrft.config.schema import AlarmRule, Other
from vrft.config.shapes import fits, flat, shape_faults
from vrft.config.trl_fields import argument_faults
from vrft.errors import UserError, suggestion

_AT_LEAST = {
    "trainer.prompts_per_step": 1,
    "trainer.max_steps": 1,
    "trainer.eval_steps": 1,
    "trainer.save_steps": 1,
    "memory.min_pixels": 1,
    "memory.completions_per_device": 1,
    "memory.max_completion_length": 1,
    "memory.max_prompt_length": 1,
    "memory.evaluation_batch_size": 1,
    "launch.nproc_per_node": 1,
    "alarms.window": 1,
    "logging.pictures": 1,
    "logging.pictures_every": 1,
    "probe.rows": 1,
    "probe.completions": 2,
    "trainer.own_samples": 1,
    "plan.prompt_tokens": 1,
    "launch.threads": 1,
    "protocol.n_resamples": 1,
    "protocol.n_samples": 1,
    "rollout.top_k": 0,
    "run.seed": 0,
}
_ABOVE_ZERO = (
    "trainer.learning_rate",
    "trainer.epochs",
    "launch.watchdog_s",
    "rollout.temperature",
    "rollout.top_p",
    "protocol.temperature",
)


def range_faults(config: dict[str, Any]) -> Iterator[str]:
    for key, least in _AT_LEAST.items():
        value = _value(config, key)
        if value is not None and value < least:
            yield f"{key} is {value}; at least {least} is needed"
    for key in _ABOVE_ZERO:
        value = _value(config, key)
        if value is not None and not value > 0:
            why = ": at 0 all completions of a prompt are one text" if key == "rollout.temperature" else ""
            yield f"{key} is {value}; it must be above 0{why}"
    if config["rollout"]["top_p"] > 1:
        yield f"rollout.top_p is {config['rollout']['top_p']}; it is a share, at most 1"
    memory, trainer = config["memory"], config["trainer"]
    if memory["min_pixels"] > memory["max_pixels"]:
        least, most = memory["min_pixels"], memory["max_pixels"]
        yield f"memory.min_pixels={least} exceeds memory.max_pixels={most}; lower the one or raise the other"
    if trainer["name"] == "grpo" and memory["num_generations"] < 2:
        yield f"memory.num_generations is {memory['num_generations']}; a group needs at least 2 completions to compare"
    is_training = config["evaluate"]["train"] and "predict" not in config
    if is_training and (trainer["max_steps"] is None) == (trainer["epochs"] is None):
        yield (
            f"trainer.max_steps is {trainer['max_steps']} and trainer.epochs is {trainer['epochs']}; "
            "give one of them a value and the other null"
        )


def model_faults(config: dict[str, Any], *, is_elsewhere: bool = False) -> Iterator[str]:
    """Yield what is wrong with the model and with which of its weights are trained; is_elsewhere: as in `freeze`."""
    from vrft.models.families import FAMILIES

    model = config["model"]
    if model["family"] not in FAMILIES:
        yield f"model.family is {model['family']!r}; known families: {', '.join(FAMILIES)}"
    if model["path"] is None and model["family"] != "tiny":
        yield (
            "model.path is null, which means the shipped tiny model, "
            f"but model.family is {model['family']}; give a folder or a hub name"
        )
    path = str(model["path"] or TINY_MODEL)
    if _is_local(path) and not any((Path(path) / name).is_file() for name in ("config.json", "adapter_config.json")):
        what = "has no config.json" if Path(path).is_dir() else "does not exist"
        yield f"model.path is {path}, a folder that {what}; give one with a saved model, or a hub name ORG/NAME"
    if config["evaluate"]["train"]:
        yield from _training_faults(model, path, has_deepspeed=bool(config["deepspeed"]["config"]))
        yield from part_faults(config)
    yield from quantization_faults(config, is_elsewhere=is_elsewhere)


def _training_faults(model: dict[str, Any], path: str, *, has_deepspeed: bool) -> Iterator[str]:
    if (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
        yield (
            f"model.path is {path}, an adapter, which can be judged but not trained on; merge it into its base first: "
            f"vrft export model.path={path} out=DIR"
        )
    if model["dtype"] == "bfloat16" and not has_deepspeed and not model["peft"]:
        yield (
            "model.dtype is bfloat16, in which AdamW's small steps round to nothing; choose deepspeed=zero2 or zero3 "
            "(they keep float32 master weights), model/peft=lora, or model.dtype=float32"
        )


def _is_local(path: str) -> bool:
    """True unless the path can only be a hub name: one slash, and nothing of that name lies here."""
    return path.count("/") != 1 or path.startswith((".", "/", "~")) or Path(path.partition("/")[0]).exists()


def judging_faults(config: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with task, reward and trust_code, and where they do not fit together."""
    from vrft.tasks import load_task, task_names  # scipy: not for --help
    from vrft.tasks.reward import RewardFunction, is_own

    reward, trusted = config["reward"], config["trust_code"]
    try:
        task = load_task(**config["task"], trust_code=trusted)
    except (UserError, TypeError) as error:
        yield str(error)
        return
    known = {term for name in task_names() for term in load_task(name).term_names} | set(task.term_names)
    for_tasks = reward.get("weights_for") or {}
    for key, weights in {"weights": reward["weights"], **{f"weights_for.{t}": w for t, w in for_tasks.items()}}.items():
        for term, weight in weights.items():
            if term not in known and not is_own(term):
                yield f"reward.{key} has {term!r}; {suggestion(term, known)}known terms: {', '.join(sorted(known))}"
            elif not fits(weight, float) or not 0 <= weight < math.inf:
                yield f"reward.{key}.{term} is {weight!r}; a number from 0 is needed"
    named = {*task_names(), *getattr(task, "tasks", {task.name: task})}
    for name in set(for_tasks) - named:
        yield f"reward.weights_for has {name!r}; {suggestion(name, named)}known tasks: {', '.join(sorted(named))}"
    for one in getattr(task, "tasks", {task.name: task}).values():
        if not _pays(reward, one):
            yield (
                f"reward={reward['name']} pays nothing for the answers of task={one.name}; its weights are "
                f"{reward['weights']}, the task's terms are {', '.join(one.term_names)}; rewards that fit: "
                f"{_fitting('reward', functools.partial(_pays, task=one))}"
            )
    try:
        RewardFunction(task, reward, trust_code=trusted)
    except (UserError, ValueError) as error:
        yield str(error)


def pair_faults(config: dict[str, Any]) -> Iterator[str]:
    """Yield what does not fit together: reward, protocol and trainer arguments with the task and the trainer."""
    from vrft.evaluate.protocols import ranking_faults
    from vrft.tasks import load_task

    yield from judging_faults(config)
    yield from ranking_faults(config["protocol"])
    if config["protocol"].get("asked") == "exist_map":
        yield "protocol=coco_exist_map needs a map of what is asked, so it judges files (vrft score); try coco_asked"
    try:
        task = load_task(**config["task"], trust_code=config["trust_code"])
    except (UserError, TypeError):
        return
    protocol, trainer = config["protocol"], config["trainer"]
    if protocol["scorer"] not in task.protocol_scorers:
        fits = _fitting("protocol", lambda other: other["scorer"] in task.protocol_scorers)
        yield (
            f"protocol={protocol['name']} (scorer {protocol['scorer']}) cannot judge task={task.name}; "
            f"protocols that fit: {fits}"
        )
    evaluate = config["evaluate"]
    if trainer["eval_steps"] is None and evaluate["train"] and evaluate["after"] and evaluate["checkpoint"] == "best":
        yield "evaluate.checkpoint is best, but trainer.eval_steps is null: choose evaluate.checkpoint=last"
    if trainer["name"] != "sft" and trainer.get("sft_thought"):
        yield f"trainer.sft_thought is {trainer['sft_thought']}, which only trainer=sft reads; leave it out"
    yield from _own_completion_faults(trainer)
    yield from argument_faults(trainer["name"], trainer["args"])
    yield from generation_faults(config)
    yield from _alarm_faults(config)
    yield from _other_faults(config)
    rollout, attention = config["rollout"], config["model"]["attention"]
    if rollout["name"] == "transformers" and rollout.get("sharing"):
        yield f"rollout.sharing is {rollout['sharing']}, which only rollout=shared_prefix reads; leave it out"
    if rollout["name"] == "shared_prefix" and not rollout.get("sharing"):
        yield "rollout.sharing is null: choose rollout=transformers for TRL's own path, or sharing=auto"
    if rollout.get("sharing") == "on" and attention == "eager":
        yield "rollout.sharing=on cannot be kept with model.attention=eager; choose model.attention=sdpa"
    if rollout.get("sharing") == "on" and config["memory"]["completions_per_device"] == 1:
        yield "rollout.sharing=on cannot be kept with memory.completions_per_device=1; let it be 2 or more, or null"
    if (named := "torch_autocast.lower_precision_safe_modules") in dict(flat(config["deepspeed"]["config"] or {})):
        yield f"deepspeed.config.{named} is set; DeepSpeed would import what it names, so leave it out"


def _own_completion_faults(trainer: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with `own_samples` and `own_at_least`, which go with sft_thought=own alone."""
    is_own, at_least = trainer.get("sft_thought") == "own", trainer.get("own_at_least")
    for key in ("own_samples", "own_at_least"):
        if is_own != (trainer.get(key) is not None):
            yield f"trainer.{key} is {trainer.get(key)}; a number goes with trainer.sft_thought=own, and null without"
    if at_least is not None and not 0 < at_least <= 1:
        yield f"trainer.own_at_least is {at_least}; a share above 0 and at most 1 is needed"


def _other_faults(config: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the other tasks that a run is judged on, each by its key."""
    others = config["evaluate"]["others"] or {}
    for name, other in others.items():
        faults = list(shape_faults(other, Other, f"evaluate.others.{name}"))
        yield from faults
        if not re.fullmatch(r"\w[\w.-]*", name):
            yield f"evaluate.others has {name!r}, which names a folder; letters, digits, dots and dashes are right"
        if not faults:
            checked = {**config, **other, "evaluate": {**config["evaluate"], "others": {}, "train": False}}
            yield from (f"evaluate.others.{name}: {fault}" for fault in pair_faults(checked))


def generation_faults(config: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a generation that serves several steps."""
    n_steps = config["trainer"]["args"].get("steps_per_generation")
    if not isinstance(n_steps, int) or not config["evaluate"]["train"]:
        return
    group, per_device = config["memory"]["num_generations"], batch_sizes(config)["per_device_train_batch_size"]
    at_once = per_device * n_processes(config) * n_steps
    if n_steps < 1 or at_once % group:
        yield (
            f"trainer.args.steps_per_generation={n_steps} samples {at_once} completions at once ({per_device} a device "
            f"and micro-batch, of {n_processes(config)} processes), no multiple of "
            f"memory.num_generations={group}"
        )


def _alarm_faults(config: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the rules of the alarms, each key by its name."""
    rules = config["alarms"]["rules"]
    faults = [fault for name, rule in rules.items() for fault in shape_faults(rule, AlarmRule, f"alarms.rules.{name}")]
    yield from faults
    if faults:
        return
    actions = {f"alarms.rules.{name}.action": rule["action"] for name, rule in rules.items()}
    actions["alarms.non_finite"] = config["alarms"]["non_finite"]
    for name, rule in rules.items():
        if rule["action"] != "off" and rule.get("above") is None and rule.get("below") is None:
            yield f"alarms.rules.{name} has neither above nor below; give it a limit, or action=off"
    for key, action in actions.items():
        if action == "stop_keep_best" and config["trainer"]["eval_steps"] is None:
            yield f"{key} is stop_keep_best, but trainer.eval_steps is null, so no checkpoint is the best; choose stop"


def _pays(reward: dict[str, Any], task) -> bool:
    """True if the reward has a weight for a term that looks at the task's answers, not only at their form."""
    from vrft.tasks.reward import is_own, weights_for
    from vrft.tasks.reward_terms import RewardOptions

    looking = task.answer_terms(RewardOptions())
    weights = weights_for(task, reward)
    return any(fits(weights[name], float) and weights[name] > 0 for name in weights if name in looking or is_own(name))


def _fitting(group: str, is_fitting) -> str:
    """The files of a config group that fit, as `reward=strict, reward=…`."""
    files = sorted((config_folder() / group).glob("*.yaml"))
    return ", ".join(
        f"{group}={file.stem}" for file in files if is_fitting(yaml.safe_load(file.read_text(encoding="utf-8")))
    )


def _value(config: dict[str, Any], key: str) -> Any:
    section, name = key.split(".")
    return config.get(section, {}).get(name)
