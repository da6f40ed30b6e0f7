"""Reader of COCO and LVIS annotation files, for building rows and for scoring. It checks every entry."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vrft.data.readers import read_json
from vrft.errors import UserError, raise_all

SLACK = 1.0
"""A box may extend past its image by this many pixels, and is clipped: boxes of COCO do so by rounding."""
CLIPPED = "boxes left their image by at most a pixel and were cut to it"
FLAT = "boxes without area were left out"
CROWD = "boxes around crowds were left out"

_SECTIONS = ("images", "categories", "annotations")
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
_USED = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore")


@dataclass
class Entries:
    """The valid entries of a file, unchanged. images, categories: by id, in the file's order.

    faulty: (image id, category id) of each invalid annotation.
    """

    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    categories: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    faulty: set[tuple[int, int]] = field(default_factory=set)


def _no_faults(*_: Mapping) -> Iterator[str]:
    yield from ()


def read_entries(
    path: Path,
    *,
    key: str,
    is_federated: bool,
    faults: list[str],
    may_be_empty: Collection[str] = (),
    category_faults: Callable[[Mapping], Iterable[str]] = _no_faults,
    image_faults: Callable[[Mapping], Iterable[str]] = _no_faults,
    annotation_faults: Callable[[Mapping, Mapping], Iterable[str]] = _no_faults,
) -> Entries:
    """The valid entries of a file. Each invalid entry adds one text to `faults`.

    Checked are ids, names, the category lists of LVIS images, and each box by itself. The caller's functions return
    further faults: of a category, of an image, of an annotation with its image.
    is_federated: True for LVIS, whose images list the categories that annotators looked for.
    may_be_empty: the sections that may be empty lists.
    Raises `UserError` that names the config's `key` if the file as a whole has another format.
    """
    sections, found = read_sections(path, key=key, may_be_empty=may_be_empty), Entries()
    names, bad = {}, {"image_id": set(), "category_id": set()}
    for entry, place in with_ids(sections.pop("categories"), "categories", path.name, faults):
        if own := [*_name_faults(entry, names), *category_faults(entry)]:
            faults.append(f"{place}: {'; '.join(own)}")
            bad["category_id"].add(entry["id"])
        else:
            found.categories[entry["id"]] = entry
    known = found.categories.keys() | bad["category_id"]
    for entry, place in with_ids(sections.pop("images"), "images", path.name, faults):
        if own := [*(_federated_faults(entry, known) if is_federated else ()), *image_faults(entry)]:
            faults.append(f"{place}: {'; '.join(own)}")
            bad["image_id"].add(entry["id"])
        else:
            found.images[entry["id"]] = entry
    for entry, place in with_ids(sections.pop("annotations"), "annotations", path.name, faults, found.faulty):
        pair = image_id, category_id = entry.get("image_id"), entry.get("category_id")
        are_ids = type(image_id) is int and type(category_id) is int
        if are_ids and (image_id in bad["image_id"] or category_id in bad["category_id"]):
            continue  # the fault of that image or category is listed already
        own = list(_annotation_faults(entry, found)) or list(annotation_faults(entry, found.images[image_id]))
        if own:
            faults.append(f"{place}, image_id {image_id!r}, category_id {category_id!r}: {'; '.join(own)}")
            found.faulty |= {pair} if are_ids else set()
        else:
            found.annotations.append(entry)
    return found


def read_sections(
    path: Path, *, key: str, sections: Collection[str] = _SECTIONS, may_be_empty: Collection[str] = ()
) -> dict[str, list]:
    """The lists of an annotation file, without segmentation outlines: they are nine tenths of it, and unused.

    Raises `UserError` that names the config's `key` if a list is missing, or empty and not in `may_be_empty`.
    """
    content = read_json(path, key=key, object_hook=_without_outline)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(
            f"{key} is {path}, which holds a {kind}; an object with {', '.join(sections)} is right (a list is for "
            "results)"
        )
    faults = [
        f"{name} is {str(content.get(name, 'missing'))[:60]}; a list with at least one entry is right"
        for name in sections
        if not isinstance(content.get(name), list) or (not content[name] and name not in may_be_empty)
    ]
    raise_all(faults, heading=f"{key} is {path}, which is no COCO or LVIS annotation file:")
    return {name: content[name] for name in sections}


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in _USED if key in entry} if "segmentation" in entry else entry


def with_ids(
    entries: list, section: str, file: str, faults: list[str], faulty: set | None = None
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each entry that is an object with a unique id, and its location for messages. faulty: as in `Entries`."""
    seen = set()
    for position, entry in enumerate(entries):
        place = f"{file}, {section}[{position}]"
        if not isinstance(entry, dict):
            faults.append(f"{place}: {type(entry).__name__} found; an object is right")
            continue
        number = entry.get("id")
        if type(number) is int and number not in seen:
            seen.add(number)
            yield entry, f"{place} (id {number})"
            continue
        if faulty is not None and all(type(entry.get(key)) is int for key in ("image_id", "category_id")):
            faulty.add((entry["image_id"], entry["category_id"]))
        if type(number) is int:
            faults.append(f"{place}: an earlier entry has the id {number} too; ids must be unique")
        else:
            faults.append(f"{place}: id is {number!r:.60}; a whole number is right")


