"""What every section of a config is: a frozen model, and the ranges that its numbers have."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Number = int | float
AtLeastZero = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
AboveZero = Annotated[int | float, Field(gt=0)]
Share = Annotated[int | float, Field(gt=0, le=1)]

S = TypeVar("S", bound=BaseModel)


class Section(BaseModel):
    """A mapping of a config: frozen, without unknown keys, and an integer is no text, a bool no integer."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def plain(self) -> dict[str, Any]:
        """What was given, as plain values: the keys that are left to their defaults stay away."""
        return self.model_dump(exclude_unset=True)

    def part(self, kind: type[S], **values: Any) -> S:
        """Another model with the keys that both have, and with `values` for the others; nothing is checked again."""
        shared = {name: getattr(self, name) for name in kind.model_fields if hasattr(self, name)}
        return kind.model_construct(**shared | values)


def with_values(section: S, values: Mapping[str, Any]) -> S:
    """A copy in which the values stand at their dotted keys, such as `memory.max_pixels`; they are not checked."""
    for key, value in values.items():
        name, _, rest = key.partition(".")
        inner = getattr(section, name)
        if rest and isinstance(inner, dict):
            *path, last = rest.split(".")
            changed = place = copy.deepcopy(inner)
            for part in path:
                place = place[part]
            place[last] = value
        else:
            changed = with_values(inner, {rest: value}) if rest else copy.deepcopy(value)
        section = section.model_copy(update={name: changed})
    return section


def flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested mappings with its dotted key.

    >>> dict(flat({"run": {"seed": 3, "name": "a"}}))
    {'run.seed': 3, 'run.name': 'a'}
    """
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
