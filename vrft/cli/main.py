"""The command line: `vrft VERB [overrides]`, each verb a Hydra app whose primary config is `conf/VERB.yaml`.

A verb's work lies in the module of its name, whose `run` takes the frozen config and returns an exit code or None. That
module is imported once the config has passed all checks: most of them import torch.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
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

import vrft
from vrft.config.freeze import freeze, freeze_plain, plain
from vrft.config.hydra import careful_environment, careful_hydra, composition_message
from vrft.config.package_files import config_folder
from vrft.errors import ExitCode, UserError, suggestion

_ONLY_IN_SWEEPS = re.compile(r"\+*~?hydra\.(launcher|sweeper|sweep)\b")


@dataclass(frozen=True)
class Verb:
    """One line of what it does, and one example.

    schema: in `vrft.config.verb_schema`, what its config may hold; None where that describes a run. options: of
    `freeze`, where it does. is_swept: True if `-m` may run it many times.
    """

    summary: str
    example: str
    schema: str | None = None
    options: Mapping[str, bool] = field(default_factory=dict)
    is_swept: bool = False


VERBS = {
    "build": Verb(
        "annotations in, checked rows out", "vrft build dataset=coco dataset.path=GT.json out=rows/coco", "BuildConfig"
    ),
    "check": Verb(
        "look at an experiment's rows before it runs",
        "vrft check experiment=digits_riddles",
        options={"is_look": True},
    ),
    "probe": Verb("what the model earns before it is trained", "vrft probe experiment=digits_riddles"),
    "plan": Verb(
        "what it takes of a GPU's memory, and what makes it fit",
        "vrft plan experiment=virft_coco plan.gpu=a100_80gb",
        options={"is_elsewhere": True},
    ),
    "train": Verb(
        "one whole experiment: evaluate, train, evaluate, report",
        "vrft train experiment=digits_riddles",
        is_swept=True,
    ),
    "evaluate": Verb(
        "judge a model or a checkpoint", "vrft evaluate model.path=runs/NAME/checkpoints/best", is_swept=True
    ),
    "predict": Verb("ask about one image", "vrft predict predict.image=scene.png predict.ask='two plus three'"),
    "judge": Verb(
        "what completions earn", "vrft judge task=detection cases=completions.jsonl out=verdicts.jsonl", "JudgeConfig"
    ),
    "audit": Verb("can the reward be gamed?", "vrft audit task=detection reward=strict", "AuditConfig"),
    "score": Verb(
        "figures of any predictions", "vrft score annotations=GT.json detections=DT.json out=scores.json", "ScoreConfig"
    ),
    "export": Verb(
        "a checkpoint as one folder, adapter merged",
        "vrft export model.path=runs/X/checkpoints/best out=DIR",
        "ExportConfig",
    ),
    "report": Verb("write report.html again", "vrft report runs=runs/NAME", "ReportConfig"),
}


class SweepFiles(SearchPathPlugin):
    """Lets `sweep=NAME` find `sweeps/sweep/NAME.yaml`."""

    def manipulate_search_path(self, search_path) -> None:
        search_path.append("vrft", f"file://{config_folder('sweeps')}")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if an audit found a way to cheat, a probe an obstacle or a plan
    too little memory, 2 for a user's mistake, 130 after Ctrl-C, else the worker's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else ExitCode.USER_ERROR
    if arguments[0] == "--version":
        print(f"vrft {vrft.__version__}")
        return 0
    verb, *overrides = arguments
    if verb not in VERBS:
        print(f"vrft: no verb {verb!r}; {suggestion(verb, VERBS)}known: {', '.join(VERBS)}", file=sys.stderr)
        return ExitCode.USER_ERROR
    if "--help" in overrides or "-h" in overrides:
        print(verb_help(verb))
        return 0
    return run_verb(verb, overrides)


def run_verb(verb: str, overrides: list[str]) -> int:
    """Compose the verb's config with Hydra and do its job; every mistake becomes a message on stderr."""
    if rerun := next((override for override in overrides if override.startswith("--e")), None):
        print(f"vrft {verb}: {rerun}: a pickle, which could run code, is never loaded", file=sys.stderr)
        return ExitCode.USER_ERROR
    if not VERBS[verb].is_swept and {"-m", "--multirun"} & set(overrides):
        swept = " and ".join(name for name, known in VERBS.items() if known.is_swept)
        print(f"vrft {verb}: -m is for {swept}; this verb runs once, so leave it out", file=sys.stderr)
        return ExitCode.USER_ERROR
    sys.argv = [f"vrft {verb}", *overrides]
    asked, started = os.environ.get("HYDRA_FULL_ERROR"), time.time()
    if SweepFiles not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(SweepFiles)

    children: list[str] = []  # of a sweep

    def job(config: DictConfig) -> float | None:
        """Hydra would print its overrides before a mistake or a full disk, so these end the process here."""
        try:
            return _run(verb, config, children)
        except (UserError, OSError) as error:
            print(f"{sys.argv[0]}: {error}", file=sys.stderr)
            raise SystemExit(ExitCode.USER_ERROR) from None

    app = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=verb)(job)
    try:
        with careful_environment(), careful_hydra() as composed:
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
    """Freeze the composed config and run the verb; in a sweep a child, whose figure comes back for a search.

    children: the names of those that this call has run; a child is appended.
    """
    settings = HydraConfig.get()
    _refuse_unused_sweep(settings)
    overrides, choices = list(settings.overrides.task), dict(settings.runtime.choices)
    if settings.mode == RunMode.MULTIRUN:
        return _run_child(config, settings, overrides=overrides, choices=choices, children=children)
    frozen = _frozen(verb, config, overrides)
    warnings.filterwarnings("ignore", category=FutureWarning)  # renames inside transformers: nobody here can act
    record = {"choices": choices, "overrides": overrides} if VERBS[verb].is_swept else {}
    code = importlib.import_module(f"vrft.cli.{verb}").run(frozen, **record)
    if code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)
    return None