def _name_faults(entry: Mapping, names: dict[str, int]) -> Iterator[str]:
    """What is wrong with a category's name. names: `{name: id}` of earlier categories; this one is added."""
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        yield f"name is {name!r}; a text is right"
    elif names.setdefault(name, entry["id"]) != entry["id"]:
        yield f"category {names[name]} has the name {name!r} too; names must be unique"


def _federated_faults(entry: Mapping, known: Collection[int]) -> Iterator[str]:
    for key in _FEDERATED:
        ids = entry.get(key)
        if not isinstance(ids, list):
            yield f"{key} is {ids!r}; an LVIS image has a list of category ids (a COCO file has none)"
        elif unknown := [number for number in ids if type(number) is not int or number not in known]:
            yield f"{key} has {unknown[0]!r}, which is no category's id"


def _annotation_faults(entry: Mapping, found: Entries) -> Iterator[str]:
    for key, known in (("image_id", found.images), ("category_id", found.categories)):
        if type(entry.get(key)) is not int or entry[key] not in known:
            yield f"{key} is {entry.get(key)!r}, which is no {key.removesuffix('_id')}'s id"
    if fault := xywh_fault(entry.get("bbox")):
        yield fault
    if entry.get("iscrowd", 0) not in (0, 1):
        yield f"iscrowd is {entry['iscrowd']!r}; 0 or 1 is right"


def xywh_fault(bbox: Any) -> str | None:
    """What is wrong with a box as COCO writes it, or None.

    >>> xywh_fault([0, 0, -1, 1])
    'bbox is [0, 0, -1, 1], of negative size; [x, y, width, height] is right, width and height not below 0'
    """
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        return f"bbox is {bbox!r}; four finite numbers [x, y, width, height] are right"
    if bbox[2] < 0 or bbox[3] < 0:
        return f"bbox is {bbox!r}, of negative size; [x, y, width, height] is right, width and height not below 0"
    return None


