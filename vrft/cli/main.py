"""The command line: `vrft VERB [overrides]`, each verb a Hydra app whose primary config is `conf/VERB.yaml`."""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

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
from vrft.cli.verbs import VERBS, overview, verb_help
from vrft.config.freeze import freeze, freeze_plain, plain
from vrft.config.hydra import careful_environment, careful_hydra, composition_message, suggestion
from vrft.config.package_files import config_folder
from vrft.config.schema import BuildConfig
from vrft.errors import USER_ERROR, UserError

GAMED, NOT_READY, TOO_LARGE, INTERRUPTED = 1, 1, 1, 130
SWEPT = ("train", "evaluate")  # verbs that -m runs many times
_ONLY_IN_SWEEPS = re.compile(r"\+*~?hydra\.(launcher|sweeper|sweep)\b")


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
        return 0 if arguments else USER_ERROR
    if arguments[0] == "--version":
        print(f"vrft {vrft.__version__}")
        return 0
    verb, *overrides = arguments
    if verb not in VERBS:
        print(f"vrft: no verb {verb!r}; {suggestion(verb, VERBS)}known: {', '.join(VERBS)}", file=sys.stderr)
        return USER_ERROR
    if "--help" in overrides or "-h" in overrides:
        print(verb_help(verb))
        return 0
    return run_verb(verb, overrides)


def run_verb(verb: str, overrides: list[str]) -> int:
    """Compose the verb's config with Hydra and do its job; every mistake becomes a message on stderr."""
    if rerun := next((override for override in overrides if override.startswith("--e")), None):
        print(f"vrft {verb}: {rerun}: a pickle, which could run code, is never loaded", file=sys.stderr)
        return USER_ERROR
    if verb not in SWEPT and {"-m", "--multirun"} & set(overrides):
        print(f"vrft {verb}: -m is for {' and '.join(SWEPT)}; this verb runs once, so leave it out", file=sys.stderr)
        return USER_ERROR
    sys.argv = [f"vrft {verb}", *overrides]
    asked, started = os.environ.get("HYDRA_FULL_ERROR"), time.time()
    if SweepFiles not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(SweepFiles)
    app = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=verb)(_JOBS[verb])
    try:
        with careful_environment(), careful_hydra() as composed:
            app()
        if composed.sweep_dir:
            from vrft.run.sweep import finish

            return finish(Path(composed.sweep_dir), since=started)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else USER_ERROR * bool(end.code)
    except KeyboardInterrupt:
        print(f"vrft {verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UserError) as error:
        if asked == "1":
            raise
        print(f"vrft {verb}: {composition_message(error)}", file=sys.stderr)
        return USER_ERROR
    return 0


def _in_users_words(job: Callable[[DictConfig], float | None]) -> Callable[[DictConfig], float | None]:
    """The job, with a user's mistake or a full disk as a message and an exit; Hydra would print its overrides first."""

    @functools.wraps(job)
    def worded(config: DictConfig) -> float | None:
        try:
            _refuse_unused_sweep(HydraConfig.get())
            return job(config)
        except (UserError, OSError) as error:
            print(f"{sys.argv[0]}: {error}", file=sys.stderr)
            raise SystemExit(USER_ERROR) from None

    return worded


@_in_users_words
def _experiment_job(config: DictConfig) -> float | None:
    from vrft.run.experiment import run_experiment
    from vrft.run.processes import find_device
    from vrft.run.slurm import device_of_job
    from vrft.run.sweep import run_child

    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    if settings.mode == RunMode.MULTIRUN:
        if config.launch.get("name") == "torchrun" and config.launch.get("nnodes", 1) > 1:
            raise UserError("a sweep cannot run on several machines that torchrun joins; choose launch=slurm")
        if not (config.launch.get("wait", True) or settings.sweeper["_target_"].endswith(".BasicSweeper")):
            raise UserError("a search needs each job's figure before the next; leave out launch.wait=false")
        return run_child(
            plain(config),
            sweep_dir=Path(settings.sweep.dir),
            choices=dict(settings.runtime.choices),
            overrides=overrides,
        )
    frozen = freeze(config, device=device_of_job(config.launch) or find_device(), overrides=overrides)
    if frozen["launch"].get("nnodes", 1) > 1 and frozen["launch"]["name"] == "torchrun":
        _need_one_run_dir(overrides)
    code = run_experiment(frozen, choices=dict(settings.runtime.choices), overrides=overrides)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)
    return None


