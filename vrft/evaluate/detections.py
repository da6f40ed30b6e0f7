"""Results files of COCO and LVIS: read, checked against the ground truth, and filtered by the protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrft.data.coco_files import is_number, xywh_fault
from vrft.data.readers import read_json
from vrft.errors import UserError, raise_all, suggestion
from vrft.evaluate.truth import Truth
from vrft.tasks.answers import normal_name
from vrft.tasks.rows import Row

_FORM = "[{image_id, category_id, bbox: [x, y, width, height], score}, …]"


def read_detections(paths: Sequence[Path], truth: Truth) -> tuple[list[dict], int]:
    """The detections of one or several results files, in order, and the number of images that are in several files.

    Each is `{image_id, category_id, bbox, score}`. An empty list is allowed; duplicates stay. Raises `UserError` that
    lists what is wrong, by file and number from 0: a score that is not finite, a box of negative size, an unknown image
    or category, a file whose detections are all in other files too, and a file that is given twice.
    """
    times = Counter(path.resolve() for path in paths)
    faults = [f"{path.name} is given {n} times; once is right" for path, n in times.items() if n > 1]
    detections: list[dict] = []
    files_of: dict[tuple, set[int]] = {}
    image_ids, category_ids = truth.image_ids, truth.class_names
    for number_of_file, path in enumerate(paths):
        content = read_json(path, key="detections")
        if not isinstance(content, list):
            keys = f" with {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else ""
            raise UserError(f"detections={path} holds a {type(content).__name__}{keys}; a list is needed: {_FORM}")
        for number, one in enumerate(content):
            own = list(_detection_faults(one, image_ids, category_ids, truth.source))
            faults += [f"{path.name}, detection {number}: {fault}" for fault in own]
            if own:
                continue
            if len(paths) > 1:
                files_of.setdefault(_identity(one), set()).add(number_of_file)
            detections.append({key: one[key] for key in ("image_id", "category_id", "bbox", "score")})
    has_own = {file for files in files_of.values() if len(files) == 1 for file in files}
    repeated = {file for files in files_of.values() for file in files} - has_own
    faults += [f"{paths[file]}: all its detections are in other files too; each must be given once"
               for file in sorted(repeated)]  # fmt: skip
    raise_all(faults, heading=f"detections={', '.join(map(str, paths))} cannot be scored:")
    images_of = Counter(image for image, _ in {(one[0], file) for one, files in files_of.items() for file in files})
    return detections, sum(n > 1 for n in images_of.values())


def count_detections(detections: Sequence[Mapping], truth: Truth, *, most: int, is_per_class: bool) -> dict[str, int]:
    """Counts that describe a list of detections.

    `duplicate_detections` have image, class, box and score of an earlier one; they stay. `detections_beyond_limit` are
    dropped by the scorer: it uses the `most` most confident per image, or per image and class if `is_per_class`.
    """
    kinds = Counter(map(_identity, detections))
    keys = ("image_id", "category_id") if is_per_class else ("image_id",)
    crowds = Counter(tuple(one[key] for key in keys) for one in detections)
    found = {one["image_id"] for one in detections}
    return {
        "images": len(truth.image_ids),
        "images_without_detections": len(truth.image_ids - found),
        "annotations": len(truth.dataset["annotations"]),
        "detections": len(detections),
        "duplicate_detections": len(detections) - len(kinds),
        "detections_without_area": sum(0 in one["bbox"][2:] for one in detections),
        "detections_beyond_limit": sum(max(0, n - most) for n in crowds.values()),
    }


def only_asked(
    detections: Sequence[dict], truth: Truth, *, asked: str, exist_map: Mapping[Any, Collection] | None = None
) -> list[dict]:
    """The detections that answer a question of the protocol. Gold is not filtered.

    asked: `all` (every category in every image), `rows` (the detections are only those that rows ask for), `present`
        (categories with an annotation in the image, crowds included), `exist_map` (categories that the map lists for
        the image; none for an image that it lacks).
    exist_map: `{image id: category ids}`, see `read_exist_map`.
    """
    if asked in ("all", "rows"):
        return list(detections)
    if asked == "present":
        pairs: Collection = truth.present
    else:
        pairs = {(image_id, category) for image_id, own in exist_map.items() for category in own}
    return [one for one in detections if (one["image_id"], one["category_id"]) in pairs]


def read_exist_map(path: Path, truth: Truth) -> tuple[dict[Any, set], dict[str, int]]:
    """`{image id: category ids}` of the questions that count, and counts of images that only one side has.

    The file (.json or .json.gz) holds `{image id as text: [category name]}`: the categories that a baseline model
    predicted to be present. The published evaluation asked only for these. A detection of another category does not
    count. A gold box always counts, so an object that is not asked for is missed. The map may have images that the
    annotations lack: a subset may be scored with the map of the whole set. Raises `UserError` for unknown category
    names, and for another format.
    """
    content = read_json(path, key="exist_map")
    if not isinstance(content, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in content.values()
    ):
        raise UserError(f"exist_map={path} holds {str(content)[:80]}; {{image id: [category name, …]}} is needed")
    ids = {str(number): number for number in truth.image_ids}
    by_name = {name: number for number, name in truth.class_names.items()}
    faults = [
        f"{path.name}, image {image}: {name!r} is no class of {truth.source}; {suggestion(name, by_name)}"
        f"known: {', '.join(list(by_name)[:5])} …"
        for image, names in content.items()
        for name in names
        if name not in by_name
    ]
    raise_all(faults, heading=f"exist_map={path} has unknown classes:")
    asked = {ids[image]: {by_name[name] for name in names} for image, names in content.items() if image in ids}
    counts = {
        "questions": sum(map(len, asked.values())),
        "images_not_in_exist_map": len(ids) - len(asked),
        "exist_map_images_without_annotations": len(content) - len(asked),
    }
    return asked, counts


def asked_pairs(rows: Sequence[Row], truth: Truth) -> list[set[tuple]]:
    """The `(image id, category id)` pairs of each row, from its `image_id`, and `category_id` or `categories`.

    Raises `UserError` that names the rows whose image or category is not in the annotations, or has another name there.
    """
    image_ids, names, ids = truth.image_ids, truth.class_names, _ids_by_name(truth)
    faults, pairs = [], []
    for row in rows:
        own = set()
        if not _is_in(row.get("image_id"), image_ids):
            faults.append(f"row {row['row_id']}: image_id is {row.get('image_id')!r}")
        elif "categories" in row:
            unknown = [name for name in row["categories"] if name not in ids]
            faults += [f"row {row['row_id']}: the category {name!r} is no class there" for name in unknown]
            own = {(row["image_id"], ids[name]) for name in row["categories"] if name in ids}
        elif not _is_in(row.get("category_id"), names):
            faults.append(f"row {row['row_id']}: category_id is {row.get('category_id')!r}")
        elif normal_name(names[row["category_id"]]) != normal_name(row.get("category", "")):
            here, there = row.get("category"), names[row["category_id"]]
            faults.append(
                f"row {row['row_id']}: category_id {row['category_id']} is {here!r} here, but {there!r} there"
            )
        else:
            own = {(row["image_id"], row["category_id"])}
        pairs.append(own)
    raise_all(faults, heading=f"rows that {truth.source} does not have; rows that were built from it are needed:")
    return pairs


def detections_of(rows: Sequence[Row], answers: Sequence[Sequence[tuple]], truth: Truth) -> tuple[list[dict], int]:
    """Answers in the form of a results file, and the number of boxes left out because their label is no class.

    rows: as in `asked_pairs`. answers: the boxes of each row, `(xyxy, confidence, label)` in pixels.
    """
    ids, detections, n_unknown = _ids_by_name(truth), [], 0
    for row, boxes in zip(rows, answers, strict=True):
        for (x1, y1, x2, y2), score, label in boxes:
            number = row["category_id"] if "categories" not in row else ids.get(label, ids.get(normal_name(label)))
            if number is None:
                n_unknown += 1
                continue
            bbox = [float(value) for value in (x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0))]
            place = {"image_id": row["image_id"], "category_id": number}
            detections.append({**place, "bbox": bbox, "score": float(score)})
    return detections, n_unknown


def _ids_by_name(truth: Truth) -> dict[str, Any]:
    """Category ids by name, and by normal name if only one class has it."""
    alike = Counter(map(normal_name, truth.class_names.values()))
    normal = {normal_name(name): n for n, name in truth.class_names.items() if alike[normal_name(name)] == 1}
    return normal | {name: number for number, name in truth.class_names.items()}


def _is_in(value: Any, known: Collection) -> bool:
    """True if the value is a known id. Never raises for a JSON value."""
    return isinstance(value, int | float | str) and not isinstance(value, bool) and value in known


def _identity(one: Mapping) -> tuple:
    return (one["image_id"], one["category_id"], *one["bbox"], one["score"])


def _detection_faults(one: Any, image_ids: Collection, category_ids: Collection, source: str) -> Iterator[str]:
    if not isinstance(one, dict):
        yield f"{str(one)[:60]!r} found; an object is needed, as in {_FORM}"
        return
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in one]
    if missing:
        yield f"{', '.join(missing)} missing; the keys are {', '.join(map(str, one))}; needed: {_FORM}"
        return
    for key, known in (("image_id", image_ids), ("category_id", category_ids)):
        if not _is_in(one[key], known):
            yield f"{key} is {str(one[key])[:60]!r}, which {source} does not have; an id from there is needed"
    if not is_number(one["score"]):
        yield f"score is {str(one['score'])[:60]!r}; a finite number is needed"
    if fault := xywh_fault(one["bbox"]):
        yield fault
