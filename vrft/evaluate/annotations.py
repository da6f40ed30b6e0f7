"""COCO and LVIS annotation files, read and checked: what is wrong is named before a scorer sees it."""

from __future__ import annotations

import difflib
import gzip
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrft.errors import UserError, raise_all

FREQUENCIES = ("r", "c", "f")


@dataclass(frozen=True)
class Truth:
    """The ground truth of an annotation file.

    dataset: what the scorers read of it, in COCO's form. Annotations are numbered anew from 1: the official code takes
        the id 0 for "not matched".
    source: the file's name, for messages.
    """

    dataset: dict[str, list[dict]]
    source: str

    @property
    def image_ids(self) -> set:
        return {image["id"] for image in self.dataset["images"]}

    @property
    def class_names(self) -> dict[Any, str]:
        """`{category id: name}`, by rising id, as the official scorers order classes."""
        return {one["id"]: one["name"] for one in sorted(self.dataset["categories"], key=lambda one: one["id"])}

    @property
    def present(self) -> set[tuple]:
        """`(image id, category id)` of all annotations, crowds included."""
        return {(one["image_id"], one["category_id"]) for one in self.dataset["annotations"]}

    def of_images(self, image_ids: Collection) -> Truth:
        """The ground truth of these images alone; all classes stay."""
        images = [one for one in self.dataset["images"] if one["id"] in image_ids]
        annotations = [one for one in self.dataset["annotations"] if one["image_id"] in image_ids]
        return Truth({**self.dataset, "images": images, "annotations": annotations}, self.source)

    def of_pairs(self, pairs: Collection[tuple]) -> Truth:
        """The ground truth of these `(image id, category id)` alone; all images and classes stay."""
        kept = [one for one in self.dataset["annotations"] if (one["image_id"], one["category_id"]) in pairs]
        return Truth({**self.dataset, "annotations": kept}, self.source)

    def ids_of(self, names: Iterable[str], source: str) -> list:
        """The ids of these class names. Raises `UserError` naming the unknown ones; `source` says where they stand."""
        names = list(names)
        by_name = {name: number for number, name in self.class_names.items()}
        faults = [
            f"{name!r} is no class of {self.source}; {nearest(name, by_name)}its names are needed, letter by letter"
            for name in dict.fromkeys(names)
            if name not in by_name
        ]
        raise_all(faults, heading=f"{source} has unknown classes:")
        return [by_name[name] for name in dict.fromkeys(names)]


def read_json(path: Path) -> Any:
    """The content of a JSON file, also of one that ends in .gz. Raises `UserError` naming the file if it has none."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        return json.loads(content.decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); plain UTF-8, or the same in .gz, is needed") from None


def read_truth(path: Path, *, is_federated: bool) -> Truth:
    """An annotation file of boxes, checked. Raises `UserError` that lists what is wrong, by id.

    is_federated: True for LVIS, whose images say which categories were looked for, and whose categories how frequent
        they are (v0.5 and v1).
    """
    content = read_json(path)
    form = "{images: […], annotations: […], categories: […]}"
    if not isinstance(content, dict):
        raise UserError(f"annotations={path} holds a {type(content).__name__}; {form} is needed")
    faults = [
        f"{path}: {key} is {str(content.get(key))[:60]}; a list is needed, as in {form}"
        for key in ("images", "annotations", "categories")
        if not isinstance(content.get(key), list)
    ]
    empty = [key for key in ("images", "categories") if content.get(key) == []]
    faults += [f"{path}: {key} is empty; at least one is needed" for key in empty]
    raise_all(faults, heading=f"annotations={path} is no COCO or LVIS annotation file:")
    faults = [*_id_faults(content["images"], "image"), *_id_faults(content["categories"], "category")]
    faults += _id_faults(content["annotations"], "annotation")
    raise_all([f"{path.name}, {fault}" for fault in faults], heading=_heading(path))
    known = {
        "image": {one["id"] for one in content["images"]},
        "category": {one["id"] for one in content["categories"]},
    }
    faults = list(_category_faults(content["categories"], is_federated=is_federated))
    faults += _federated_faults(content["images"], known["category"]) if is_federated else []
    for one in content["annotations"]:
        faults += [f"annotation {one['id']}: {fault}" for fault in _annotation_faults(one, known)]
    raise_all([f"{path.name}, {fault}" for fault in faults], heading=_heading(path))
    return Truth(_needed(content, is_federated=is_federated), path.name)


def box_fault(entry: Mapping) -> str | None:
    """What is wrong with an entry's `bbox`, or None."""
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        return f"bbox is {bbox!r}; four finite numbers [x, y, width, height] are needed"
    if bbox[2] < 0 or bbox[3] < 0:
        return f"bbox is {bbox!r}; [x, y, width, height] is needed, width and height not below 0"
    return None