@_in_users_words
def _predict_job(config: DictConfig) -> None:
    from vrft.run.processes import find_device

    frozen = freeze(config, device=find_device(), overrides=list(HydraConfig.get().overrides.task))
    warnings.filterwarnings("ignore", category=FutureWarning)  # renames inside transformers: nobody here can act
    from vrft.cli.predict import predict  # torch: after the checks

    predict(frozen)


@_in_users_words
def _report_job(config: DictConfig) -> None:
    from vrft.report.write import write_reports

    values = plain(config)
    runs = [values["runs"]] if isinstance(values["runs"], str) else values["runs"]
    if not runs:
        raise UserError("runs is empty; name the directories of finished runs: runs=[runs/A,runs/B]")
    write_reports([Path(folder) for folder in runs], out_dir=values["out"] and Path(values["out"]))


@_in_users_words
def _build_job(config: DictConfig) -> None:
    from vrft.cli.build import build

    build(freeze_plain(config, BuildConfig))


@_in_users_words
def _check_job(config: DictConfig) -> None:
    from vrft.run.processes import find_device

    frozen = freeze(config, device=find_device(), is_look=True)
    warnings.filterwarnings("ignore", category=FutureWarning)  # renames inside transformers: nobody here can act
    from vrft.cli.check import check  # torch: after the checks

    check(frozen)


@_in_users_words
def _probe_job(config: DictConfig) -> None:
    from vrft.run.processes import find_device

    frozen = freeze(config, device=find_device())
    warnings.filterwarnings("ignore", category=FutureWarning)  # renames inside transformers: nobody here can act
    from vrft.cli.probe import probe  # torch: after the checks

    if not probe(frozen)["is_ready"]:
        raise SystemExit(NOT_READY)


@_in_users_words
def _plan_job(config: DictConfig) -> None:
    from vrft.run.processes import find_device

    frozen = freeze(config, device=find_device(), is_elsewhere=True)
    warnings.filterwarnings("ignore", category=FutureWarning)  # renames inside transformers: nobody here can act
    from vrft.cli.plan import print_plan  # torch: after the checks

    if not print_plan(frozen):
        raise SystemExit(TOO_LARGE)


@_in_users_words
def _score_job(config: DictConfig) -> None:
    from vrft.cli.score import score_file

    score_file(plain(config))


@_in_users_words
def _export_job(config: DictConfig) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)  # renames inside transformers: nobody here can act
    from vrft.cli.export import ExportConfig, run_export  # torch

    run_export(freeze_plain(config, ExportConfig))


@_in_users_words
def _judge_job(config: DictConfig) -> None:
    from vrft.cli.judge import JudgeConfig, judge_file

    judge_file(freeze_plain(config, JudgeConfig))


@_in_users_words
def _audit_job(config: DictConfig) -> None:
    from vrft.cli.audit import AuditConfig, run_audit

    if run_audit(freeze_plain(config, AuditConfig)):
        raise SystemExit(GAMED)


_JOBS = {
    "build": _build_job,
    "check": _check_job,
    "probe": _probe_job,
    "plan": _plan_job,
    "train": _experiment_job,
    "evaluate": _experiment_job,
    "predict": _predict_job,
    "judge": _judge_job,
    "audit": _audit_job,
    "score": _score_job,
    "export": _export_job,
    "report": _report_job,
}


def _refuse_unused_sweep(settings: DictConfig) -> None:
    """Raise `UserError` if a sweep, sweeper or launcher was chosen without -m: Hydra would ignore it in silence."""
    if settings.mode == RunMode.MULTIRUN:
        return
    usual = {"sweep": None, "hydra/sweeper": "basic", "hydra/launcher": "basic"}
    choices = settings.runtime.choices
    chosen = [f"{group}={choices[group]}" for group, name in usual.items() if choices.get(group) != name]
    chosen += [one for one in settings.overrides.hydra if _ONLY_IN_SWEEPS.match(one)]
    if chosen:
        is_swept = sys.argv[0].rpartition(" ")[2] in SWEPT
        meant = f"you meant: {sys.argv[0]} {shlex.join(['-m', *sys.argv[1:]])}" if is_swept else "leave it out"
        raise UserError(f"{', '.join(chosen)} {'acts' if len(chosen) == 1 else 'act'} only with -m; {meant}")


def _need_one_run_dir(overrides: list[str]) -> None:
    """Raise `UserError` where each of several machines would make up a run directory of its own."""
    if not any(override.startswith("run.dir=") for override in overrides):
        raise UserError(
            "run.dir has the time of day in it, which differs between machines; give all launch.nnodes machines the "
            "same one, on a file system that they share: run.dir=runs/NAME"
        )