def _frozen(verb: str, config: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """The config as plain values, checked as the verb needs it."""
    known = VERBS[verb]
    if known.schema:
        return freeze_plain(config, getattr(importlib.import_module("vrft.config.verb_schema"), known.schema))
    from vrft.run.processes import find_device
    from vrft.run.slurm import device_of_job

    device = (device_of_job(config.launch) if known.is_swept else None) or find_device()
    return freeze(config, device=device, overrides=overrides, **known.options)


def _run_child(
    config: DictConfig, settings: DictConfig, *, overrides: list[str], choices: dict[str, Any], children: list[str]
) -> float:
    """A child of a sweep; its config is frozen in the child's own process."""
    from vrft.run.sweep import run_child

    if config.launch.get("name") == "torchrun" and config.launch.get("nnodes", 1) > 1:
        raise UserError("a sweep cannot run on several machines that torchrun joins; choose launch=slurm")
    if not (config.launch.get("wait", True) or settings.sweeper["_target_"].endswith(".BasicSweeper")):
        raise UserError("a search needs each job's figure before the next; leave out launch.wait=false")
    sweep_dir = Path(settings.sweep.dir)
    return run_child(plain(config), sweep_dir=sweep_dir, choices=choices, overrides=overrides, names=children)


def _refuse_unused_sweep(settings: DictConfig) -> None:
    """Raise `UserError` if a sweep, sweeper or launcher was chosen without -m: Hydra would ignore it in silence."""
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


def overview() -> str:
    """The text of `vrft --help`."""
    lines = ["vrft: visual reinforcement fine-tuning of vision-language models.", ""]
    lines += ["usage: vrft VERB [GROUP=NAME] [KEY=VALUE] …", ""]
    for name, verb in VERBS.items():
        lines += [f"  {name:9} {verb.summary}", f"            {verb.example}"]
    return "\n".join([*lines, "", "vrft VERB --help lists what the verb's config offers."])


def verb_help(verb: str) -> str:
    """The verb's help text with the groups filled in (Hydra's own listing copies the config once a group: 1.5 s)."""
    text = yaml.safe_load((config_folder() / f"{verb}.yaml").read_text(encoding="utf-8"))["hydra"]["help"]["template"]
    listing = "".join(f"  {group}: {', '.join(names)}\n" for group, names in groups().items())
    return text.replace("$APP_CONFIG_GROUPS", listing)


def groups() -> dict[str, list[str]]:
    """The names that each config group offers."""
    found: dict[str, list[str]] = {}
    for top in (config_folder(), config_folder("sweeps")):
        for path in sorted(top.rglob("*.yaml")):
            if path.parent != top:
                found.setdefault(path.parent.relative_to(top).as_posix(), []).append(path.stem)
    return dict(sorted(found.items()))
