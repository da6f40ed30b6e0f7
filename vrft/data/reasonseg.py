"""ReasonSeg, as LISA published it: NAME.jpg beside NAME.json in LabelMe's form. Each text gives one row.

    {"text": ["what one drinks from"], "is_sentence": true, "shapes": [{"label": "target", "points": [[3, 4], …]}, …]}

A row has `phrase`, `gold` (the bounding box of all target polygons, in pixels), `is_sentence`, and for masks
`target_polygons` and `ignore_polygons`, lists of [[x, y], …] as in the file. Shapes with the label `flag` are skipped.
Shapes with `ignore` in their label belong neither to the mask nor to its background, as in LISA (arXiv:2308.00692).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vrft.data.assemble import build_splits
from vrft.data.images import upright_wh
from vrft.data.options import CommonOptions
from vrft.data.readers import Located
from vrft.errors import UserError
from vrft.tasks import Task
from vrft.tasks.rows import Row

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Options(CommonOptions):
    """The keys of `dataset` that only this source has.

    path: the folder of the pairs, or a folder with one subfolder per split.
    split, test_split: the subfolders for training and for the test; null: PATH itself, and no separate test set.
    test_path: the folder of a separate test set.
    """

    path: str
    split: str | None = None
    test_split: str | None = None
    test_path: str | None = None


def build(options: dict, *, task: Task, out_dir: Path, seed: int) -> dict[str, list[Row]]:
    """The rows of every split (see `vrft.data.assemble`). Raises `UserError` for a task without a box or point."""
    refuse_other_tasks(task, source="ReasonSeg")
    return build_splits(options, own=Options, read=read, task=task, out_dir=out_dir, seed=seed)


def refuse_other_tasks(task: Task, *, source: str) -> None:
    """Raise `UserError` for a task that does not take rows of a phrase and one box."""
    if getattr(task, "answer_kind", "mixed") not in ("box", "point", ""):
        raise UserError(
            f"task={task.name} has no rows in {source}; right are grounding, reasoning_grounding and pointing"
        )


def read(options: Options, *, is_test: bool, faults: list[str]) -> tuple[Iterator[Located], Path]:
    """The raw rows of the training or test source, and the folder of relative image paths.

    Each bad pair adds a text to `faults`. Raises `UserError` for a folder without pairs.
    """
    path = Path((options.test_path if is_test else None) or options.path)
    split = (options.test_split if is_test else None) or options.split
    folder = path / split if split else path
    if not folder.is_dir():
        key = "dataset.test_path" if is_test and options.test_path else "dataset.path"
        raise UserError(
            f"{key} and the split {split!r} give {str(folder)!r}: there is no such folder; "
            "for pairs in the folder itself the split is null"
        )
    images = _images_by_stem(folder, faults)
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".json")
    if not files:
        raise UserError(f"{folder} has no .json file; NAME.json beside each NAME.jpg is right")
    faults += [
        f"{images[stem].name} has no {stem}.json" for stem in sorted(images.keys() - {file.stem for file in files})
    ]
    prefix = ("test:" if is_test and options.test_path else "") + (f"{split}/" if split else "")
    return _rows(files, images, root=path, prefix=prefix, faults=faults), path


def _rows(
    files: list[Path], images: dict[str, Path], *, root: Path, prefix: str, faults: list[str]
) -> Iterator[Located]:
    for file in files:
        if file.stem not in images:
            faults.append(f"{file.name}: there is no image {file.stem}.jpg beside it")
            continue
        image = images[file.stem].relative_to(root).as_posix()
        try:
            columns, texts = read_label_file(file, image_wh=upright_wh(image, root))
        except ValueError as error:
            faults.append(f"{file.name}: {error}")
            continue
        for number, text in enumerate(texts, 1):
            row_id = f"{prefix}{file.stem}-{number}"
            yield file.name, number, {"row_id": row_id, "image": image, "phrase": text, **columns}


def read_label_file(file: Path, *, image_wh: Sequence[int] | None) -> tuple[dict[str, Any], list[str]]:
    """The columns that all rows of a file share, and its texts. image_wh: None leaves the box unclipped.

    Raises ValueError that says what is wrong with the file.
    """
    label = _json_object(file)
    texts = [label["text"]] if isinstance(label.get("text"), str) else label.get("text")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"text is {shown(texts)}; a list of at least one text, none of them blank, is needed")
    shapes = label.get("shapes")
    if not isinstance(shapes, list):
        raise ValueError(f"shapes is {shown(shapes)}; a list of {{label, points}} is needed")
    polygons: dict[str, list] = {"target": [], "ignore": [], "flag": []}
    for number, shape in enumerate(shapes, 1):
        kind = _kind(shape, number)
        if kind != "flag":
            polygons[kind].append(_polygon(shape, number))
    if not polygons["target"]:
        raise ValueError("no shape has the label target; at least one is needed")
    points = [point for polygon in polygons["target"] for point in polygon]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    columns = {
        "gold": clip_by_a_pixel([min(xs), min(ys), max(xs), max(ys)], image_wh),
        "target_polygons": polygons["target"],
        "ignore_polygons": polygons["ignore"],
    }
    if isinstance(label.get("is_sentence"), bool):
        columns["is_sentence"] = label["is_sentence"]
    return columns, texts


def clip_by_a_pixel(xyxy: list[float], image_wh: Sequence[int] | None) -> list[float]:
    """The box, clipped if it extends past the image by at most one pixel (rounding). A larger excess stays.

    >>> clip_by_a_pixel([-0.5, 2, 64.75, 50], (64, 48))
    [0, 2, 64, 50]
    """
    if image_wh is None:
        return xyxy
    width, height = image_wh
    limits = ((0, width), (0, height)) * 2
    return [
        low if low - 1 <= value < low else high if high < value <= high + 1 else value
        for value, (low, high) in zip(xyxy, limits, strict=True)
    ]


def _images_by_stem(folder: Path, faults: list[str]) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        is_image = file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        if is_image and (first := images.setdefault(file.stem, file)) != file:
            faults.append(f"{first.name} and {file.name} both belong to {file.stem}.json; keep one")
    return images


def _json_object(file: Path) -> dict[str, Any]:
    """The object of a JSON file in UTF-8, or in the Windows code page of old files."""
    data = file.read_bytes()
    for encoding in ("utf-8-sig", "cp1252", "latin-1"):
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    try:
        label = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); one object in LabelMe's form is right") from None
    if not isinstance(label, dict):
        raise ValueError(f"holds a {type(label).__name__}; one object in LabelMe's form is right")
    return label


def _kind(shape: Any, number: int) -> str:
    """`target`, `ignore` or `flag`, from the label of a shape."""
    name = shape.get("label") if isinstance(shape, dict) else None
    if isinstance(name, str):
        name = name.strip().lower()
        if name in ("target", "flag"):
            return name
        if "ignore" in name:
            return "ignore"
    raise ValueError(f"shape {number} has the label {shown(name)}; target, ignore and flag are known")


def _polygon(shape: dict[str, Any], number: int) -> list[list[float]]:
    points = shape.get("points")
    if not isinstance(points, list) or len(points) < 3:
        raise ValueError(f"shape {number} has the points {shown(points)}; a polygon of at least 3 [x, y] is needed")
    for point in points:
        is_pair = isinstance(point, list) and len(point) == 2
        if not is_pair or not all(type(v) in (int, float) and abs(v) < 1e9 for v in point):
            raise ValueError(f"shape {number} has the point {shown(point)}; two finite numbers [x, y] are needed")
    return points


def shown(value: Any) -> str:
    """A value for a message. A container is named by its type only, because it may be nested without end."""
    if value is None or isinstance(value, str | bool | float) or (isinstance(value, int) and abs(value) < 10**18):
        return repr(value)[:100]
    return f"a {type(value).__name__}"
