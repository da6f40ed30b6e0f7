"""Class names: the list they are compared with, and labels that are a name or a number in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vrft.errors import UserError, raise_all
from vrft.tasks.answers import normal_name


class Labelled(NamedTuple):
    """An image (its path below the source's folder), its class, where that is said (file, number), and more columns."""

    image: str
    name: str
    file: str
    number: int
    more: dict[str, Any] | None = None


def read_class_list(path: Path) -> list[str]:
    """The class names of a file, one a line; the last line may lack its end. Raises `UserError` for a name that is
    blank or there twice, as names are compared."""
    names = read_lines(path, key="dataset.classes")
    seen: dict[str, int] = {}
    faults = [] if names else [f"{path} is empty; one class name a line is needed"]
    for number, name in enumerate(names, 1):
        first = seen.setdefault(normal_name(name), number)
        if not name.strip():
            faults.append(f"{path}, line {number} is blank, which moves the numbers of all that follow; remove it")
        elif first != number:
            faults.append(f"{path}, line {number}: {name!r} is the class of line {first} ({names[first - 1]!r})")
    raise_all(faults, heading="The list of classes cannot be used:")
    return [name.strip() for name in names]


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
