"""Ground truth for scoring: the boxes of a COCO or LVIS annotation file, in COCO's form."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrft.data.coco_files import Entries, is_number, read_entries
from vrft.errors import raise_all, suggestion

FREQUENCIES = ("r", "c", "f")


@dataclass(frozen=True)
class Truth:
    """The ground truth of an annotation file.

    dataset: the parts that scorers read, in COCO's form. Annotations get new ids from 1: in the official code the id 0
        means "not matched".
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
        """The ground truth of these images only; all classes stay."""
        images = [one for one in self.dataset["images"] if one["id"] in image_ids]
        annotations = [one for one in self.dataset["annotations"] if one["image_id"] in image_ids]
        return Truth({**self.dataset, "images": images, "annotations": annotations}, self.source)

    def of_pairs(self, pairs: Collection[tuple]) -> Truth:
        """The ground truth of these `(image id, category id)` pairs only; all images and classes stay."""
        kept = [one for one in self.dataset["annotations"] if (one["image_id"], one["category_id"]) in pairs]
        return Truth({**self.dataset, "annotations": kept}, self.source)

    def ids_of(self, names: Iterable[str], source: str) -> list:
        """The ids of these class names. source: of the names, for messages. Raises `UserError` for unknown names."""
        names = list(names)
        by_name = {name: number for number, name in self.class_names.items()}
        faults = [
            f"{name!r} is no class of {self.source}; {suggestion(name, by_name)}exact names are needed"
            for name in dict.fromkeys(names)
            if name not in by_name
        ]
        raise_all(faults, heading=f"{source} has unknown classes:")
        return [by_name[name] for name in dict.fromkeys(names)]


def read_truth(path: Path, *, is_federated: bool) -> Truth:
    """The ground truth of an annotation file. Raises `UserError` that lists all its faults.

    is_federated: True for LVIS (v0.5 and v1). Its images list the categories that annotators looked for, and its
        categories have a frequency.
    """
    faults: list[str] = []
    entries = read_entries(
        path,
        key="annotations",
        is_federated=is_federated,
        faults=faults,
        may_be_empty=("annotations",),
        category_faults=_frequency_faults if is_federated else lambda _: (),
        annotation_faults=_area_faults,
    )
    raise_all(faults, heading=f"annotations={path} cannot be used as ground truth:")
    return Truth(_needed(entries, is_federated=is_federated), path.name)


def _frequency_faults(category: Mapping) -> Iterator[str]:
    if category.get("frequency") not in FREQUENCIES:
        yield f"frequency is {category.get('frequency')!r}; LVIS has {', '.join(FREQUENCIES)}"


def _area_faults(annotation: Mapping, _: Mapping) -> Iterator[str]:
    area = annotation.get("area")
    if not is_number(area) or area < 0:
        yield f"area is {area!r}; a number of pixels is needed, as figures by size depend on it"


def _needed(entries: Entries, *, is_federated: bool) -> dict[str, list[dict]]:
    """The parts of an annotation file that a scorer of boxes reads. LVIS has no crowds."""
    parts = {
        "images": (entries.images.values(), ("id", "neg_category_ids", "not_exhaustive_category_ids")),
        "categories": (entries.categories.values(), ("id", "name", "frequency")),
        "annotations": (entries.annotations, ("image_id", "category_id", "bbox", "area", "iscrowd", "ignore")),
    }
    needed = {
        part: [{key: one[key] for key in keys if key in one} for one in own] for part, (own, keys) in parts.items()
    }
    for number, one in enumerate(needed["annotations"], 1):
        one |= {"id": number, "iscrowd": 0 if is_federated else one.get("iscrowd", 0)}
    return needed
