"""Hydra, guarded: no config and no environment variable can make it, torch or Python run code. Its errors, reworded."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import vrft
from vrft.config.secrets import secret_keys
from vrft.config.section import flat
from vrft.config.trl_fields import trl_fields
from vrft.errors import CANNOT_RUN, UserError, raise_all, suggestion
from vrft.files import refuse_unfolding

_PLUGINS = (
    "hydra._internal.core_plugins.",
    "hydra_plugins.hydra_submitit_launcher.",
    "hydra_plugins.hydra_optuna_sweeper.",
)
_OF_A_LAUNCHER = re.compile(
    r"(LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|ACCELERATE_USE_(DEEPSPEED|FSDP)"
    r"|(TORCHELASTIC|PET|OMPI_COMM_WORLD|PMI|PMIX|MV2_COMM_WORLD)_\w+|MPI_LOCAL(RANKID|NRANKS)"
)
"""Variables of torchrun, `accelerate launch`, MPI and job managers, by which torch, accelerate and DeepSpeed count
processes."""
_SHELL = ("setup", "additional_parameters", "srun_args")  # of a cluster's launcher: lines and options of a script
_PACKAGES = ("pkg://hydra.conf", "hydra.conf", "pkg://hydra_plugins", "hydra_plugins")
_FOLDERS = {  # of what Hydra would write, with the values that the package's own files and Hydra have
    "output_subdir": (),
    "run.dir": (".",),
    "sweep.dir": ("${run.dir}", "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}"),
    "sweep.subdir": (".", "${hydra.job.num}"),
    "launcher.submitit_folder": ("${hydra.sweep.dir}/.submitit/%j",),
}
_TO_THE_TERMINAL = ("logging.StreamHandler", "ext://sys.stdout", "ext://sys.stderr")


@contextmanager
def careful_environment() -> Iterator[None]:
    """Within, the environment is safe for this process and its children; afterwards it is restored."""
    before = dict(os.environ)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises the error, instead of printing it, and we reword it
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    _forget_outer_job()
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # also where a library asks for a full pickle, as DeepSpeed does
    if Path(vrft.__file__).parents[1] != Path.cwd():  # a checkout that is not installed
        os.environ["PYTHONSAFEPATH"] = "1"  # or Python would import a json.py of the current folder
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _forget_outer_job() -> None:
    """Remove the ranks that another launcher has set: torch would wait for processes that nobody starts."""
    given = {name: os.environ.pop(name) for name in list(os.environ) if _OF_A_LAUNCHER.fullmatch(name)}
    if named := [
        f"{name}={value}" for name, value in given.items() if name.endswith("SIZE") and value not in ("", "1")
    ]:
        what = ", ".join(named)
        print(f"warning: {what} of another launcher is not used; launch=torchrun starts processes", file=sys.stderr)


@dataclass
class Composed:
    """What Hydra composed first. sweep_dir: the folder of the sweep, or None for a single run."""

    sweep_dir: str | None = None


@contextmanager
def careful_hydra(*, may_sweep: bool = True) -> Iterator[Composed]:
    """Within, Hydra checks every composed config before it acts: it runs no code, reads no environment variable and
    writes into no folder that a file names. may_sweep: False for a verb that runs once."""
    load, composed = ConfigLoaderImpl.load_configuration, Composed()
    Plugins.instance()  # which makes the two classes anew, apart from those of an import
    files, packages = (SourcesRegistry.instance().resolve(scheme) for scheme in ("file", "pkg"))
    load_file, open_package = files.load_config, packages.__init__

    def load_bounded(self, config_path) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        try:
            if path.is_file():
                refuse_unfolding(path.read_text(encoding="utf-8"))
            return load_file(self, config_path)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not plain YAML: {error}") from None
        except RecursionError:
            raise UserError(f"{path} is nested too deeply to be read") from None

    def open_known(self, provider, path) -> None:
        if not path.startswith(_PACKAGES):
            raise UserError(f"hydra.searchpath has {path}, which would import a package; give a folder: file://FOLDER")
        open_package(self, provider, path)

    def load_checked(self, config_name, overrides, *args, **kwargs) -> DictConfig:
        try:
            config = load(self, config_name, overrides, *args, **kwargs)
        except KeyError as error:
            raise UserError(
                f"hydra.job.env_copy names {error}, which is not in the environment; a config does not read it, so "
                "leave that out"
            ) from None
        faults = [
            *_secret_faults(config, overrides),
            *_hydra_faults(config.hydra),
            *_folder_faults(config.hydra, overrides),
            *_script_faults(config.hydra, overrides),
            *_setup_faults(config, overrides),
        ]
        raise_all(faults, heading=CANNOT_RUN)
        if config.hydra.mode == RunMode.MULTIRUN and not may_sweep:
            raise UserError("hydra.mode is MULTIRUN, but this verb runs once; leave it out")
        if config.hydra.mode == RunMode.MULTIRUN:  # one folder for all children
            composed.sweep_dir = config.hydra.sweep.dir = composed.sweep_dir or config.hydra.sweep.dir
        return config

    ConfigLoaderImpl.load_configuration = load_checked
    files.load_config, packages.__init__ = load_bounded, open_known
    OmegaConf.register_new_resolver("oc.env", _refuse_environment, replace=True)
    try:
        yield composed
    finally:
        ConfigLoaderImpl.load_configuration = load
        files.load_config, packages.__init__ = load_file, open_package


def _refuse_environment(name: str, default: str = "") -> str:
    raise UserError(f"${{oc.env:{name}}} reads the environment, where secrets live; write the value itself")


def _secret_faults(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Yield each key whose value looks like a secret: configs are saved in run directories, sweep folders and W&B."""
    said = {key.lstrip("+~"): value for key, _, value in (override.partition("=") for override in overrides)}
    values = OmegaConf.to_container(config, resolve=False)
    found = dict.fromkeys([*secret_keys(said, os.environ), *secret_keys(values, os.environ)])
    for key in (key for key in found if not key.startswith(("hydra.overrides.", "hydra.runtime.", "hydra.job."))):
        yield (
            f"{key} holds what looks like a secret, and a config is saved to disk; leave it out and log in instead "
            "(`hf auth login`, `wandb login`), or give it in the environment (HF_TOKEN, WANDB_API_KEY)"
        )


