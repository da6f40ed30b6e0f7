"""The parent's side of each verb: rows built, config frozen on disk, worker started, report written."""

from __future__ import annotations

import contextlib
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from vrft import heartbeat, run_lock, slurm
from vrft.backing_off import backed_off, remembered
from vrft.checkpoint_card import setting_drift
from vrft.errors import OUT_OF_MEMORY, STOPPED_BY_ALARM, USER_ERROR, UserError, raise_all
from vrft.launching import start_worker
from vrft.planning import as_begun, fitted
from vrft.provenance import provenance
from vrft.resuming import (
    begun_with,
    check_same_config,
    check_same_hashes,
    config_hash,
    warn_of_versions,
)
from vrft.rows import write_text_atomically
from vrft.run_lock import OccupiedError, alone_in
from vrft.run_rows import build_others, build_rows, data_hash, warn_of_frames, warn_of_questions
from vrft.sweep_question import CHILDREN

_BEFORE_IT_BEGINS = {"config.yaml", "provenance.json", "data", heartbeat.FOLDER, run_lock.FILE, slurm.FOLDER}


def run_experiment(config: dict[str, Any], *, choices: dict[str, Any], overrides: list[str]) -> int:
    """Run a frozen config in its run directory; the exit code is 0 when `result.json` and `report.html` are there.

    choices, overrides: what Hydra resolved and what the user said, for the record.
    Raises `UserError` before the worker starts.
    """
    run_dir, launch = Path(config["run"]["dir"]), config["launch"]
    if launch.get("node_rank"):  # machine 0 checks, prepares and reports; this one waits for it
        return start_worker(run_dir, config)
    if launch["name"] == "slurm":
        slurm.check_cluster(run_dir)
    else:
        slurm.check_no_job(run_dir)
    with contextlib.ExitStack() as held:
        config = remembered(run_dir, config)
        config, is_fresh = _prepare(run_dir, config, choices=choices, overrides=overrides, held=held)
        if launch["name"] != "slurm":
            code = _run_backing_off(start_worker, run_dir, config)  # whatever ends it, what it has made stays
    if launch["name"] == "slurm":  # the job takes the lock
        try:
            code = _run_backing_off(slurm.run_as_job, run_dir, config)
        except UserError:
            if is_fresh and {path.name for path in run_dir.iterdir()} <= _BEFORE_IT_BEGINS:
                _remove_all_but_cache(run_dir)
            raise
        if code is None:
            return 0
    if code in (0, STOPPED_BY_ALARM):
        write_reports([run_dir])
    is_begun = not {path.name for path in run_dir.iterdir()} <= _BEFORE_IT_BEGINS
    if code not in (0, STOPPED_BY_ALARM, USER_ERROR) or (code == USER_ERROR and is_begun):
        print(f"vrft: not finished; the same command goes on with run.dir={run_dir} run.resume=true", file=sys.stderr)
    if code == USER_ERROR and is_fresh and not is_begun:  # refused
        _remove_all_but_cache(run_dir)
    return code


