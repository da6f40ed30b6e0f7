"""One verb as a Hydra app: composed, checked, frozen, then run by the module of its name.

That module is imported once the config has passed all checks: most of them import torch.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vrft.cli.verbs import VERBS, groups
from vrft.cli.words import careful_words
from vrft.config.freeze import freeze, freeze_plain, plain
from vrft.config.hydra import careful_environment, careful_hydra, composition_message
from vrft.config.package_files import config_folder
from vrft.config.paths import missing_paths
from vrft.config.section import Section
from vrft.errors import CANNOT_RUN, ExitCode, UserError, disk_errors_explained, raise_all
from vrft.memory.gpus import gpu_bytes

_ONLY_IN_SWEEPS = re.compile(r"\+*~?hydra\.((launcher|sweeper|sweep)\b|mode=MULTIRUN)")


class SweepFiles(SearchPathPlugin):
    """Lets `sweep=NAME` find `sweeps/sweep/NAME.yaml`."""

    def manipulate_search_path(self, search_path) -> None:
        search_path.append("vrft", f"file://{config_folder('sweeps')}")


def run_verb(verb: str, overrides: list[str]) -> int:
    """Compose the verb's config with Hydra and run the verb; every mistake becomes a message on stderr."""
    if not VERBS[verb].is_swept and {"-m", "--multirun"} & set(overrides):
        swept = " and ".join(name for name, known in VERBS.items() if known.is_swept)
        print(f"vrft {verb}: -m is for {swept}; this verb runs once, so leave it out", file=sys.stderr)
        return ExitCode.USER_ERROR
    try:
        sys.argv = [f"vrft {verb}", *careful_words(overrides, groups=groups())]
    except UserError as error:
        print(f"vrft {verb}: {error}", file=sys.stderr)
        return ExitCode.USER_ERROR
    asked, started = os.environ.get("HYDRA_FULL_ERROR"), time.time()
    if SweepFiles not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(SweepFiles)

    children: list[str] = []  # of a sweep

    def job(config: DictConfig) -> float | None:
        """The task function of Hydra, which would print all overrides above an error: so errors exit here."""
        try:
            with disk_errors_explained(then="give the same command again"):
                return _run(verb, config, children)
        except (UserError, OSError) as error:
            print(f"{sys.argv[0]}: {error}", file=sys.stderr)
            raise SystemExit(ExitCode.USER_ERROR) from None

    app = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=verb)(job)
    try:
        with careful_environment(), careful_hydra(may_sweep=VERBS[verb].is_swept) as composed:
            app()
        if composed.sweep_dir:
            from vrft.run.sweep import finish

            return finish(Path(composed.sweep_dir), names=children, since=started)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ExitCode.USER_ERROR * bool(end.code)
    except KeyboardInterrupt:
        print(f"vrft {verb}: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UserError) as error:
        if asked == "1":
            raise
        print(f"vrft {verb}: {composition_message(error)}", file=sys.stderr)
        return ExitCode.USER_ERROR
    return 0


def _run(verb: str, config: DictConfig, children: list[str]) -> float | None:
    """Freeze the composed config and run the verb. In a sweep run a child, and return its objective for a search.

    children: the names of those that this call has run; a child is appended.
    """
    settings = HydraConfig.get()
    _refuse_unused_sweep(settings)
    overrides, choices = list(settings.overrides.task), dict(settings.runtime.choices)
    if settings.mode == RunMode.MULTIRUN:
        return _run_child(config, settings, overrides=overrides, choices=choices, children=children)
    frozen = _frozen(verb, config, overrides)
    _refuse_early(verb, frozen)
    warnings.filterwarnings("ignore", category=FutureWarning)  # renames inside transformers: nobody here can act
    record = {"choices": choices, "overrides": overrides} if VERBS[verb].is_swept else {}
    code = importlib.import_module(f"vrft.cli.{verb}").run(frozen, **record)
    if code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)
    return None


def _frozen(verb: str, config: DictConfig, overrides: list[str]) -> Section:
    """The frozen config, checked as the verb needs it."""
    known = VERBS[verb]
    if known.schema:
        return freeze_plain(config, getattr(importlib.import_module("vrft.config.verb_schema"), known.schema))
    from vrft.run.processes import find_device
    from vrft.run.slurm import device_of_job

    device = (device_of_job(config.launch) if known.is_swept else None) or find_device()
    return freeze(config, device=device, overrides=overrides, verb=verb)


def _refuse_early(verb: str, config: Section) -> None:
    """Raise `UserError` for what can be seen before torch is imported, which takes seconds."""
    values = config.plain()
    if verb in ("plan", "predict"):  # which read no rows
        values.pop("dataset")
    if not (VERBS[verb].is_swept and config.run.resume):  # a run that resumes has its rows
        raise_all(list(missing_paths(values)), heading=CANNOT_RUN)
    if (gpu := getattr(getattr(config, "plan", None), "gpu", None)) is not None:
        gpu_bytes(gpu)


def _run_child(
    config: DictConfig, settings: DictConfig, *, overrides: list[str], choices: dict[str, Any], children: list[str]
) -> float:
    """Run a child of a sweep, in a process of its own, which also freezes its config."""
    from vrft.run.sweep import run_child

    if config.launch.get("name") == "torchrun" and config.launch.get("nnodes", 1) > 1:
        raise UserError("a sweep cannot run on several machines that torchrun joins; choose launch=slurm")
    if not (config.launch.get("wait", True) or settings.sweeper["_target_"].endswith(".BasicSweeper")):
        raise UserError("a search needs each job's result before the next; leave out launch.wait=false")
    sweep_dir = Path(settings.sweep.dir)
    return run_child(plain(config), sweep_dir=sweep_dir, choices=choices, overrides=overrides, names=children)


def _refuse_unused_sweep(settings: DictConfig) -> None:
    """Raise `UserError` if a sweep, sweeper or launcher was chosen without -m: Hydra would ignore it silently."""
    if settings.mode == RunMode.MULTIRUN:
        return
    usual = {"sweep": None, "hydra/sweeper": "basic", "hydra/launcher": "basic"}
    choices = settings.runtime.choices
    chosen = [f"{group}={choices[group]}" for group, name in usual.items() if choices.get(group) != name]
    chosen += [one for one in settings.overrides.hydra if _ONLY_IN_SWEEPS.match(one)]
    if chosen:
        is_swept = VERBS[sys.argv[0].rpartition(" ")[2]].is_swept
        meant = f"you meant: {sys.argv[0]} {shlex.join(['-m', *sys.argv[1:]])}" if is_swept else "leave it out"
        raise UserError(f"{', '.join(chosen)} {'acts' if len(chosen) == 1 else 'act'} only with -m; {meant}")
