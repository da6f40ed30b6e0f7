"""From a composed config to a frozen one: checked in full, batch sizes derived, plain values only."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vrft.errors import UserError, raise_all
from vrft.schema import Config, fits, shape_faults, suggestion
from vrft.trl_fields import argument_faults

PACKAGE = Path(__file__).parent
TINY_MODEL = PACKAGE / "tiny_qwen2_vl"
_HEADING = "The config cannot run:"
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
    "launch.threads": 1,
    "protocol.n_resamples": 1,
    "protocol.n_samples": 1,
    "rollout.top_k": 0,
    "run.seed": 0,
}
_ABOVE_ZERO = (
    "trainer.learning_rate",
    "trainer.epochs",
    "rollout.temperature",
    "rollout.top_p",
    "protocol.temperature",
)
_NOT_HASHED = ("run.dir", "run.name", "run.resume", "launch.threads", "dataset.n_processes", "logging", "derived")


def config_folder(name: str = "conf") -> Path:
    """The folder `conf` or `sweeps`: beside the package's modules in a wheel, else at the top of the repository."""
    beside = PACKAGE / name
    return beside if beside.is_dir() else PACKAGE.parent / name


def freeze(
    composed: DictConfig, *, device: str = "cpu", overrides: Sequence[str] = (), is_look: bool = False
) -> dict[str, Any]:
    """The config as plain values, with the section `derived` that the worker needs; `composed` is left alone.

    device: what `launch.device=auto` becomes. overrides: the user's own words; where nothing is trained, a checkpoint's
    card (`vrft.json`) sets what they do not. is_look: True where nothing will be trained, whatever the config says, so
    that what only a training needs may be missing. Raises `UserError` that lists all faults found.
    """
    config = plain(composed)
    raise_all(list(shape_faults(config, Config)), heading=_HEADING)
    if not config["evaluate"]["train"] or "predict" in config:
        from vrft.checkpoint_card import with_card

        config = with_card(config, overrides)
    looked_at = {**config, "evaluate": {**config["evaluate"], "train": False}} if is_look else config
    pair_faults = (
        [] if "predict" in config else _pair_faults(looked_at)
    )  # one's own image is neither rewarded nor scored
    raise_all([*_range_faults(looked_at), *_model_faults(looked_at), *pair_faults], heading=_HEADING)
    config["model"]["path"] = config["model"]["path"] or str(TINY_MODEL)
    chosen = config["launch"]["device"]
    config["derived"] = {"device": device if chosen == "auto" else chosen, **batch_sizes(config)}
    return config


def freeze_plain(composed: DictConfig, schema: type) -> dict[str, Any]:
    """The config of a verb that needs no model, as plain values. Raises `UserError` that lists all faults."""
    config = plain(composed)
    raise_all(list(shape_faults(config, schema)), heading=_HEADING)
    if "reward" in config:
        raise_all(list(judging_faults(config)), heading=_HEADING)
    return config


def plain(composed: DictConfig) -> dict[str, Any]:
    """The config as nested dicts with interpolations resolved. Raises `UserError` for values that are not given."""
    missing = sorted(OmegaConf.missing_keys(composed))
    raise_all([f"{key} must be given: {key}=…" for key in missing], heading="The config is not complete:")
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"The config cannot be resolved: {error}") from None
    if isinstance(weights := values.get("reward", {}).get("weights"), dict):
        values["reward"]["weights"] = dict(_dotted(weights))  # an override of a.b.term arrives nested
    if values.get("rollout", {}).get("sharing") is True:
        values["rollout"]["sharing"] = "on"  # YAML reads a bare on as true
    return values


def _dotted(nested: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def batch_sizes(config: dict[str, Any]) -> dict[str, int]:
    """The per-device batch and the accumulation that make one step of `prompts_per_step` prompts.

    TRL counts completions for GRPO and rows for SFT. The per-device batch is the largest that divides a process's share
    and does not exceed `memory.completions_per_device`. Raises `UserError` if processes cannot share a step evenly.
    """
    prompts, limit = config["trainer"]["prompts_per_step"], config["memory"]["completions_per_device"]
    group = config["memory"]["num_generations"] if config["trainer"]["name"] == "grpo" else 1
    n_processes = config["launch"]["nproc_per_node"]
    share, rest = divmod(prompts * group, n_processes)
    if rest:
        fitting = next(
            more for more in range(prompts + 1, prompts + n_processes + 1) if more * group % n_processes == 0
        )
        raise UserError(
            f"{_HEADING}\n  - one step is trainer.prompts_per_step × memory.num_generations = {prompts} × {group} = "
            f"{prompts * group} completions, which launch.nproc_per_node={n_processes} processes cannot share evenly; "
            f"trainer.prompts_per_step={fitting} would do"
        )
    per_device = max(size for size in range(1, min(share, limit or share) + 1) if share % size == 0)
    return {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": share // per_device}


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256, as a hex string, over everything in a frozen config that can change a result.

    Left out: where the run lies, its name, its logging, and on which path the shipped model is installed.
    """
    config = copy.deepcopy(config)
    for key in _NOT_HASHED:
        section, _, name = key.partition(".")
        (config.get(section, {}) if name else config).pop(name or section, None)
    if config["model"]["path"] == str(TINY_MODEL):
        config["model"]["path"] = None
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _range_faults(config: dict[str, Any]) -> Iterator[str]:
    for key, least in _AT_LEAST.items():
        value = _value(config, key)
        if value is not None and value < least:
            yield f"{key} is {value}; at least {least} is needed"
    for key in _ABOVE_ZERO:
        value = _value(config, key)
        if value is not None and not value > 0:
            yield f"{key} is {value}; it must be above 0"
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


def _model_faults(config: dict[str, Any]) -> Iterator[str]:
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


def _training_faults(model: dict[str, Any], path: str, *, has_deepspeed: bool) -> Iterator[str]:
    if (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
        yield f"model.path is {path}, an adapter, which can be judged but not trained on; merge it into its base first"
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
    from vrft.tasks.judge import Judge, is_own

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
        Judge(task, reward, trust_code=trusted)
    except (UserError, ValueError) as error:
        yield str(error)


def _pair_faults(config: dict[str, Any]) -> Iterator[str]:
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
    yield from argument_faults(trainer["name"], trainer["args"])
    rollout, attention = config["rollout"], config["model"]["attention"]
    if rollout["name"] == "transformers" and rollout.get("sharing"):
        yield f"rollout.sharing is {rollout['sharing']}, which only rollout=shared_prefix reads; leave it out"
    if rollout["name"] == "shared_prefix" and not rollout.get("sharing"):
        yield "rollout.sharing is null: choose rollout=transformers for TRL's own path, or sharing=auto"
    if rollout.get("sharing") == "on" and attention == "eager":
        yield "rollout.sharing=on cannot be kept with model.attention=eager; choose model.attention=sdpa"
    if rollout.get("sharing") == "on" and config["memory"]["completions_per_device"] == 1:
        yield "rollout.sharing=on cannot be kept with memory.completions_per_device=1; let it be 2 or more, or null"
    launch = config["launch"]
    if launch["name"] == "local" and launch["nproc_per_node"] > 1:
        yield f"launch=local starts one process; for launch.nproc_per_node={launch['nproc_per_node']} choose torchrun"


def _pays(reward: dict[str, Any], task) -> bool:
    """True if the reward has a weight for a term that looks at the task's answers, not only at their form."""
    from vrft.rewards import RewardOptions
    from vrft.tasks.judge import is_own, weights_for

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
    return config[section].get(name)
