"""COCO and LVIS annotation files, read and checked entry by entry."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vrft.errors import UserError

SLACK = 1.0
"""Pixels by which a box may leave its image and is cut to it: COCO's own do so by rounding."""
CLIPPED = "boxes left their image by at most a pixel and were cut to it"
FLAT = "boxes without area were left out"
CROWD = "boxes around crowds were left out"

_SECTIONS = ("images", "categories", "annotations")
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
_USED = ("id", "image_id", "category_id", "bbox", "iscrowd")


class AnnotatedImage(NamedTuple):
    """files: where it may lie below the folder of images, the likeliest first. The ids are those of categories that a
    federated file says are absent, and of those not all of whose objects have boxes."""

    files: tuple[str, ...]
    wh: tuple[int, int]
    negative_ids: frozenset[int] = frozenset()
    not_exhaustive_ids: frozenset[int] = frozenset()


@dataclass
class Annotations:
    """What a file holds, by its own ids.

    images; categories, as they stand. boxes: `[(category id, xyxy)]` of each image in pixels, without crowds. present:
    the categories of each image, those with nothing but crowds included. crowds: (image id, category id) of these.
    faulty: (image id, category id) of the annotations that something is wrong with, so that their rows would be wrong.
    """

    name: str
    images: dict[int, AnnotatedImage] = field(default_factory=dict)
    categories: dict[int, dict[str, Any]] = field(default_factory=dict)
    boxes: dict[int, list[tuple[int, tuple[float, ...]]]] = field(default_factory=dict)
    present: dict[int, set[int]] = field(default_factory=dict)
    crowds: set[tuple[int, int]] = field(default_factory=set)
    faulty: set[tuple[int, int]] = field(default_factory=set)


def read_annotations(
    path: Path, *, key: str, is_federated: bool, faults: list[str], notes: dict[str, int]
) -> Annotations:
    """The contents of a file; entries that cannot be used are left out and appended to `faults`.

    is_federated: True for LVIS, whose images say which categories were looked for. notes: counts what is passed over
    as the format has it. Raises `UserError` naming the config's `key` where the file as a whole is not of this kind.
    """
    sections = _load(path, key=key)
    found, bad_ids = Annotations(path.name), set()
    for entry, place in _with_ids(sections.pop("categories"), "categories", path.name, faults):
        if not isinstance(entry.get("name"), str) or not entry["name"].strip():
            faults.append(f"{place}: name is {entry.get('name')!r}; a text is right")
            bad_ids.add(("category", str(entry["id"])))
        else:
            found.categories[entry["id"]] = entry
    bad_ids |= {("category", str(number)) for number in _repeated_names(found, faults)}
    for entry, place in _with_ids(sections.pop("images"), "images", path.name, faults):
        try:
            found.images[entry["id"]] = _image(entry, found.categories, is_federated=is_federated)
        except ValueError as error:
            faults.append(f"{place}: {error}")
            bad_ids.add(("image", str(entry["id"])))
    counts = Counter()
    for entry, place in _with_ids(sections.pop("annotations"), "annotations", path.name, faults, found.faulty):
        pair = entry.get("image_id"), entry.get("category_id")
        if bad_ids and not bad_ids.isdisjoint(zip(("image", "category"), map(str, pair), strict=True)):
            continue  # the fault is named there
        try:
            _add_box(found, entry, counts)
        except ValueError as error:
            faults.append(f"{place}, image_id {pair[0]!r}, category_id {pair[1]!r}: {error}")
            if all(type(value) is int for value in pair):
                found.faulty.add(pair)
    for note, count in counts.items():
        notes[note] = notes.get(note, 0) + count
    return found


def _load(path: Path, *, key: str) -> dict[str, list]:
    if not path.is_file():
        raise UserError(f"{key} is {str(path)!r}: there is no such file; a COCO or LVIS annotation file is needed")
    try:
        # Without its outlines, which are nine tenths of it, COCO's largest file takes a gigabyte less.
        sections = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_without_outline)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); a COCO or LVIS annotation file is right for {key}") from None
    if not isinstance(sections, dict):
        kind = type(sections).__name__
        raise UserError(
            f"{path} holds a {kind}; an object with {', '.join(_SECTIONS)} is right (a list is for results)"
        )
    for name in _SECTIONS:
        if not isinstance(sections.get(name), list) or not sections[name]:
            value = str(sections.get(name, "missing"))[:60]
            raise UserError(f"{path}: {name} is {value}; a list with at least one entry is right")
    return sections


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in _USED if key in entry} if "segmentation" in entry else entry


