"""What is wrong with a config whose types and ranges are right: each fault names its key and says what is right.

Types and ranges are in `schema`. Model, adapter and DeepSpeed stage are checked in `model_checks`, launches in
`launch_checks`, vLLM in `vllm_checks`; `freeze` collects all faults.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from vrft.config.batch_sizes import batch_sizes, uneven_share
from vrft.config.model_checks import part_faults, quantization_faults, type_faults, unshared_key
from vrft.config.package_files import TINY_MODEL, config_folder
from vrft.config.schema import Alarms, Config, DeepSpeed, Launch, Memory, Model, Reward, Trainer
from vrft.config.section import flat, with_values
from vrft.config.trl_fields import argument_faults
from vrft.errors import UserError, suggestion
from vrft.files import model_folder_fault


def contradictions(config: Config) -> Iterator[str]:
    """Yield numbers that contradict each other."""
    memory, trainer = config.memory, config.trainer
    if memory.min_pixels > memory.max_pixels:
        yield (
            f"memory.min_pixels={memory.min_pixels} exceeds memory.max_pixels={memory.max_pixels}; lower the one or "
            "raise the other"
        )
    if config.evaluate.train and trainer.name == "grpo" and memory.num_generations < 2:
        yield f"memory.num_generations is {memory.num_generations}; a group needs at least 2 completions to compare"
    if config.evaluate.train and (trainer.max_steps is None) == (trainer.epochs is None):
        yield (
            f"trainer.max_steps is {trainer.max_steps} and trainer.epochs is {trainer.epochs}; "
            "give one of them a value and the other null"
        )


def model_faults(model: Model, deepspeed: DeepSpeed, *, is_training: bool, is_remote: bool = False) -> Iterator[str]:
    """Yield what is wrong with the model, and with which of its weights are trained. is_remote: as in `freeze`."""
    from vrft.models.families import FAMILIES  # numpy: not for --help

    if model.family not in FAMILIES:
        yield f"model.family is {model.family!r}; known families: {', '.join(FAMILIES)}"
    if model.path is None and model.family != "tiny":
        yield (
            "model.path is null, which means the shipped tiny model, "
            f"but model.family is {model.family}; give a folder or a hub name"
        )
    path = str(model.path or TINY_MODEL)
    if fault := model_folder_fault(path):
        yield fault
    yield from type_faults(model, path)
    if is_training:
        yield from _training_faults(model, path, has_deepspeed=bool(deepspeed.config))
        yield from part_faults(model, deepspeed)
    yield from quantization_faults(model, deepspeed, is_training=is_training, is_remote=is_remote)


def _training_faults(model: Model, path: str, *, has_deepspeed: bool) -> Iterator[str]:
    if (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
        yield (
            f"model.path is {path}, an adapter, which can be judged but not trained on; merge it into its base first: "
            f"vrft export model.path={path} out=DIR"
        )
    if model.dtype == "bfloat16" and not has_deepspeed and not model.peft:
        yield (
            "model.dtype is bfloat16, in which AdamW's small steps round to nothing; choose deepspeed=zero2 or zero3 "
            "(they keep float32 master weights), model/peft=lora, or model.dtype=float32"
        )


def judging_faults(task_options: dict[str, Any], reward: Reward, trusted: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with task, reward and trust_code, and where they do not fit together."""
    from vrft.tasks import load_task, task_names  # scipy: not for --help
    from vrft.tasks.reward import RewardFunction, is_own

    try:
        task = load_task(**task_options, trust_code=trusted)
    except (UserError, TypeError) as error:
        yield str(error)
        return
    known = {term for name in task_names() for term in load_task(name).term_names} | set(task.term_names)
    for_tasks = reward.weights_for or {}
    for key, weights in {"weights": reward.weights, **{f"weights_for.{t}": w for t, w in for_tasks.items()}}.items():
        for term, weight in weights.items():
            if term not in known and not is_own(term):
                yield f"reward.{key} has {term!r}; {suggestion(term, known)}known terms: {', '.join(sorted(known))}"
            elif not _is_weight(weight):
                yield f"reward.{key}.{term} is {weight!r}; a number from 0 is needed"
    named = {*task_names(), *getattr(task, "tasks", {task.name: task})}
    for name in set(for_tasks) - named:
        yield f"reward.weights_for has {name!r}; {suggestion(name, named)}known tasks: {', '.join(sorted(named))}"
    plain = reward.plain()
    for one in getattr(task, "tasks", {task.name: task}).values():
        if not _pays(plain, one):
            yield (
                f"reward={reward.name} pays nothing for the answers of task={one.name}; its weights are "
                f"{reward.weights}, the task's terms are {', '.join(one.term_names)}; rewards that fit: "
                f"{_fitting('reward', functools.partial(_pays, task=one))}"
            )
    try:
        RewardFunction(task, plain, trust_code=trusted)
    except (UserError, ValueError) as error:
        yield str(error)


