"""Lists of class names, and labels that are a name or a number in such a list."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vrft.data.readers import read_json, reading
from vrft.errors import UserError, raise_all
from vrft.tasks.answers import normal_name

LISTS = Path(__file__).parent / "category_lists"


class Labelled(NamedTuple):
    """An image (path below the source's folder), its class, the location of this label, and further columns."""

    image: str
    name: str
    file: str
    number: int
    more: dict[str, Any] | None = None


def read_class_names(classes: str | Sequence[str], *, key: str, is_numbered: bool = False) -> list[str]:
    """The class names that a config's `key` gives.

    classes: a list, the name of a list in `category_lists`, or a file: one name a line, or JSON (.json, .json.gz).
    is_numbered: True if labels are numbers in the list. Then a blank line is refused because it shifts the numbers,
        and so are two names that `normal_name` makes equal.
    Raises `UserError` if there is no such list, it has no name, or it has a name twice.
    """
    source = f"{key} is {classes}" if isinstance(classes, str) else key
    names = _lines_of_list(classes, key=key) if isinstance(classes, str) else classes
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}, which holds {str(names)[:100]}; a list of names is right")
    seen: dict[str, int] = {}
    faults, line = [], "line" if isinstance(classes, str) else "name"
    for number, name in enumerate(names, 1):
        first = seen.setdefault(normal_name(name) if is_numbered else name.strip(), number)
        if first != number and name.strip():
            faults.append(f"{line} {number}: {name!r} is the class of {line} {first} ({names[first - 1]!r}); keep one")
        elif not name.strip() and (is_numbered or line == "name"):
            faults.append(f"{line} {number} is blank, which shifts the numbers of the names below it; remove it")
    faults += [] if any(name.strip() for name in names) else ["it names no class; at least one is needed"]
    raise_all(faults, heading=f"{source}, and this list of classes cannot be used:")
    return [name.strip() for name in names if name.strip()]


def _lines_of_list(name: str, *, key: str) -> Any:
    """The content of a list in `category_lists`, or of a file."""
    shipped = LISTS / f"{name}.txt"
    path = shipped if shipped.is_file() and shipped.parent == LISTS else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in LISTS.glob("*.txt")))
        raise UserError(f"{key} is {name!r}, no list and no file; a list of names, a file, or one of {known} is right")
    return read_json(path, key=key) if path.suffix in (".json", ".gz") else read_lines(path, key=key)


class ClassNames:
    """The class names that labels are compared with (None: any name is right). Unknown labels are added to `faults`.

    options: those of `vrft.data.folders`.
    """

    def __init__(self, options: Any, names: list[str] | None, faults: list[str]) -> None:
        self.options, self.faults = options, faults
        self.use(names)

    def use(self, names: list[str] | None) -> None:
        """Replace the names that labels are compared with."""
        self.names = names
        self.listed = None if names is None else {normal_name(name): name for name in names}
        self._spelled = frozenset(names or ())

    def written(self, name: str) -> str:
        """The class name that a folder or file name stands for."""
        return name.replace("_", " ") if self.options.blank_underscores else name

    def named(self, name: str, where: str) -> str | None:
        """The name as the class list spells it. If it is not listed: None, and a text is added to `faults`."""
        if self.listed is None or normal_name(name) in self.listed:
            return name if self.listed is None else self.listed[normal_name(name)]
        some = ", ".join(self.names[:3])
        self.faults.append(f"{where}: the class {name[:100]!r} is not among the {len(self.names)} classes ({some}, …)")
        return None

    def numbered(self, label: int, where: str, *, first: int) -> str | None:
        """The name of a number that counts from `first`. If there is none: None, and a text is added to `faults`."""
        if self.names is None:
            raise UserError(f"{where}: the label is the number {label}; dataset.classes must be a file of the names")
        if first <= label < first + len(self.names):
            return self.names[label - first]
        last = first + len(self.names) - 1
        self.faults.append(f"{where}: label {label} is unknown; the classes have the numbers {first} to {last}")
        return None

    def labelled(self, label: int | str, where: str) -> str | None:
        """The class name of a label: a name, or a whole number that is not itself a class name."""
        if isinstance(label, str) and (not label.isdecimal() or len(label) > 9 or label in self._spelled):
            return self.named(label, where)
        return self.numbered(int(label), where, first=self.options.first_label)


def read_lines(path: Path, *, key: str) -> list[str]:
    """The lines of a text file; the last may lack its line end. Raises `UserError` that names the config's `key`."""
    try:
        text = path.read_bytes().decode("utf-8-sig").removesuffix("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check {key}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from None
    return [line.rstrip("\r") for line in text.split("\n")] if text else []


def read_pth_labels(path: Path, faults: list[str], *, key: str) -> Iterator[tuple[int, str, int, int | None]]:
    """`(number from 1, image, label, prediction)` of each entry `{image path: {label, pred_class}}` of a `.pth` list.

    A label is a number, or the first of several numbers. Without pred_class the prediction is None. An entry of another
    form adds a text to `faults`. Raises `UserError` for a file that is no list, or that would run code.
    """
    import pickle

    import torch  # imported here because most class lists do not need it

    form = "{image path: {label: number, pred_class: numbers}}"
    if not path.is_file():
        raise UserError(f"{key} is {path}: there is no such file")
    with reading(path, "tensors and lists alone"):
        try:
            entries = torch.load(path, map_location="cpu", weights_only=True)  # True: tensors and containers, no code
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))  # the rest is torch's advice to read code, too
            what = f"names {named.group(1)}, which is code" if named else "is damaged, or holds something else"
            raise ValueError(what) from None
    if not isinstance(entries, list):
        raise UserError(f"{path} holds a {type(entries).__name__}; a list of {form} is right")

    def first_number(value: Any) -> int:
        number = torch.as_tensor(value).flatten()[0].item()
        if isinstance(number, bool) or number != int(number):
            raise ValueError(number)
        return int(number)

    for number, entry in enumerate(entries, 1):
        try:
            [(image, facts)] = entry.items()
            label, predicted = first_number(facts["label"]), facts.get("pred_class")
            prediction = None if predicted is None else first_number(predicted)
        except (AttributeError, ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError):
            faults.append(f"{path.name}, row {number}: {str(entry)[:100]} found; needed: {form}")
        else:
            yield number, str(image), label, prediction