def _run_backing_off(start: Callable[[Path, dict], int | None], run_dir: Path, config: dict[str, Any]) -> int | None:
    """What `start` returns; after out of memory it starts again with smaller micro-batches while there are any.

    On several machines that torchrun joins the others have ended: there all have to be started again.
    """
    code = start(run_dir, config)
    while code == OUT_OF_MEMORY:
        # a job may have backed off itself
        smaller = backed_off(run_dir, yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")))
        if smaller is None:
            break
        if config["launch"]["name"] == "torchrun" and config["launch"].get("nnodes", 1) > 1:
            print("vrft: start all machines again with run.resume=true: they go on with these", file=sys.stderr)
            break
        code = start(run_dir, smaller)
    return code


def _prepare(
    run_dir: Path, config: dict[str, Any], *, choices: dict[str, Any], overrides: list[str], held: contextlib.ExitStack
) -> tuple[dict[str, Any], bool]:
    """Leave all that the worker reads in the run directory, and it locked by `held`.

    Returns the config, with `memory=auto` made to fit, and True where the directory held nothing.
    """
    with fresh_run_dir(run_dir, is_resuming=config["run"]["resume"]) as is_fresh:
        held.enter_context(alone_in(run_dir))
        if is_fresh and config["run"]["resume"]:
            print(f"warning: nothing is to be resumed in run.dir={run_dir}, so the run begins", file=sys.stderr)
        is_auto = bool(config["memory"].get("auto")) and config["evaluate"]["train"]
        config = as_begun(run_dir, config) if is_auto else config
        check_same_config(run_dir, config)
        drift = [] if config["evaluate"]["train"] else setting_drift(config)
        for difference in drift:
            print(f"warning: {difference}", file=sys.stderr)
        rows = build_rows(config, run_dir / "data", is_resuming=not is_fresh)
        if is_auto and not (run_dir / "config.yaml").is_file():
            config = fitted(config, rows)
        warn_of_frames(rows, config)
        warn_of_questions(rows, config)
        others = build_others(config, run_dir, is_resuming=not is_fresh)
        record = provenance(
            config,
            choices=choices,
            overrides=overrides,
            config_hash=config_hash(config),
            data_hash=data_hash({**rows, **others}, run_dir / "data"),
        )
        begun = begun_with(run_dir)
        check_same_hashes(run_dir, begun, record)
        warn_of_versions(begun, record)
        if begun:
            record["earlier"] = [*begun.pop("earlier", []), begun]
        if "wandb_run_id" in begun or "wandb" in config["logging"]["report_to"]:  # W&B goes on in the run that it has
            record["wandb_run_id"] = begun.get("wandb_run_id") or uuid.uuid4().hex
        write_text_atomically(run_dir / "provenance.json", json.dumps(record, indent=2) + "\n")
        write_text_atomically(run_dir / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return config, is_fresh


def write_reports(run_dirs: list[Path], *, out_dir: Path | None = None) -> None:
    """Write `report.html` of the first run, the others in its table, and print the table.

    That of several runs also goes to `out_dir` (the first run's unless given) as `comparison.html`, .md and .csv; of
    sweeps' folders, or of figures that were kept of them, it is `sweep.html` (see `vrft.report.sweep_pages`).
    Raises `UserError` if a directory holds no finished run.
    """
    from vrft.report.sweep_pages import write_sweep_report

    if any((source / CHILDREN).is_dir() or source.suffix == ".csv" for source in run_dirs):
        print(f"report: {write_sweep_report(run_dirs, out_dir)}")
        return
    unfinished = [folder for folder in run_dirs if not (folder / "result.json").is_file()]
    raise_all(
        [f"{folder} has no result.json" for folder in unfinished], heading="A report needs finished runs (runs=…):"
    )
    from vrft.report import methods_of, panels, text_table, write_comparison, write_report
    from vrft.report.run_files import RunFiles

    page = write_report(run_dirs[0], run_dirs[1:])
    if len(run_dirs) > 1:
        write_comparison(run_dirs, out_dir or run_dirs[0])
    else:
        if shown := panels(methods_of([RunFiles(run_dirs[0])])):
            print(text_table(shown))
    print(f"report: {page}")


@contextlib.contextmanager
def fresh_run_dir(run_dir: Path, *, is_resuming: bool, key: str = "run.dir") -> Iterator[bool]:
    """Make the run directory; take it away again if what follows fails, so that the same command can be given again.

    Yields True where it held nothing before. The cache of checked images stays, so that one bad row does not cost
    decoding all images again. key: the config's key that names it. Raises `UserError` if it holds anything else and the
    run is not resuming.
    """
    has_content = run_dir.exists() and (not run_dir.is_dir() or any(_files_but_cache(run_dir)))
    if has_content and not is_resuming:
        raise UserError(
            f"{key} is {run_dir}, which exists and is not empty; choose another, or go on in it with run.resume=true"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    is_to_stay = has_content
    try:
        yield not has_content
        is_to_stay = True
    except OccupiedError:
        is_to_stay = True  # by now it is another's
        raise
    finally:
        if not is_to_stay:
            _remove_all_but_cache(run_dir)


def _remove_all_but_cache(folder: Path) -> None:
    """Remove all files but the cache of checked images, and the folders that this leaves empty."""
    for path in [*folder.rglob(run_lock.FILE), *_files_but_cache(folder)]:
        path.unlink()
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(inner.iterdir()):
            inner.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


def _files_but_cache(folder: Path) -> list[Path]:
    """All files below a folder but its lock, the cache of checked images and what it kept of them."""
    from vrft.data.images import KEPT_FILE

    caches = {path.parent for path in folder.rglob(KEPT_FILE)}
    return [
        path
        for path in folder.rglob("*")
        if not path.is_dir()
        and path.name not in (KEPT_FILE, run_lock.FILE)
        and not any(path.parent == c / "images" for c in caches)
    ]
