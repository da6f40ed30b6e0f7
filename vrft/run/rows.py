"""The rows of a run: built by its dataset's builder, checked by its task, written to its data folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrft.config.batch_sizes import derive, fitting_step, rows_at_once
from vrft.config.schema import Config, Evaluate, Protocol, Trainer
from vrft.config.section import with_values
from vrft.config.verb_schema import BuildConfig
from vrft.data.splits import MANIFEST_FILE, drop_manifest, finish_manifest
from vrft.errors import raise_all
from vrft.evaluate.protocols import questions_not_asked, row_faults
from vrft.files import hash_of, write_rows
from vrft.models.families import FAMILIES, Family
from vrft.run.resume import check_same_rows
from vrft.tasks import load_task
from vrft.tasks.base import Task
from vrft.tasks.rows import Row, rows_hash


def prepare_rows(
    config: Config, run_dir: Path, *, is_resuming: bool = False
) -> tuple[Config, dict[str, list[Row]], dict[str, list[Row]]]:
    """The rows of a run, and those of the other tasks that it is judged on (`build_others`), built and written; before
    them the config, with a step that the rows fill.

    Refuses and warns for every verb that reads rows as a training does. Raises `UserError`.
    """
    rows = build_rows(config, run_dir / "data", is_resuming=is_resuming)
    warn_of_frames(rows, FAMILIES[config.model.family], config.dataset.get("frame"))
    warn_of_questions(rows, config.protocol)
    if config.evaluate.train:
        config = with_fitting_step(config, len(rows["train"]))
        print_left_out(len(rows["train"]), rows_at_once(config.trainer, config.memory, config.launch))
    return config, rows, build_others(config, run_dir, is_resuming=is_resuming)


def with_fitting_step(config: Config, n_rows: int) -> Config:
    """The config with no more prompts a step than there are rows to train on; a warning tells where that changes it."""
    asked = config.trainer.prompts_per_step
    fitting = fitting_step(n_rows, config.trainer, config.memory, config.launch)
    if fitting == asked:
        return config
    print(
        f"warning: {n_rows} rows to train on do not fill a step of trainer.prompts_per_step={asked}, so a step takes "
        f"{fitting}",
        file=sys.stderr,
    )
    return derive(with_values(config, {"trainer.prompts_per_step": fitting}), device=config.derived.device)


def print_left_out(n_rows: int, n_at_once: int) -> None:
    """Print how many rows each epoch leaves out, where the last ones do not fill a step. n_at_once: `rows_at_once`."""
    if n_left := n_rows % n_at_once:
        print(
            f"{n_left} of {n_rows} training rows, others each time, are left out of each epoch: {n_at_once} are taken "
            "at once (trainer.prompts_per_step), and they do not fill that",
            file=sys.stderr,
        )


def build_rows(
    config: Config | BuildConfig, data_dir: Path, *, is_resuming: bool = False, only: tuple[str, ...] = ()
) -> dict[str, list[Row]]:
    """Build and check the rows of every split, or of `only` those, and write each to `data_dir/SPLIT.jsonl`.

    Raises `UserError`; with `is_resuming` also, before anything is written, if other rows lie there.
    """
    from vrft.data import load_builder

    dataset, task = dict(config.dataset), load_task(**config.task, trust_code=config.trust_code)
    if only or (isinstance(config, Config) and not config.evaluate.train):
        dataset = _for_test(dataset, Path(config.model.path))
    build = load_builder(dataset.pop("builder"))
    splits = build(dataset, task=task, out_dir=data_dir, seed=config.run.seed)
    if only:
        splits = {split: splits.get(split, []) for split in only}
    if isinstance(config, Config):
        needed = needed_splits(config.evaluate, config.trainer)
    else:
        needed = {"train": "training"} if splits.get("validation") else {}
        if not splits.get("train"):
            print("warning: no row is left for training; these rows can only be evaluated on", file=sys.stderr)
    check_rows(splits, task, needed={split: key for split, key in needed.items() if not only or split in only})
    if isinstance(config, Config):
        if config.evaluate.train and not only:
            faults = list(target_faults(splits["train"], config.trainer))
            raise_all(faults, heading="These rows cannot be trained on:")
        judged, protocol = [row for split, rows in splits.items() if split != "train" for row in rows], config.protocol
        raise_all(row_faults(protocol.plain(), judged), heading=f"protocol={protocol.name} needs more:")
    if is_resuming:
        check_same_rows(data_dir, splits)
    drop_manifest(data_dir)
    for split, rows in splits.items():
        write_rows(data_dir / f"{split}.jsonl", rows)
    finish_manifest(data_dir)
    return splits


def _for_test(dataset: dict[str, Any], model: Path) -> dict[str, Any]:
    """The options of rows of which none is trained on: without numbers of rows, each of a file is a test row, unless
    the run that saved the checkpoint `model` has trained or validated on its images."""
    if "n_test" not in dataset or (dataset["n_test"], dataset.get("n_validation")) != (None, None):
        return dataset
    seen = model.parent.parent / "data"
    is_of_run = model.parent.name == "checkpoints" and (seen / MANIFEST_FILE).is_file()
    return dataset | {"n_test": "all"} | ({"unseen_by": str(seen)} if is_of_run else {})


def build_others(config: Config, run_dir: Path, *, is_resuming: bool = False) -> dict[str, list[Row]]:
    """Build the test rows of every other task that the run is judged on.

    Returns them by `others/NAME`, their images as seen from the run's own data folder.
    """
    found = {}
    for name in other_names(config):
        folder = data_folder(run_dir, name)
        splits = build_rows(with_other(config, name), folder, is_resuming=is_resuming, only=("test",))
        found[f"others/{name}"] = [
            {**row, "images": [str(Path("others") / name / path) for path in row["images"]]} for row in splits["test"]
        ]
    return found


def target_faults(rows: list[Row], trainer: Trainer) -> Iterator[str]:
    """Yield why some of the training rows have no target."""
    without = [row["row_id"] for row in rows if trainer.sft_thought == "gold" and not row.get("thought")]
    if without:
        yield (
            f"trainer.sft_thought=gold, but {len(without)} of {len(rows)} rows have no column 'thought' "
            f"(first: {without[0]}); give them one, or choose trainer.sft_thought=empty or none"
        )


def warn_of_questions(splits: dict[str, list[Row]], protocol: Protocol) -> None:
    """Print a warning if the protocol wants every category asked in every image and the test rows do not."""
    for split, rows in splits.items():
        if split not in ("train", "validation") and (n := questions_not_asked(rows, protocol.plain())):
            print(
                f"warning: protocol={protocol.name} wants every category asked in every image, and "
                f"{n} such questions are not among the rows of {split}, so wrong boxes that they would bring do not "
                "count. Build the test rows with dataset.negatives=1000, or choose protocol=coco_asked.",
                file=sys.stderr,
            )


def warn_of_frames(splits: dict[str, list[Row]], family: Family, frame: str | None) -> None:
    """Print a warning if verbatim questions write boxes in another frame than the model's.

    frame: `dataset.frame`.
    """
    n_verbatim = sum("problem" in row for rows in splits.values() for row in rows)
    if frame and not n_verbatim:
        print(
            f"warning: dataset.frame={frame} says how rows with a question of their own (`problem`), and a `solution`, "
            "write boxes; these rows have no `problem`, and boxes in a column such as `gold` are pixels of the image",
            file=sys.stderr,
        )
    if n_verbatim and frame not in (None, family.frame):
        print(
            f"warning: {n_verbatim} rows bring their own question, with boxes in {frame} (dataset.frame), while "
            f"{family.name} speaks {family.frame}. Their text is used as it is and answers are read in {frame}; the "
            "model has to learn that first. Rows with the task's own columns, without `problem`, are asked in the "
            "model's frame.",
            file=sys.stderr,
        )


def needed_splits(evaluate: Evaluate, trainer: Trainer) -> dict[str, str]:
    """The splits that may not be empty, each with the config key that needs it."""
    needed = {}
    if evaluate.train:
        needed["train"] = "evaluate.train=true"
    if evaluate.train and trainer.eval_steps:
        needed["validation"] = f"trainer.eval_steps={trainer.eval_steps}"
    if evaluate.before or (evaluate.train and evaluate.after):
        needed["test"] = "evaluate.before or evaluate.after"
    return needed


def check_rows(splits: dict[str, list[Row]], task: Task, *, needed: dict[str, str]) -> None:
    """Raise `UserError` listing every row whose gold the task refuses, and every needed split without rows."""
    counts = ", ".join(f"{len(rows)} in {split}" for split, rows in splits.items()) or "none"
    faults = [
        f"the split {split} has no rows, but {key} needs it (there are {counts}); look at dataset.n_validation, "
        "dataset.n_test and the other keys of `dataset`"
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
    """`xxh3_128:HEX` over the names, rows and images of all splits."""
    return hash_of(f"{split} {rows_hash(splits[split], root)}\n" for split in sorted(splits))


def data_folder(run_dir: Path, other: str | None = None) -> Path:
    """Where the rows and images of a run lie, or those of another task that it is judged on."""
    return run_dir / "data" if other is None else run_dir / "data" / "others" / other


def evaluation_folder(run_dir: Path, other: str | None = None) -> Path:
    """Where completions and scores go, in a folder for each evaluation and one for each split below it."""
    return run_dir / "evaluations" if other is None else run_dir / "evaluations" / "others" / other


def other_names(config: Config) -> list[str]:
    """The names in `evaluate.others`, without the run's own task."""
    others = config.evaluate.others or {}
    return [name for name, other in others.items() if other.task["name"] != config.task["name"]]


def with_other(config: Config, name: str) -> Config:
    """The config with the task, rows, protocol and reward of another task, and nothing else to evaluate."""
    other = config.evaluate.others[name]
    alone = with_values(config, {"evaluate.titles": {}, "evaluate.others": None})
    return alone.model_copy(update={key: getattr(other, key) for key in type(other).model_fields})
