"""The parent's side of each verb: rows built, config frozen on disk, worker started, report written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vrft.checkpoint_card import setting_drift
from vrft.configure import config_hash
from vrft.errors import UserError, raise_all
from vrft.evaluate.protocols import questions_not_asked, row_faults
from vrft.launching import start_worker
from vrft.models.families import FAMILIES
from vrft.provenance import provenance
from vrft.rows import Row, rows_hash, write_rows, write_text_atomically
from vrft.tasks import load_task
from vrft.tasks.base import Task

_OF_THE_PARENT = {"config.yaml", "provenance.json", "data"}


def run_experiment(config: dict[str, Any], *, choices: dict[str, Any], overrides: list[str]) -> int:
    """Run a frozen config in its run directory; the exit code is 0 when `result.json` and `report.html` are there.

    choices, overrides: what Hydra resolved and what the user said, for the record.
    Raises `UserError` before the worker starts.
    """
    run_dir = Path(config["run"]["dir"])
    with fresh_run_dir(run_dir, is_resuming=config["run"]["resume"]) as is_fresh:
        check_same_experiment(run_dir, {"config_hash": config_hash(config)})  # before the rows are written again
        drift = [] if config["evaluate"]["train"] else setting_drift(config)
        for difference in drift:
            print(f"warning: {difference}", file=sys.stderr)
        rows = build_rows(config, run_dir / "data")
        warn_of_frames(rows, config)
        warn_of_questions(rows, config)
        record = provenance(
            config,
            choices=choices,
            overrides=overrides,
            config_hash=config_hash(config),
            data_hash=data_hash(rows, run_dir / "data"),
        )
        check_same_experiment(run_dir, record)
        write_text_atomically(run_dir / "provenance.json", json.dumps(record, indent=2) + "\n")
        write_text_atomically(run_dir / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    code = start_worker(run_dir, config)  # outside: whatever ends it, what it has made stays
    if code == 0:
        write_reports([run_dir])
    if (
        code == 2 and is_fresh and {path.name for path in run_dir.iterdir()} <= _OF_THE_PARENT
    ):  # refused before it began
        _remove_all_but_cache(run_dir)
    return code


def write_reports(run_dirs: list[Path], *, out_dir: Path | None = None) -> None:
    """Write `report.html` of the first run, the others in its table, and print the table.

    That of several runs also goes to `out_dir` (the first run's unless given) as `comparison.html`, .md and .csv.
    Raises `UserError` if a directory holds no finished run.
    """
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
        print(text_table(panels(methods_of([RunFiles(run_dirs[0])]))))
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
    is_done = False
    try:
        yield not has_content
        is_done = True
    finally:
        if not is_done and not has_content:
            _remove_all_but_cache(run_dir)


def _remove_all_but_cache(folder: Path) -> None:
    """Remove all files but the cache of checked images, and the folders that this leaves empty."""
    for path in _files_but_cache(folder):
        path.unlink()
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(inner.iterdir()):
            inner.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


def _files_but_cache(folder: Path) -> list[Path]:
    """All files below a folder but the cache of checked images and what it kept of them."""
    from vrft.data.images import KEPT_FILE

    caches = {path.parent for path in folder.rglob(KEPT_FILE)}
    return [
        path
        for path in folder.rglob("*")
        if not path.is_dir() and path.name != KEPT_FILE and not any(path.parent == c / "images" for c in caches)
    ]


def build_rows(config: dict[str, Any], data_dir: Path) -> dict[str, list[Row]]:
    """Build and check the rows of every split, and write each to `data_dir/SPLIT.jsonl`. Raises `UserError`."""
    from vrft.data import load_builder

    dataset, task = dict(config["dataset"]), load_task(**config["task"], trust_code=config["trust_code"])
    build = load_builder(dataset.pop("builder"))
    splits = build(dataset, task=task, out_dir=data_dir, seed=config["run"]["seed"])
    check_rows(splits, task, needed=needed_splits(config) if "evaluate" in config else {})
    if "evaluate" in config:
        judged = [row for split, rows in splits.items() if split != "train" for row in rows]
        raise_all(row_faults(config["protocol"], judged), heading=f"protocol={config['protocol']['name']} needs more:")
    for split, rows in splits.items():
        write_rows(data_dir / f"{split}.jsonl", rows)
    return splits


def warn_of_questions(splits: dict[str, list[Row]], config: dict[str, Any]) -> None:
    """Print a warning if the protocol wants every category asked in every image and the test rows do not."""
    for split, rows in splits.items():
        if split not in ("train", "validation") and (n := questions_not_asked(rows, config["protocol"])):
            print(
                f"warning: protocol={config['protocol']['name']} wants every category asked in every image, and "
                f"{n} such questions are not among the rows of {split}, so wrong boxes that they would bring do not "
                "count. Build the test rows with dataset.negatives=1000, or choose protocol=coco_asked.",
                file=sys.stderr,
            )


def warn_of_frames(splits: dict[str, list[Row]], config: dict[str, Any]) -> None:
    """Print a warning if questions taken verbatim speak of boxes in another frame than the model was trained to."""
    family, frame = FAMILIES[config["model"]["family"]], config["dataset"].get("frame")
    n_verbatim = sum("problem" in row for rows in splits.values() for row in rows)
    if n_verbatim and frame not in (None, family.frame):
        print(
            f"warning: {n_verbatim} rows bring their own question, with boxes in {frame} (dataset.frame), while "
            f"{family.name} speaks {family.frame}. Their text is used as it is and answers are read in {frame}; the "
            "model has to learn that first. Rows with the task's own columns, without `problem`, are asked in the "
            "model's frame.",
            file=sys.stderr,
        )


def needed_splits(config: dict[str, Any]) -> dict[str, str]:
    """The splits that may not be empty, and the key that says so."""
    evaluate, needed = config["evaluate"], {}
    if evaluate["train"]:
        needed["train"] = "evaluate.train=true"
    if evaluate["train"] and config["trainer"]["eval_steps"]:
        needed["validation"] = f"trainer.eval_steps={config['trainer']['eval_steps']}"
    if evaluate["before"] or (evaluate["train"] and evaluate["after"]):
        needed["test"] = "evaluate.before or evaluate.after"
    return needed


def check_rows(splits: dict[str, list[Row]], task: Task, *, needed: dict[str, str]) -> None:
    """Raise `UserError` listing every row whose gold the task refuses, and every needed split without rows."""
    faults = [
        f"the split {split} has no rows, but {key} needs it; look at dataset.n_validation, dataset.n_test "
        "and the other keys of `dataset`"
        for split, key in needed.items()
        if not splits.get(split)
    ]
    for split, rows in splits.items():
        for row in rows:
            try:
                task.check(row)
            except ValueError as error:
                faults.append(f"{split}, row {row['row_id']}: {error}")
    raise_all(faults, heading=f"The rows cannot be used for task={task.name}:")


def data_hash(splits: dict[str, list[Row]], root: Path) -> str:
    """SHA-256 over the names, rows and images of all splits, as a hex string."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(f"{split} {rows_hash(splits[split], root)}\n".encode())
    return digest.hexdigest()


def check_same_experiment(run_dir: Path, record: dict[str, Any]) -> None:
    """Raise `UserError` if the run directory was begun with another config or other data than the one resuming it."""
    path = run_dir / "provenance.json"
    if not path.is_file():
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    names = {"config_hash": "config", "data_hash": "data", "model_hash": "model weights"}
    faults = [
        f"{what}: {begun.get(key)} then, {record[key]} now"
        for key, what in names.items()
        if key in record and begun.get(key) != record[key]
    ]
    raise_all(faults, heading=f"{run_dir} was begun with another experiment, so run.resume=true cannot go on:")
