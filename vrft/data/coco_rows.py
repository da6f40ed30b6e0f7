"""Rows from COCO and LVIS annotation files, which `coco_files` reads.

    detection              a row for each image and category in it: {"category": "dog", "gold": [boxes]}
    detection, labelled    a row for each image: {"categories": ["cat", "dog"], "gold": [{"label": "dog", "xyxy": box}]}
    counting               a row for each image and category in it: {"category": "dog", "gold": 2}

Crowd boxes are not gold. A category that has only crowds in an image gives no row and no negative question. Counting
also leaves out a category with a crowd. Every row has the file's `image_id`, and a row about one category has its
`category_id`; the `row_id` consists of them.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from vrft.data.assemble import build_splits
from vrft.data.class_names import read_class_names
from vrft.data.coco_files import Annotations, read_annotations
from vrft.data.options import CommonOptions
from vrft.data.readers import Located
from vrft.errors import UserError, raise_all
from vrft.tasks import Task
from vrft.tasks.answers import normal_name
from vrft.tasks.rows import Row

NOT_EXHAUSTIVE = "rows were left out because not all objects of their category have boxes"
CROWDED = "rows of counting were left out because a crowd stands beside the objects that have boxes"

_Names = list[str] | str | None


class Options(CommonOptions):
    """The keys of `dataset` that only this source has.

    path, test_path: annotation files; test_path null: `n_test` rows of `path` become the test set.
    classes: the categories of the questions: names, the name of a list in `category_lists`, or a file with one name a
        line; null: all. Case and underscores are ignored; rows have the names of the annotation file.
    exclude_classes: categories to leave out, in the same form.
    test_classes: as `classes`, for a separate test set; null: as in training.
    negatives: the number of negative questions per positive question, and per image without annotations. With labels:
        the number of absent categories per present category. LVIS: only categories that the file lists as absent.
    distractors: True adds to each detection row the boxes of other categories in its image.
    federated: True for LVIS.
    not_exhaustive: False leaves out rows for which LVIS says that some objects have no box. Counting always does so.
    """

    path: str
    test_path: str | None = None
    classes: _Names = None
    exclude_classes: _Names = None
    test_classes: _Names = None
    negatives: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    distractors: bool = False
    federated: bool = False
    not_exhaustive: bool = True
    most_validation: ClassVar[int] = 200
    most_test: ClassVar[int] = 300

    def faults(self) -> list[str]:
        """Keys that contradict each other."""
        if self.test_classes is None or self.test_path is not None:
            return []
        return ["dataset.test_classes is given, and dataset.test_path is null; it needs a separate test set"]


def build(options: dict, *, task: Task, out_dir: Path, seed: int) -> dict[str, list[Row]]:
    """The rows as `{"train", "validation", "test"}`. Raises `UserError` that lists all their faults."""
    if getattr(task, "answer_kind", None) not in ("boxes", "count"):
        raise UserError(
            f"task={task.name} has no rows in COCO or LVIS annotations, which hold boxes; tasks that fit: detection, "
            "open_vocabulary_detection, counting"
        )
    notes: dict[str, int] = {}
    bound = partial(read, task=task, seed=seed, notes=notes)
    return build_splits(options, own=Options, read=bound, task=task, out_dir=out_dir, seed=seed, notes=notes)


def read(
    options: Options,
    *,
    is_test: bool,
    faults: list[str],
    task: Task,
    seed: int = 0,
    notes: dict[str, int] | None = None,
) -> tuple[Iterator[Located], Path | None]:
    """The rows of the training or test file, in order of image and category id, and the folder of image paths.

    notes: counts of objects and questions that were left out. Raises `UserError` for an unknown file or class.
    """
    path, key = Path(options.path), "dataset.path"
    if is_test and options.test_path is not None:
        path, key = Path(options.test_path), "dataset.test_path"
    notes = {} if notes is None else notes
    found = read_annotations(path, key=key, is_federated=options.federated, faults=faults, notes=notes)
    rows = _Rows(found, options, _asked_ids(found, options, is_test=is_test), task, seed, notes)
    folder = Path(options.root_of(is_test=is_test) or path.parent)
    return rows.located(folder, prefix="test-" if is_test else ""), folder


@dataclass
class _Rows:
    """The rows of one file. asked: the ids of the categories that questions ask for."""

    found: Annotations
    options: Options
    asked: frozenset[int]
    task: Task
    seed: int
    notes: dict[str, int]

    def located(self, folder: Path, *, prefix: str) -> Iterator[Located]:
        of_image = self._labelled if getattr(self.task, "labelled", False) else self._single
        n_positive, n_negative = 0, 0
        for image_id in sorted(self.found.images):
            image, present = self.found.images[image_id], self.found.present.get(image_id, set())
            golds = self._golds(image_id)
            absent = (image.negative_ids & self.asked if self.options.federated else self.asked) - present
            absent = sorted(number for number in absent if (image_id, number) not in self.found.faulty)
            n_positive += len(golds) or (not present and bool(absent))  # an image without objects counts as one
            wanted = round(self.options.negatives * n_positive) - n_negative
            drawn = random.Random(f"{self.seed}:{image_id}").sample(absent, max(0, min(wanted, len(absent))))
            n_negative += len(drawn)
            file = next((name for name in image.files if (folder / name).is_file()), image.files[0])
            for name, columns in of_image(image_id, golds | {number: [] for number in drawn}):
                shared = {"image": file, "image_id": image_id, "image_wh": list(image.wh)}
                yield self.found.name, f"{prefix}{name}", {"row_id": f"{prefix}{name}", **shared, **columns}
        if (missing := round(self.options.negatives * n_positive) - n_negative) > 0:
            self.notes["questions without an object could not be drawn: too few categories are known to be absent"] = (
                missing
            )

    def _golds(self, image_id: int) -> dict[int, list[list[float]]]:
        """The boxes of each asked category that has complete gold in the image, by category id."""
        golds: dict[int, list[list[float]]] = {}
        for category_id, xyxy in self.found.boxes.get(image_id, ()):
            if category_id in self.asked and (image_id, category_id) not in self.found.faulty:
                golds.setdefault(category_id, []).append(list(xyxy))
        for category_id in [number for number in golds if (image_id, number) in self.found.crowds]:
            if self.task.answer_kind == "count":
                del golds[category_id]
                self.notes[CROWDED] = self.notes.get(CROWDED, 0) + 1
        for category_id in self.found.images[image_id].not_exhaustive_ids & golds.keys():
            if self.task.answer_kind == "count" or not self.options.not_exhaustive:
                del golds[category_id]
                self.notes[NOT_EXHAUSTIVE] = self.notes.get(NOT_EXHAUSTIVE, 0) + 1
        return dict(sorted(golds.items()))

    def _single(self, image_id: int, golds: dict[int, list]) -> Iterator[tuple[str, dict[str, Any]]]:
        for category_id, boxes in sorted(golds.items()):
            category = self.found.categories[category_id]
            columns: dict[str, Any] = {"category_id": category_id, "category": category["name"]}
            if self.task.answer_kind == "count":
                yield f"{image_id}-{category_id}", columns | {"gold": len(boxes)}
                continue
            if self.options.federated:
                columns["is_exhaustive"] = category_id not in self.found.images[image_id].not_exhaustive_ids
            if self.options.distractors:
                others = self.found.boxes.get(image_id, ())
                columns["distractors"] = [list(xyxy) for other, xyxy in others if other != category_id]
            if self.task.name == "open_vocabulary_detection" and isinstance(category.get("def"), str):
                columns["definition"] = category["def"]
            yield f"{image_id}-{category_id}", columns | {"gold": boxes}

    def _labelled(self, image_id: int, golds: dict[int, list]) -> Iterator[tuple[str, dict[str, Any]]]:
        """One row. No row if an annotation of an asked category is invalid: the gold would lack an object."""
        is_faulty = (
            any((image_id, number) in self.found.faulty for number in self.asked) if self.found.faulty else False
        )
        if is_faulty or not golds:
            return
        names = {category_id: self.found.categories[category_id]["name"] for category_id in golds}
        gold = [{"label": names[number], "xyxy": xyxy} for number, boxes in sorted(golds.items()) for xyxy in boxes]
        yield str(image_id), {"categories": sorted(names.values()), "gold": gold}


def _asked_ids(found: Annotations, options: Options, *, is_test: bool) -> frozenset[int]:
    """The ids of the categories that the options choose. Raises `UserError` for an unknown list or name."""
    key = "test_classes" if is_test and options.test_classes is not None else "classes"
    chosen = _ids_of(getattr(options, key), found, key=f"dataset.{key}")
    excluded = (
        _ids_of(options.exclude_classes, found, key="dataset.exclude_classes") if options.exclude_classes else set()
    )
    if not chosen - excluded:
        raise UserError(
            f"dataset.{key} without dataset.exclude_classes leaves no category of {found.name}; name others"
        )
    return frozenset(chosen - excluded)


def _ids_of(names: _Names, found: Annotations, *, key: str) -> set[int]:
    if names is None:
        return set(found.categories)
    listed = read_class_names(names, key=key)
    ids = {normal_name(category["name"]): number for number, category in found.categories.items()}
    faults = []
    for name in listed:
        if normal_name(name) not in ids:
            near = difflib.get_close_matches(normal_name(name), ids, n=3)
            meant = ", ".join(repr(found.categories[ids[one]]["name"]) for one in near)
            faults.append(
                f"{key} has {name!r}, no category of {found.name}" + (f"; did you mean {meant}?" if near else "")
            )
    some = ", ".join(category["name"] for category in list(found.categories.values())[:100])
    raise_all(faults, heading=f"Unknown categories; {found.name} has {len(found.categories)}: {some}")
    return {ids[normal_name(name)] for name in listed}


def build_lvis(options: dict, *, task: Task, out_dir: Path, seed: int) -> dict[str, list[Row]]:
    """The rows of LVIS files, v0.5 and v1. Their images list the categories that annotators looked for."""
    return build({**options, "federated": True}, task=task, out_dir=out_dir, seed=seed)