def is_number(value: Any) -> bool:
    """True for a finite number that is no bool, and that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_in(value: Any, known: Collection) -> bool:
    """True if the value is an id that is known; never raises on what JSON can hold."""
    return isinstance(value, int | float | str) and not isinstance(value, bool) and value in known


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean X? ` for the nearest known name, or nothing.

    >>> nearest("firehydrant", ["fire hydrant", "cat"])
    'did you mean fire hydrant? '
    """
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


_KINDS = ("image", "category")


def _heading(path: Path) -> str:
    return f"annotations={path} cannot be scored against:"


def _id_faults(entries: Sequence, kind: str) -> Iterator[str]:
    seen = set()
    for number, one in enumerate(entries):
        if not isinstance(one, dict):
            yield f"{kind} number {number}: {str(one)[:60]!r} found; an object is needed"
        elif not isinstance(one.get("id"), int) or isinstance(one["id"], bool):
            yield f"{kind} number {number}: id is {str(one.get('id'))[:60]!r}; a whole number is needed"
        elif one["id"] in seen:
            yield f"{kind} {one['id']}: this id stands twice; each {kind} needs its own"
        else:
            seen.add(one["id"])


def _category_faults(categories: Sequence[Mapping], *, is_federated: bool) -> Iterator[str]:
    seen = set()
    for one in categories:
        name = one.get("name")
        if not isinstance(name, str) or not name.strip() or name in seen:
            yield f"category {one['id']}: name is {name!r}; a text is needed that no other category has"
        else:
            seen.add(name)
        if is_federated and one.get("frequency") not in FREQUENCIES:
            yield f"category {one['id']}: frequency is {one.get('frequency')!r}; LVIS has {', '.join(FREQUENCIES)}"


def _federated_faults(images: Sequence[Mapping], known: Collection) -> Iterator[str]:
    for one in images:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = one.get(key)
            if not isinstance(ids, list):
                yield f"image {one['id']}: {key} is {ids!r}; a list is needed (a COCO file? protocol=coco_all)"
            elif unknown := [number for number in ids if not is_in(number, known)]:
                yield f"image {one['id']}: {key} has {unknown[:3]}, ids of no category"


def _annotation_faults(one: Mapping, known: Mapping[str, Collection]) -> Iterator[str]:
    for kind in _KINDS:
        key = f"{kind}_id"
        if not is_in(one.get(key), known[kind]):
            yield f"{key} is {one.get(key)!r}; the id of one of the file's is needed"
    if fault := box_fault(one):
        yield fault
    if not is_number(one.get("area")) or one["area"] < 0:
        yield f"area is {one.get('area')!r}; a number of pixels is needed, as figures by size depend on it"
    if one.get("iscrowd", 0) not in (0, 1):
        yield f"iscrowd is {one['iscrowd']!r}; 0 or 1 is needed"


def _needed(content: Mapping, *, is_federated: bool) -> dict[str, list[dict]]:
    """The parts of an annotation file that a scorer of boxes reads. LVIS knows no crowds."""
    keys = {
        "images": ("id", "neg_category_ids", "not_exhaustive_category_ids"),
        "categories": ("id", "name", "frequency"),
        "annotations": ("image_id", "category_id", "bbox", "area", "iscrowd", "ignore"),
    }
    needed = {
        part: [{key: one[key] for key in own if key in one} for one in content[part]] for part, own in keys.items()
    }
    for number, one in enumerate(needed["annotations"], 1):
        one |= {"id": number, "iscrowd": 0 if is_federated else one.get("iscrowd", 0)}
    return needed