def pair_faults(config: Config) -> Iterator[str]:
    """Yield what does not fit together: reward, protocol and trainer arguments with the task and the trainer."""
    from vrft.evaluate.protocols import ranking_faults  # scipy: not for --help
    from vrft.tasks import load_task

    protocol, trainer, evaluate = config.protocol, config.trainer, config.evaluate
    yield from judging_faults(config.task, config.reward, config.trust_code)
    yield from ranking_faults(protocol.plain())
    if protocol.asked == "exist_map":
        yield "protocol=coco_exist_map needs a map of what is asked, so it judges files (vrft score); try coco_asked"
    try:
        task = load_task(**config.task, trust_code=config.trust_code)
    except (UserError, TypeError):
        return
    if protocol.scorer not in task.protocol_scorers:
        is_offered = functools.partial(_is_offered, task=task, builder=config.dataset.get("builder"))
        fits = _fitting("protocol", is_offered, first=functools.partial(_rank, task=task))
        yield (
            f"protocol={protocol.name} (scorer {protocol.scorer}) cannot judge task={task.name}; "
            f"protocols that fit: {fits}"
        )
    if trainer.eval_steps is None and evaluate.train and evaluate.after and evaluate.checkpoint == "best":
        yield "evaluate.checkpoint is best, but trainer.eval_steps is null: choose evaluate.checkpoint=last"
    if trainer.name != "sft" and trainer.sft_thought:
        yield f"trainer.sft_thought is {trainer.sft_thought}, which only trainer=sft reads; leave it out"
    yield from _own_sample_faults(trainer)
    yield from argument_faults(trainer.name, trainer.args)
    if evaluate.train:
        yield from generation_faults(trainer, config.memory, config.launch)
        yield from _alarm_faults(config.alarms, trainer)
    yield from _other_faults(config)
    yield from _sharing_faults(config)
    if (named := "torch_autocast.lower_precision_safe_modules") in dict(flat(config.deepspeed.config or {})):
        yield f"deepspeed.config.{named} is set; DeepSpeed would import what it names, so leave it out"


def _sharing_faults(config: Config) -> Iterator[str]:
    """Yield why prompts cannot be shared as `rollout.sharing` asks."""
    rollout = config.rollout
    if rollout.name == "transformers" and rollout.sharing:
        yield f"rollout.sharing is {rollout.sharing}, which only rollout=shared_prefix reads; leave it out"
    if rollout.name == "shared_prefix" and not rollout.sharing:
        yield "rollout.sharing is null: choose rollout=transformers for TRL's own path, or sharing=auto"
    if rollout.sharing == "on" and config.model.attention == "eager":
        yield "rollout.sharing=on is incompatible with model.attention=eager; choose model.attention=sdpa"
    if rollout.sharing == "on" and (key := unshared_key(config.model, config.trainer)):
        yield f"rollout.sharing=on is incompatible with {key}; leave it out, or choose rollout.sharing=auto"
    if rollout.sharing == "on" and config.memory.completions_per_device == 1:
        yield "rollout.sharing=on is incompatible with memory.completions_per_device=1; let it be 2 or more, or null"


