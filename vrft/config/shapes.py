"""Nested plain values against dataclasses: every key that is unknown or missing, every value of another type."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vrft.errors import suggestion


def shape_faults(value: Any, kind: Any, key: str = "") -> Iterator[str]:
    """Yield one sentence for each key that is unknown or missing and each value of another type than `kind`.

    >>> from vrft.config.schema import DeepSpeed
    >>> list(shape_faults({"config": 3}, DeepSpeed, "deepspeed"))
    ['deepspeed.config is 3; a mapping or null is needed']
    >>> list(shape_faults({"confg": None, "config": None}, DeepSpeed, "deepspeed"))
    ["deepspeed has no key 'confg'; did you mean config? known: config"]
    """
    options = _options(kind)
    schema = next((option for option in options if is_dataclass(option)), None)
    if schema and isinstance(value, dict):
        yield from _mapping_faults(value, schema, key)
    elif not any(fits(value, option) for option in options):
        yield f"{key} is {value!r}; {describe(kind)} is needed"


def _mapping_faults(value: dict, schema: type, key: str) -> Iterator[str]:
    hints = get_type_hints(schema)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            yield f"{key or 'the config'} has no key {name!r}; {suggestion(name, hints)}known: {', '.join(hints)}"
    for item in fields(schema):
        if item.name in value:
            yield from shape_faults(value[item.name], hints[item.name], prefix + item.name)
        elif item.default is MISSING:
            yield f"{prefix}{item.name} is missing; {describe(hints[item.name])} is needed"


def fits(value: Any, kind: Any) -> bool:
    """True if the value is of that type; an int fits a float, and a bool fits neither."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is Literal:
        return value in arguments and not (isinstance(value, bool) and True not in arguments)
    if origin in (list, dict):
        if not isinstance(value, origin) or not arguments:
            return isinstance(value, origin)
        members = value if origin is list else value.values()
        return all(fits(member, arguments[-1]) for member in members)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def describe(kind: Any) -> str:
    """The type in a user's words.

    >>> describe(int | None), describe(Literal["best", "last"]), describe(list[str])
    ('an integer or null', 'best or last', 'a list of texts')
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is Literal:
        return " or ".join(str(choice) for choice in arguments)
    if origin is list:
        return f"a list of {_PLURALS.get(arguments[0]) or describe(arguments[0])}"
    if origin is dict:
        return f"a mapping to {_PLURALS.get(arguments[-1], 'values')}"
    return _WORDS.get(kind, "a mapping" if is_dataclass(kind) else str(kind))


def flat(nested: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value with its dotted key.

    >>> dict(flat({"run": {"seed": 3, "name": "a"}}))
    {'run.seed': 3, 'run.name': 'a'}
    """
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _options(kind: Any) -> tuple:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    dict: "a mapping",
    list: "a list",
    type(None): "null",
}
_PLURALS = {str: "texts", int: "integers", float: "numbers"}