def _hydra_faults(settings: DictConfig) -> Iterator[str]:
    """Yield what in Hydra's own section would run code, or set environment variables.

    Hydra would import and call it before the config is checked, and its own list of forbidden targets lacks
    `torch.load`. Allowed are the launchers and sweepers of Hydra, submitit and Optuna, with any of Optuna's samplers.
    """
    for section in ("launcher", "sweeper"):
        for key, target in _targets(OmegaConf.to_container(settings, resolve=False).get(section), section):
            is_sampler = re.fullmatch(r"optuna\.samplers\.[A-Z]\w*", str(target)) is not None
            if not (str(target).startswith(_PLUGINS) if key == section else is_sampler):
                yield f"hydra.{key}._target_ is {target!r}, which is not allowed: a config calls no code by its name"
    for key in ("callbacks", "job.env_set", "sweeper.custom_search_space"):
        if OmegaConf.select(settings, key):
            yield f"hydra.{key} is set; it could run code, so leave it out"
    for section in ("hydra_logging", "job_logging"):
        logged = OmegaConf.to_container(settings, resolve=False).get(section) or {}
        for key, value in flat(logged, f"{section}."):
            names_code = key.endswith((".()", ".class")) or any(mark in str(value) for mark in ("://", "${"))
            if names_code and value not in _TO_THE_TERMINAL:
                yield f"hydra.{key} is {value!r}; Hydra may only log to the terminal, so leave it out"