def _with_ids(
    entries: list, section: str, file: str, faults: list[str], faulty: set | None = None
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the entries that are objects with an id of their own, each with its place for messages."""
    seen = set()
    for position, entry in enumerate(entries):
        place = f"{file}, {section}[{position}]"
        if not isinstance(entry, dict):
            faults.append(f"{place}: {type(entry).__name__} found; an object is right")
            continue
        number = entry.get("id")
        if type(number) is int and number not in seen:
            seen.add(number)
            yield entry, f"{file}, {section}[{position}] (id {number})"
            continue
        if faulty is not None and all(type(entry.get(key)) is int for key in ("image_id", "category_id")):
            faulty.add((entry["image_id"], entry["category_id"]))
        if type(number) is int:
            faults.append(f"{place}: id {number} is that of an earlier entry too; ids must be unique")
        else:
            faults.append(f"{place}: id is {number!r}; a whole number is right")


def _repeated_names(found: Annotations, faults: list[str]) -> list[int]:
    """Take out the categories whose name an earlier one has, and return their ids."""
    names: dict[str, int] = {}
    repeated = [
        number for number, category in found.categories.items() if names.setdefault(category["name"], number) != number
    ]
    for number in repeated:
        name = found.categories.pop(number)["name"]
        faults.append(
            f"{found.name}, categories (id {number}): the name {name!r} is that of category {names[name]} too; "
            "each must have its own"
        )
    return repeated


def _image(entry: dict[str, Any], categories: dict[int, Any], *, is_federated: bool) -> AnnotatedImage:
    for side in ("width", "height"):
        if type(entry.get(side)) is not int or entry[side] < 1:
            raise ValueError(f"{side} is {entry.get(side)!r}; a whole number of pixels is right")
    ids = []
    for key in _FEDERATED if is_federated else ():
        values = entry.get(key)
        if not isinstance(values, list):
            raise ValueError(f"{key} is {values!r}; an LVIS image has a list of category ids (dataset=coco needs none)")
        if unknown := [value for value in values if type(value) is not int or value not in categories]:
            raise ValueError(f"{key} has {unknown[0]!r}, which is no category's id")
        ids.append(frozenset(values))
    return AnnotatedImage(_files(entry), (entry["width"], entry["height"]), *ids)


def _files(entry: dict[str, Any]) -> tuple[str, ...]:
    """`file_name`; else the end of `coco_url`, with and without its folder, as LVIS images lie in two of COCO's."""
    name, address = entry.get("file_name"), entry.get("coco_url")
    if isinstance(name, str) and name.strip():
        return (name,)
    if name is None and isinstance(address, str) and address.count("/") >= 2:
        return "/".join(address.split("/")[-2:]), address.rpartition("/")[2]
    raise ValueError(f"file_name is {name!r} and coco_url {address!r}; one of them must name the image's file")


def _add_box(found: Annotations, entry: dict[str, Any], counts: Counter) -> None:
    """Raise ValueError where something is wrong with an annotation; else file it under its image."""
    image_id, category_id = entry.get("image_id"), entry.get("category_id")
    if type(image_id) is not int or image_id not in found.images:
        raise ValueError(f"image_id is {image_id!r}, which is no image's id")
    if type(category_id) is not int or category_id not in found.categories:
        raise ValueError(f"category_id is {category_id!r}, which is no category's id")
    if entry.get("iscrowd", 0) not in (0, 1):
        raise ValueError(f"iscrowd is {entry['iscrowd']!r}; 0 or 1 is right")
    xyxy, is_clipped = _xyxy(entry.get("bbox"), found.images[image_id].wh)
    found.present.setdefault(image_id, set()).add(category_id)
    if entry.get("iscrowd"):
        counts[CROWD] += 1
        found.crowds.add((image_id, category_id))
    elif xyxy[2] <= xyxy[0] or xyxy[3] <= xyxy[1]:
        counts[FLAT] += 1
    else:
        found.boxes.setdefault(image_id, []).append((category_id, xyxy))
        if is_clipped:
            counts[CLIPPED] += 1


def _xyxy(bbox: Any, image_wh: tuple[int, int]) -> tuple[tuple[float, ...], bool]:
    """The box in the image, and True if it had to be cut. Raises ValueError for one that is none or lies outside."""
    is_box = isinstance(bbox, list) and len(bbox) == 4
    if not is_box or not all(type(value) in (int, float) and abs(value) < 1e9 for value in bbox):
        raise ValueError(f"bbox is {bbox!r}; four finite numbers [x, y, width, height] are right")
    x, y, width, height = bbox
    if width < 0 or height < 0:
        raise ValueError(f"bbox is {bbox!r}, of negative size; [x, y, width, height] is right")
    over = max(-x, -y, x + width - image_wh[0], y + height - image_wh[1])
    if over > SLACK:
        raise ValueError(
            f"bbox is {bbox!r}, which leaves the image of {image_wh[0]} × {image_wh[1]} pixels by {over:.6g}; "
            "up to 1 is cut off"
        )
    xyxy = max(x, 0), max(y, 0), min(x + width, image_wh[0]), min(y + height, image_wh[1])
    return xyxy, over > 1e-6
