"""The parent's side of each verb: rows built, config frozen on disk, worker started, report written."""

from __future__ import annotations

import contextlib
import json
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vrft.config.batch_sizes import derive
from vrft.config.schema import Config
from vrft.config.section import with_values
from vrft.errors import ExitCode, UserError, disk_errors_explained
from vrft.files import read_rows, write_text_atomically
from vrft.memory.auto import fitting_changes, turned_knobs
from vrft.memory.training_setup import Setup
from vrft.models.families import FAMILIES, frame_for
from vrft.models.prompt_settings import setting_drift
from vrft.report.write import write_reports
from vrft.run import directory, health, slurm
from vrft.run.directory import (
    alone_in,
    fresh_run_dir,
    provenance,
    remove_all_but_cache,
)
from vrft.run.out_of_memory import backed_off, remembered
from vrft.run.processes import start_worker
from vrft.run.resume import (
    check_same_config,
    check_same_hashes,
    config_hash,
    first_provenance,
    read_config,
    warn_of_versions,
    write_config,
)
from vrft.run.rows import data_hash, prepare_rows, with_fitting_step
from vrft.tasks import load_task
from vrft.tasks.rows import Row

_BEFORE_IT_BEGINS = {"config.yaml", "provenance.json", "data", health.FOLDER, directory.LOCK_FILE, slurm.FOLDER}


def run_experiment(config: Config, *, choices: dict[str, Any], overrides: list[str]) -> int:
    """Run a frozen config in its run directory; the exit code is 0 when `result.json` and `report.html` are there.

    choices, overrides: what Hydra resolved and what the user said, for the record.
    Raises `UserError` before the worker starts.
    """
    run_dir, launch = Path(config.run.dir), config.launch
    if launch.name == "torchrun" and launch.node_rank:  # machine 0 checks, prepares and reports; this one waits for it
        return start_worker(run_dir, config)
    if launch.name == "slurm":
        slurm.check_cluster(run_dir)
    else:
        slurm.check_no_job(run_dir)
    with contextlib.ExitStack() as held:
        config = remembered(run_dir, config)
        config, is_fresh = _prepare(run_dir, config, choices=choices, overrides=overrides, held=held)
        start = start_worker
        if launch.name == "slurm":
            start = slurm.run_as_job
            held.close()  # the job takes the lock
        try:
            code = _run_backing_off(start, run_dir, config)  # whatever ends it, what it has made stays
        except UserError:
            if is_fresh and not _is_begun(run_dir):
                remove_all_but_cache(run_dir)
            raise
    if code is None:
        return 0
    if code in (0, ExitCode.STOPPED_BY_ALARM):
        with disk_errors_explained(then=f"give vrft report runs=[{run_dir}]"):
            write_reports([run_dir])
    is_begun = _is_begun(run_dir)
    if code not in (0, ExitCode.STOPPED_BY_ALARM, ExitCode.USER_ERROR) or (code == ExitCode.USER_ERROR and is_begun):
        print(
            f"vrft: not finished; the same command with run.dir={run_dir} run.resume=true resumes it", file=sys.stderr
        )
    if code == ExitCode.USER_ERROR and is_fresh and not is_begun:  # refused
        remove_all_but_cache(run_dir)
    return code


def _is_begun(run_dir: Path) -> bool:
    """True if a worker has left more there than what it reads."""
    return not {path.name for path in run_dir.iterdir()} <= _BEFORE_IT_BEGINS


def _run_backing_off(start: Callable[[Path, Config], int | None], run_dir: Path, config: Config) -> int | None:
    """What `start` returns; after out of memory it starts again with smaller micro-batches while there are any.

    On several machines that torchrun joins the others have ended: there all have to be started again.
    """
    code = start(run_dir, config)
    while code == ExitCode.OUT_OF_MEMORY:
        # a job may have backed off itself
        smaller = backed_off(run_dir, read_config(run_dir))
        if smaller is None:
            break
        if config.launch.name == "torchrun" and config.launch.nnodes > 1:
            print("vrft: start all machines again with run.resume=true: they resume with these", file=sys.stderr)
            break
        code = start(run_dir, smaller)
    return code


def _prepare(
    run_dir: Path, config: Config, *, choices: dict[str, Any], overrides: list[str], held: contextlib.ExitStack
) -> tuple[Config, bool]:
    """Leave all that the worker reads in the run directory, and it locked by `held`.

    Returns the config, with `memory=auto` made to fit, and True where the directory held nothing.
    """
    with fresh_run_dir(run_dir, is_resuming=config.run.resume) as is_fresh:
        held.enter_context(alone_in(run_dir))
        if is_fresh and config.run.resume:
            print(f"warning: nothing to resume in run.dir={run_dir}, so the run starts at step 0", file=sys.stderr)
        is_auto = config.memory.auto and config.evaluate.train
        config = _with_values(config, turned_knobs(run_dir)) if is_auto else config
        if config.evaluate.train and (known := run_dir / "data" / "train.jsonl").is_file():
            config = with_fitting_step(config, len(read_rows(known)))  # as it was when the run was started
        check_same_config(run_dir, config.plain())
        drift = [] if config.evaluate.train else setting_drift(config.prompt_settings, config.model.path)
        for difference in drift:
            print(f"warning: {difference}", file=sys.stderr)
        config, rows, others = prepare_rows(config, run_dir, is_resuming=not is_fresh)
        if is_auto and not (run_dir / "config.yaml").is_file():
            config = _fitted(config, rows)
        record = provenance(
            config.model,
            seed=config.run.seed,
            choices=choices,
            overrides=overrides,
            config_hash=config_hash(config.plain()),
            data_hash=data_hash({**rows, **others}, run_dir / "data"),
        )
        former = first_provenance(run_dir)
        record |= check_same_hashes(run_dir, former, record)
        warn_of_versions(former, record)
        if former:
            record["earlier"] = [*former.pop("earlier", []), former]
        if "wandb_run_id" in former or "wandb" in config.logging.report_to:  # W&B resumes the run that it has
            record["wandb_run_id"] = former.get("wandb_run_id") or uuid.uuid4().hex
        write_text_atomically(run_dir / "provenance.json", json.dumps(record, indent=2) + "\n")
        write_config(run_dir, config)
    return config, is_fresh


def _with_values(config: Config, values: dict[str, Any]) -> Config:
    """The config with values at their dotted keys, its batches derived again."""
    return derive(with_values(config, values), device=config.derived.device)


def _fitted(config: Config, rows: dict[str, list[Row]]) -> Config:
    """The config with the changes of `memory=auto`."""
    task, family = load_task(**config.task, trust_code=config.trust_code), FAMILIES[config.model.family]
    every = [row for of_split in rows.values() for row in of_split]
    changes = fitting_changes(
        config.part(Setup),
        device=config.derived.device,
        questions=(
            task.question(row, frame_for(family, row["image_wh"], **config.memory.pixel_limits)) for row in every
        ),
        image_sizes=[row["image_wh"] for row in every if row.get("image_wh")],
    )
    for change in changes:
        config = _with_values(config, change.values)
    return config