def is_number(value: Any) -> bool:
    """True for a finite int or float, but not for a bool or for an int too large for a float."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


class AnnotatedImage(NamedTuple):
    """files: possible paths below the folder of images, the likeliest first. wh: pixels.

    negative_ids: categories that LVIS lists as absent. not_exhaustive_ids: categories with objects without a box.
    """

    files: tuple[str, ...]
    wh: tuple[int, int]
    negative_ids: frozenset[int] = frozenset()
    not_exhaustive_ids: frozenset[int] = frozenset()


@dataclass
class Annotations:
    """The parts of a file that rows are built from, by the file's own ids.

    name: of the file. categories: the entries, unchanged.
    boxes: `[(category id, xyxy)]` of each image, in pixels, without crowds.
    present: the categories of each image, also those that have only crowds.
    crowds: (image id, category id) with a crowd.
    faulty: (image id, category id) of invalid annotations: a row about them would have wrong gold.
    """

    name: str
    images: dict[int, AnnotatedImage]
    categories: dict[int, dict[str, Any]]
    faulty: set[tuple[int, int]]
    boxes: dict[int, list[tuple[int, tuple[float, ...]]]] = field(default_factory=dict)
    present: dict[int, set[int]] = field(default_factory=dict)
    crowds: set[tuple[int, int]] = field(default_factory=set)


def read_annotations(
    path: Path, *, key: str, is_federated: bool, faults: list[str], notes: dict[str, int]
) -> Annotations:
    """The parts of a file that rows are built from. Each invalid entry adds one text to `faults`.

    notes: `{CLIPPED, FLAT or CROWD: number of boxes}`; this adds to it. Raises `UserError` as `read_entries`.
    """
    entries = read_entries(
        path,
        key=key,
        is_federated=is_federated,
        faults=faults,
        image_faults=_image_faults,
        annotation_faults=_outside_faults,
    )
    images = {number: _image(entry, is_federated=is_federated) for number, entry in entries.images.items()}
    found, counts = Annotations(path.name, images, entries.categories, entries.faulty), Counter()
    for entry in entries.annotations:
        _add_box(found, entry, counts)
    for note, count in counts.items():
        notes[note] = notes.get(note, 0) + count
    return found


def _image_faults(entry: Mapping) -> Iterator[str]:
    for side in ("width", "height"):
        if type(entry.get(side)) is not int or entry[side] < 1:
            yield f"{side} is {entry.get(side)!r}; a whole number of pixels is right"
    if not _files(entry):
        name, address = entry.get("file_name"), entry.get("coco_url")
        yield f"file_name is {name!r} and coco_url {address!r}; one of them must name the image's file"


def _files(entry: Mapping) -> tuple[str, ...]:
    """`file_name`, or the end of `coco_url` with and without its folder: LVIS images are in two folders of COCO."""
    name, address = entry.get("file_name"), entry.get("coco_url")
    if isinstance(name, str) and name.strip():
        return (name,)
    if name is None and isinstance(address, str) and address.count("/") >= 2:
        return "/".join(address.split("/")[-2:]), address.rpartition("/")[2]
    return ()


def _image(entry: Mapping, *, is_federated: bool) -> AnnotatedImage:
    ids = [frozenset(entry[key]) for key in _FEDERATED] if is_federated else []
    return AnnotatedImage(_files(entry), (entry["width"], entry["height"]), *ids)


def _outside_faults(entry: Mapping, image: Mapping) -> Iterator[str]:
    if (over := _overhang(entry["bbox"], (image["width"], image["height"]))) > SLACK:
        yield (
            f"bbox is {entry['bbox']!r}, which leaves the image of {image['width']} × {image['height']} pixels by "
            f"{over:.6g}; up to 1 is cut off"
        )


def _overhang(xywh: list[float], image_wh: tuple[int, int]) -> float:
    """Pixels by which a box extends past its image, at the worst side; negative inside."""
    x, y, width, height = xywh
    return max(-x, -y, x + width - image_wh[0], y + height - image_wh[1])


def _add_box(found: Annotations, entry: Mapping, counts: Counter) -> None:
    """Add an annotation to its image, clipped to it."""
    pair = image_id, category_id = entry["image_id"], entry["category_id"]
    (x, y, width, height), image_wh = entry["bbox"], found.images[image_id].wh
    xyxy = max(x, 0), max(y, 0), min(x + width, image_wh[0]), min(y + height, image_wh[1])
    found.present.setdefault(image_id, set()).add(category_id)
    if entry.get("iscrowd"):
        counts[CROWD] += 1
        found.crowds.add(pair)
    elif xyxy[2] <= xyxy[0] or xyxy[3] <= xyxy[1]:
        counts[FLAT] += 1
    else:
        found.boxes.setdefault(image_id, []).append((category_id, xyxy))
        if _overhang(entry["bbox"], image_wh) > 1e-6:
            counts[CLIPPED] += 1