def _folder_faults(settings: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Yield each folder that a config file, not the command line, would have Hydra or a launcher write into."""
    said = {override.lstrip("+~").partition("=")[0] for override in overrides}
    values = dict(flat(OmegaConf.to_container(settings, resolve=False)))
    for key, usual in _FOLDERS.items():
        value = values.get(key)
        if value is not None and value not in usual and f"hydra.{key}" not in said:
            yield f"hydra.{key} is {value!r}, set in a file; vrft writes into run.dir alone, so leave it out"


def _script_faults(settings: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Yield what a config file, not the command line, would put into the script that a cluster's launcher submits."""
    if str(settings.launcher.get("_target_")).startswith(_PLUGINS[0]):
        return
    named = [override.lstrip("+").partition("=")[0] for override in overrides]
    for key in (f"hydra.launcher.{key}" for key in _SHELL if settings.launcher.get(key)):
        if not any(name == key or name.startswith(f"{key}.") for name in named):
            yield f"{key} is set in a file; it goes into a shell script, so give it on the command line"
    try:
        values = OmegaConf.to_container(settings.launcher, resolve=True)
    except OmegaConfBaseException as error:
        yield f"hydra.launcher cannot be resolved ({error})"
        return
    for key, value in flat(values, "hydra.launcher."):
        if "\n" in str(value) or "\r" in str(value):
            yield f"{key} is {value!r}; a line break would begin a line of a shell script"


def _setup_faults(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Yield where a config file, not the command line, has shell lines for `launch=slurm`."""
    is_said = any(override.lstrip("+").startswith(("launch.setup=", "launch.setup@")) for override in overrides)
    if OmegaConf.select(config, "launch.setup", throw_on_missing=False) and not is_said:
        yield "launch.setup is set in a file; its lines run in a shell, so give it on the command line"
    for key in config.hydra.sweeper.get("params") or {}:
        if str(key).lstrip("+~").startswith("launch.setup"):
            yield "hydra.sweeper.params has launch.setup; its lines run in a shell, so give it on the command line"


def _targets(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield each `_target_` within a value, also in lists, with its dotted key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in items:
        if name == "_target_":
            yield key, one
        yield from _targets(one, f"{key}.{name}")


RULE_KEYS = ("above", "below", "of", "while_rising")  # optional keys of an alarm rule


def composition_message(error: Exception) -> str:
    """The text of a composition error; for an unknown key also the known ones."""
    for cause in _causes(error):
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file and cause.options:
            return _unknown_choice(cause.missing_cfg_file, cause.options)
        if (
            isinstance(cause, OmegaConfBaseException)
            and isinstance(cause.parent_node, DictConfig)
            and cause.key is not None
        ):
            return _unknown_key(str(cause.full_key), str(cause.key), cause.parent_node) or _text(error)
    if absent := re.match(r"Could not override '(\S+)'\.\s*No match in the defaults list", _text(error)):
        return f"this verb has no group and no key {absent[1]!r}; --help lists what it has"
    return _text(error)


def _text(error: Exception) -> str:
    """The error's text without Hydra's search path."""
    return str(error).partition("\nConfig search path:")[0].strip()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _unknown_choice(missing: str, options: Sequence[str]) -> str:
    """What to type in place of a choice, `GROUP/NAME`, that has no file."""
    group, _, name = missing.partition("/")
    if group == "model" and not name.startswith("peft/"):
        hint = f"; a folder or a hub name goes in model.path={name}"
    else:
        group, _, name = missing.rpartition("/")
        hint = ""
    near = suggestion(name, options)
    return f"there is no {missing}.yaml, so no {group}={name}; {near}known: {', '.join(options)}{hint}"


def _elsewhere(key: str, parent: DictConfig) -> list[str]:
    """The dotted keys of the whole config that end in this key, if they are few."""
    values = OmegaConf.to_container(parent._get_root(), resolve=False)
    values.pop("hydra", None)
    found = [name for name, _ in flat(values) if name.rpartition(".")[2] == key]
    return found if len(found) <= 2 else []


def _unknown_key(full_key: str, key: str, parent: DictConfig) -> str | None:
    known = [str(name) for name in parent if name != "hydra"]
    if key in known:
        return None
    if full_key.startswith("trainer.args."):
        trainer = parent._get_root().trainer.name
        if key in trl_fields(trainer):
            return f"{full_key} is not in the file; add it with a plus: +{full_key}=…"
        return (
            f"no field {key!r} in TRL's config; {suggestion(key, trl_fields(trainer))}in the file: {', '.join(known)}"
        )
    place = full_key.rpartition(".")[0] or "the config"
    if place in ("launch.extra", "dataset.columns") or (place.startswith("alarms.rules.") and key in RULE_KEYS):
        return f"{full_key} is not in the file; add it with a plus: +{full_key}=…"
    if elsewhere := _elsewhere(key, parent):
        here = f" known here: {', '.join(known)}" if "." in full_key else ""
        return f"{place} has no key {key!r}; did you mean {' or '.join(elsewhere)}?{here}"
    if place == "alarms.rules":
        rule = "{metric: …, above: …, action: warn, hint: …}"
        return f"no alarm {key!r}; {suggestion(key, known)}known: {', '.join(known)}; a new one: '+{full_key}={rule}'"
    return f"{place} has no key {key!r}; {suggestion(key, known)}known: {', '.join(known)}"
