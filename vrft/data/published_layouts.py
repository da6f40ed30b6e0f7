"""The published layouts of Flowers 102, FGVC-Aircraft, Stanford Cars and Oxford-IIIT Pets.

Layouts as in the documentation of torchvision.datasets.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vrft.data.class_names import ClassNames, Labelled, read_class_names, read_lines
from vrft.data.readers import reading
from vrft.errors import UserError

_MOST_LABELS = 10_000_000
"""More in one variable of a MATLAB file are refused before they are unpacked: the sets have some 10,000."""


def flowers(path: Path, split: str | None, classes: ClassNames) -> list[Labelled]:
    """The images of Oxford Flowers 102. Labels are numbers; `dataset.classes` gives the names."""
    part = {"train": "trnid", "val": "valid", "test": "tstid"}.get(split or "train")
    if part is None:
        raise UserError(f"the split is {split!r}; flowers have train, val and test")
    labels, labelled = _mat(path / "imagelabels.mat", "labels"), []
    listed = [_whole(one, f"setid.mat, {part} {n}", classes) for n, one in enumerate(_mat(path / "setid.mat", part), 1)]
    for number in sorted(one for one in listed if one is not None):
        if not 1 <= number <= len(labels):
            classes.faults.append(f"setid.mat, {part}: there is no image {number}; imagelabels.mat has {len(labels)}")
        elif name := _class_of(labels[number - 1], f"imagelabels.mat, row {number}", classes):
            labelled.append(Labelled(f"jpg/image_{number:05d}.jpg", name, "imagelabels.mat", number))
    return labelled


def aircraft(path: Path, split: str | None, classes: ClassNames) -> list[Labelled]:
    """The images of FGVC-Aircraft, with the variant, family or manufacturer as class."""
    inner, level = "data/" if (path / "data").is_dir() else "", classes.options.level
    listed = path / inner / {"variant": "variants", "family": "families", "manufacturer": "manufacturers"}[level]
    if classes.names is None and listed.with_suffix(".txt").is_file():
        classes.use(read_class_names(str(listed.with_suffix(".txt")), key="dataset.path", is_numbered=True))
    file, labelled = path / inner / f"images_{level}_{split or 'train'}.txt", []
    for number, line in enumerate(read_lines(file, key="dataset.split"), 1):
        image, _, name = line.strip().partition(" ")
        if not name:
            classes.faults.append(f"{file.name}, row {number}: {line[:100]!r} is not an image and a {level}")
        elif name := classes.named(name, f"{file.name}, row {number}"):
            labelled.append(Labelled(f"{inner}images/{image}.jpg", name, file.name, number))
    return labelled


def cars(path: Path, split: str | None, classes: ClassNames) -> list[Labelled]:
    """The images of Stanford Cars."""
    split = split or "train"
    name = "cars_test_annos_withlabels.mat" if split == "test" else f"cars_{split}_annos.mat"
    file = next((folder / name for folder in (path, path / "devkit") if (folder / name).is_file()), path / name)
    if classes.names is None:
        classes.use([str(text) for text in _mat(path / "devkit" / "cars_meta.mat", "class_names")])
    entries, labelled = _mat(file, "annotations"), []
    if missing := {"fname", "class"} - set(entries.dtype.names or ()):
        raise UserError(f"{file}: the annotations have no {' and no '.join(sorted(missing))}; labels are needed")
    for number, (image, label) in enumerate(zip(entries["fname"], entries["class"], strict=True), 1):
        if found := _class_of(label, f"{name}, row {number} ({str(image)[:100]})", classes):
            labelled.append(Labelled(f"cars_{split}/{image}", found, name, number))
    return labelled


def pets(path: Path, split: str | None, classes: ClassNames) -> list[Labelled]:
    """The images of Oxford-IIIT Pets. The file's name holds the class."""
    file, labelled, of_number = path / "annotations" / f"{split or 'trainval'}.txt", [], {}
    for number, line in enumerate(read_lines(file, key="dataset.split"), 1):
        if line.startswith("#") or not line.strip():
            continue
        image, *numbers = line.split()
        name, where = classes.written(image.rpartition("_")[0]), f"{file.name}, row {number}"
        if not name or not numbers or not numbers[0].isdecimal():
            classes.faults.append(f"{where}: {line[:100]!r} is not `CLASS_NUMBER class species breed`")
        elif (other := of_number.setdefault(numbers[0], name)) != name:
            classes.faults.append(f"{where}: class {numbers[0]} is {other!r} above, and {name!r} here")
        elif name := classes.named(name, where):
            labelled.append(Labelled(f"images/{image}.jpg", name, file.name, number))
    return labelled


def _class_of(label: Any, where: str, classes: ClassNames) -> str | None:
    """The class of a label in a MATLAB file, which counts from 1; None, and a fault, if it has none."""
    number = _whole(label, where, classes)
    return None if number is None else classes.numbered(number, where, first=1)


def _whole(value: Any, where: str, classes: ClassNames) -> int | None:
    """The whole number that a value of a MATLAB file is; None, and a fault, for NaN, a text, a struct and the like."""
    try:
        if float(value) == int(value):
            return int(value)
    except (ValueError, TypeError, OverflowError):
        pass
    classes.faults.append(f"{where}: {str(value)[:60]!r} found; a whole number is needed")
    return None


def _mat(path: Path, key: str):
    """A variable of a MATLAB file, as a flat array."""
    import numpy as np
    from scipy.io import loadmat, whosmat

    with reading(path, "a MATLAB file"):
        holds = {name: math.prod(shape) for name, shape, _ in whosmat(path)}
        if holds.get(key, 0) > _MOST_LABELS:
            raise UserError(f"{path}: {key} has {holds[key]:,} entries; at most {_MOST_LABELS:,} are read")
        if key in holds:
            return np.ravel(loadmat(path, variable_names=[key], squeeze_me=True)[key])
    raise UserError(f"{path} has no variable {key!r}; it holds {', '.join(holds) or 'none'}")
