"""Class names: the list they are compared with, and labels that are a name or a number in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vrft.data.readers import read_json
from vrft.errors import UserError, raise_all
from vrft.tasks.answers import normal_name

LISTS = Path(__file__).parent / "category_lists"


class Labelled(NamedTuple):
    """An image (its path below the source's folder), its class, where that is said (file, number), and more columns."""

    image: str
    name: str
    file: str
    number: int
    more: dict[str, Any] | None = None


def read_class_names(classes: str | Sequence[str], *, key: str, is_numbered: bool = False) -> list[str]:
    """The names that a config's `key` gives: a list, the name of one in `category_lists`, or a file with one name a
    line or a JSON list (.json, .json.gz).

    is_numbered: True where labels are numbers in the list: a blank line is refused, as it would move the numbers, and
        so are two names that are alike as `normal_name` compares them.
    Raises `UserError` where there is no such list, no name in it, or a name twice.
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
            faults.append(f"{line} {number} is blank, which moves the numbers of all that follow; remove it")
    faults += [] if any(name.strip() for name in names) else ["it names no class; at least one is needed"]
    raise_all(faults, heading=f"{source}, and this list of classes cannot be used:")
    return [name.strip() for name in names if name.strip()]


def _lines_of_list(name: str, *, key: str) -> Any:
    """What a shipped list or a file holds."""
    shipped = LISTS / f"{name}.txt"
    path = shipped if shipped.is_file() and shipped.parent == LISTS else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in LISTS.glob("*.txt")))
        raise UserError(f"{key} is {name!r}, no list and no file; a list of names, a file, or one of {known} is right")
    return read_json(path, key=key) if path.suffix in (".json", ".gz") else read_lines(path, key=key)


class ClassNames:
    """The class names that labels are compared with (None: any name), and where unknown labels are noted.

    options: those of `vrft.data.folders`.
    """

    def __init__(self, options: Any, names: list[str] | None, faults: list[str]) -> None:
        self.options, self.faults = options, faults
        self.use(names)

    def use(self, names: list[str] | None) -> None:
        """Compare labels with these names from now on."""
        self.names = names
        self.listed = None if names is None else {normal_name(name): name for name in names}

    def written(self, name: str) -> str:
        """The name of a folder or a file as a class name."""
        return name.replace("_", " ") if self.options.blank_underscores else name

    def named(self, name: str, where: str) -> str | None:
        """The name as the list of classes writes it; None, and a fault, where it is not there."""
        if self.listed is None or normal_name(name) in self.listed:
            return name if self.listed is None else self.listed[normal_name(name)]
        some = ", ".join(self.names[:3])
        self.faults.append(f"{where}: the class {name[:100]!r} is not among the {len(self.names)} classes ({some}, …)")
        return None

    def numbered(self, label: int, where: str, *, first: int) -> str | None:
        """The name of a number that counts from `first`; None, and a fault, where there is none."""
        if self.names is None:
            raise UserError(f"{where}: the label is the number {label}; dataset.classes must be a file of the names")
        if first <= label < first + len(self.names):
            return self.names[label - first]
        last = first + len(self.names) - 1
        self.faults.append(f"{where}: label {label} is unknown; the classes have the numbers {first} to {last}")
        return None

    def labelled(self, label: int | str, where: str) -> str | None:
        """The name of a label of a list: a name, or a whole number that is not itself a name."""
        if isinstance(label, str) and (not label.isdecimal() or label in (self.names or ())):
            return self.named(label, where)
        return self.numbered(int(label), where, first=self.options.first_label)


def read_lines(path: Path, *, key: str) -> list[str]:
    """The lines of a text file, the last with or without its end. Raises `UserError` naming the config's `key`."""
    try:
        text = path.read_bytes().decode("utf-8-sig").removesuffix("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); look at {key}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from None
    return [line.rstrip("\r") for line in text.split("\n")] if text else []


def read_pth_labels(path: Path, faults: list[str], *, key: str) -> Iterator[tuple[int, str, int, int | None]]:
    """`(number from 1, image, label, prediction)` of each entry `{image path: {label, pred_class}}` of a `.pth` list.

    Labels are numbers, alone or the first of several; without pred_class the prediction is None. An entry of another
    form is appended to `faults`. Raises `UserError` for a file that is no list, or would run code.
    """
    import pickle

    import torch  # here, as most class lists need none

    form = "{image path: {label: number, pred_class: numbers}}"
    try:
        entries = torch.load(path, map_location="cpu", weights_only=True)  # True: tensors and containers, no code
    except FileNotFoundError:
        raise UserError(f"{key} is {path}: there is no such file") from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"names {named.group(1)}, which is never run" if named else str(error).partition("\n")[0][:200]
        raise UserError(f"{path} cannot be read as tensors and lists alone ({what})") from None
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
