"""Class folders, lists of labelled images, and the published layouts of four sets: rows `{image, gold: class name}`.

    folders    PATH/[SPLIT/]CLASS/…/NAME.jpg
    list       a list of `image label` (blank, tab or comma; a label is a name, or its number in `classes`), or a .pth
               of `[{image path: {"label": number, "pred_class": [numbers]}}]`
    flowers    Oxford Flowers 102: jpg/image_00001.jpg, imagelabels.mat, setid.mat; class names from `classes`
    aircraft   FGVC-Aircraft: data/images, data/images_LEVEL_SPLIT.txt
    cars       Stanford Cars: cars_SPLIT/, devkit/cars_meta.mat, cars_SPLIT_annos.mat, cars_test_annos_withlabels.mat
    pets       Oxford-IIIT Pets: images/, annotations/SPLIT.txt; class names from the file names

Layouts as in the documentation of torchvision.datasets.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from vrft.data.assemble import build_splits
from vrft.data.class_names import ClassNames, Labelled, read_class_names, read_lines, read_pth_labels
from vrft.data.options import AtLeastOne, AtLeastZero, CommonOptions
from vrft.data.published_layouts import aircraft, cars, flowers, pets
from vrft.data.readers import Located
from vrft.errors import UserError
from vrft.tasks import Task
from vrft.tasks.answers import normal_name
from vrft.tasks.rows import Row

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")


class Options(CommonOptions):
    """The keys of `dataset` that only this source has.

    path, layout: the folder (for `list`: the file), and its layout.
    split, test_split: the parts for training and for the test, by the layout's own names; null: there is only one part,
        or no separate test set. Class folders have parts if PATH/SPLIT is a folder of folders; lists have none.
    test_path: a separate test set of the same layout.
    classes: a file of class names, one a line. Labels are these names, or count from `first_label` (flowers: from 1).
    class_depth: the number of folder names in a class ("animals/dog" has 2).
    path_parts: the number of last parts of a listed image path that are used; null: all.
    level: what an aircraft's class is: its variant, family or manufacturer.
    blank_underscores: True replaces underscores of folder and file names by blanks.
    candidates: True adds all class names to each row, so the question asks for one of them.
    """

    path: str
    layout: Literal["folders", "list", "flowers", "aircraft", "cars", "pets"] = "folders"
    split: str | None = None
    test_split: str | None = None
    test_path: str | None = None
    classes: str | None = None
    first_label: AtLeastZero = 0
    class_depth: AtLeastOne = 1
    path_parts: AtLeastOne | None = None
    level: Literal["variant", "family", "manufacturer"] = "variant"
    blank_underscores: bool = True
    candidates: bool = False

    @property
    def has_own_test(self) -> bool:
        if self.test_path is not None or self.layout == "list":
            return self.test_path is not None
        if self.layout == "folders":
            return _part(Path(self.path), self.test_split) is not None
        return self.test_split is not None

    def faults(self) -> list[str]:
        """Keys that contradict each other."""
        if self.layout != "flowers" or self.classes is not None:
            return []
        return ["dataset.classes is null, and flowers have numbers alone; a file of 102 names is needed"]


def build(options: dict, *, task: Task, out_dir: Path, seed: int) -> dict[str, list[Row]]:
    """The rows of every split (see `vrft.data.assemble`). Raises `UserError` for a task without names."""
    if getattr(task, "answer_kind", "mixed") not in ("name", ""):
        raise UserError(f"task={task.name} has no rows in folders of classes; task=classification has")
    return build_splits(options, own=Options, read=read, task=task, out_dir=out_dir, seed=seed)


def read(options: Options, *, is_test: bool, faults: list[str]) -> tuple[Iterator[Located], Path]:
    """The raw rows of the training or test source, and the folder of relative image paths.

    Each bad file or line adds a text to `faults`. Raises `UserError` if no row can be read at all.
    """
    key = "dataset.test_path" if is_test and options.test_path else "dataset.path"
    path = Path((options.test_path if is_test else None) or options.path)
    split = (options.test_split if is_test else None) or options.split
    is_found = path.is_file() if options.layout == "list" else path.is_dir()
    if not is_found:
        raise UserError(f"{key} is {str(path)!r}: there is no such {'file' if options.layout == 'list' else 'folder'}")
    names = read_class_names(options.classes, key="dataset.classes", is_numbered=True) if options.classes else None
    labelled = LAYOUTS[options.layout](path, split, ClassNames(options, names, faults))
    prefix = "test:" if is_test and options.test_path else ""
    candidates = {"candidates": names or sorted({item.name for item in labelled})} if options.candidates else {}
    rows = (
        (file, number, {"row_id": prefix + image, "image": image, "gold": name, **(more or {}), **candidates})
        for image, name, file, number, more in labelled
    )
    return rows, path.parent if options.layout == "list" else path


def _class_folders(path: Path, split: str | None, classes: ClassNames) -> list[Labelled]:
    top, depth, faults = _part(path, split) or path, classes.options.class_depth, classes.faults
    if top == path and (parts := [part for part in ("train", "val", "valid", "test") if _part(path, part)]):
        raise UserError(f"{path} has the parts {', '.join(parts)}, and the split is {split!r}; name one of them")
    labelled, stems, full = [], {}, set()
    for file in _files_below(top):
        image, folders = file.relative_to(path).as_posix(), file.relative_to(top).parts[:-1]
        full.update(folders[:1])
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            faults.append(f"{image} is no image file ({', '.join(IMAGE_SUFFIXES)}); move it out of {path}")
        elif len(folders) < depth:
            faults.append(f"{image} lies in no class folder; right is {'CLASS/' * depth}{file.name}")
        elif (first := stems.setdefault(image.removesuffix(file.suffix), image)) != image:
            faults.append(f"{image} and {first} differ only in their suffixes; keep one")
        elif name := classes.named(classes.written("/".join(folders[:depth])), image):
            labelled.append(Labelled(image, name, image, 1))
    subfolders = _subfolders(top)
    empty = [folder.name for folder in subfolders if folder.name not in full]
    faults += [f"the class folder {name} is empty; fill or remove it" for name in empty]
    first_of: dict[str, str] = {}
    for folder in dict.fromkeys(Path(item.image).relative_to(top.relative_to(path)).parts[:depth] for item in labelled):
        name = "/".join(folder)
        if (other := first_of.setdefault(normal_name(name), name)) != name:
            faults.append(
                f"the class folders {other!r} and {name!r} are the same class when names are compared; rename one"
            )
    if not subfolders and not labelled:
        raise UserError(f"{top} holds no class folders; right is {top.name}/CLASS/NAME.jpg")
    return labelled


def _list(path: Path, split: str | None, classes: ClassNames) -> list[Labelled]:
    is_pth = path.suffix == ".pth"
    entries = (
        read_pth_labels(path, classes.faults, key="dataset.path") if is_pth else _text_entries(path, classes.faults)
    )
    labelled, first = [], {}
    for number, image, label, prediction in entries:
        where = f"{path.name}, row {number}"
        if first.setdefault(image, number) != number:
            classes.faults.append(f"{where}: the image {image!r} is that of row {first[image]}; keep one")
        elif name := classes.labelled(label, where):
            predicted = {} if prediction is None else {"prediction": classes.labelled(prediction, where)}
            parts = classes.options.path_parts
            kept = "/".join(Path(image).parts[-parts:]) if parts else image
            labelled.append(Labelled(kept, name, path.name, number, predicted))
    return labelled


def _text_entries(path: Path, faults: list[str]) -> Iterator[tuple[int, str, str, None]]:
    """`(line, image, label, None)` of each line. The separator of all lines: tab, else comma, else blank."""
    lines = [(n, line) for n, line in enumerate(read_lines(path, key="dataset.path"), 1) if line.strip()]
    mark = next((mark for mark in "\t," if all(mark in line for _, line in lines)), None)
    for position, (number, line) in enumerate(lines):
        try:
            fields = next(csv.reader([line], delimiter=mark)) if mark else line.split(maxsplit=1)
        except csv.Error:  # a field of 131,073 letters
            fields = []
        fields = [field.strip() for field in fields]
        if position == 0 and fields[1:] == ["label"] and fields[0] in ("image", "path"):
            continue
        if len(fields) == 2 and all(fields):
            yield number, *fields, None
        else:
            faults.append(
                f"{path.name}, row {number}: {line[:100]!r} is not an image and a label, with a {mark or ' '!r} between"
            )
    if not lines:
        raise UserError(f"{path} is empty; lines of `image label` are needed")


LAYOUTS: dict[str, Callable[..., list[Labelled]]] = {
    "folders": _class_folders,
    "list": _list,
    "flowers": flowers,
    "aircraft": aircraft,
    "cars": cars,
    "pets": pets,
}


def _part(path: Path, split: str | None) -> Path | None:
    """PATH/SPLIT if it is a folder of folders, else None."""
    part = path / split if split else None
    return part if part is not None and part.is_dir() and _subfolders(part) else None


def _subfolders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _files_below(top: Path) -> list[Path]:
    """The files below a folder, sorted, without hidden ones. Linked folders are followed, each once."""
    found, seen = [], set()
    for folder, folders, files in os.walk(top, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (real := os.path.realpath(folder)) in seen:
            folders[:] = []
            continue
        seen.add(real)
        kept = [name for name in files if not name.startswith(".") and name.lower() not in _SYSTEM_FILES]
        found += [Path(folder, name) for name in kept]
    return sorted(found)