def _own_sample_faults(trainer: Trainer) -> Iterator[str]:
    """Yield what is wrong with `own_samples` and `own_at_least`, which go with sft_thought=own alone."""
    is_own, at_least = trainer.sft_thought == "own", trainer.own_at_least
    for key in ("own_samples", "own_at_least"):
        if is_own != (getattr(trainer, key) is not None):
            yield (
                f"trainer.{key} is {getattr(trainer, key)}; a number goes with trainer.sft_thought=own, and null "
                "without"
            )
    if at_least is not None and not 0 < at_least <= 1:
        yield f"trainer.own_at_least is {at_least}; a share above 0 and at most 1 is needed"


def _other_faults(config: Config) -> Iterator[str]:
    """Yield what is wrong with the other tasks that a run is judged on, each by its key."""
    for name, other in (config.evaluate.others or {}).items():
        if not re.fullmatch(r"\w[\w.-]*", name):
            yield f"evaluate.others has {name!r}, which names a folder; letters, digits, dots and dashes are right"
        alone = with_values(config, {"evaluate.others": None, "evaluate.train": False})
        alone = alone.model_copy(update={key: getattr(other, key) for key in type(other).model_fields})
        yield from (f"evaluate.others.{name}: {fault}" for fault in pair_faults(alone))


def generation_faults(trainer: Trainer, memory: Memory, launch: Launch) -> Iterator[str]:
    """Yield what is wrong with a generation that serves several steps."""
    n_steps = trainer.args.get("steps_per_generation")
    if not isinstance(n_steps, int) or uneven_share(trainer, memory, launch):
        return
    per_device = batch_sizes(trainer, memory, launch)["per_device_train_batch_size"]
    group, at_once = memory.num_generations, per_device * launch.n_processes * n_steps
    if n_steps < 1 or at_once % group:
        yield (
            f"trainer.args.steps_per_generation={n_steps} samples {at_once} completions at once ({per_device} a device "
            f"and micro-batch, of {launch.n_processes} processes), no multiple of "
            f"memory.num_generations={group}"
        )


def _alarm_faults(alarms: Alarms, trainer: Trainer) -> Iterator[str]:
    """Yield what is wrong with the rules of the alarms, each key by its name."""
    actions = {f"alarms.rules.{name}.action": rule.action for name, rule in alarms.rules.items()}
    actions["alarms.non_finite"] = alarms.non_finite
    for name, rule in alarms.rules.items():
        if rule.action != "off" and rule.above is None and rule.below is None:
            yield f"alarms.rules.{name} has neither above nor below; give it a limit, or action=off"
    for key, action in actions.items():
        if action == "stop_keep_best" and trainer.eval_steps is None:
            yield f"{key} is stop_keep_best, but trainer.eval_steps is null, so no checkpoint is the best; choose stop"


def _pays(reward: dict[str, Any], task) -> bool:
    """True if the reward has a weight for a term that looks at the task's answers, not only at their form."""
    from vrft.tasks.reward import is_own, weights_for  # scipy: not for --help
    from vrft.tasks.reward_terms import RewardOptions

    looking = task.answer_terms(RewardOptions())
    weights = weights_for(task, reward)
    return any(_is_weight(weight) and weight > 0 for name, weight in weights.items() if name in looking or is_own(name))


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_offered(protocol: dict[str, Any], task, builder: str | None) -> bool:
    """True if the protocol can judge a run of the task on rows of that builder, and is not named after another task."""
    scorer, is_general = protocol["scorer"], protocol["name"] in ("rows", task.name)
    return (
        scorer in task.protocol_scorers
        and protocol.get("asked") != "exist_map"
        and (scorer != "masks" or builder == "reasonseg")
        and (scorer != "rows" or is_general)
    )


def _rank(protocol: dict[str, Any], task) -> tuple[int, bool]:
    """The task's own scorers come first, and of COCO's figures those that need no more questions than the rows ask."""
    return task.protocol_scorers.index(protocol["scorer"]), protocol.get("asked") != "rows"


def _fitting(group: str, is_fitting, *, first=lambda _: 0) -> str:
    """The files of a config group that fit, as `reward=strict, reward=…`. first: a sort key of their values."""
    files = sorted((config_folder() / group).glob("*.yaml"))
    values = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    fits = sorted((name for name in values if is_fitting(values[name])), key=lambda name: first(values[name]))
    return ", ".join(f"{group}={name}" for name in fits)
