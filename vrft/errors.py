"""Every exit code, the one exception for a user's mistake, the collector that shows several, the faults of a schema."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import types
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import ErrorDetails, ValidationError

if TYPE_CHECKING:
    from pydantic import BaseModel

CANNOT_RUN = "The config cannot run:"
N_SHOWN = 20
"""Of several faults, those that are printed."""
SIGNALLED = 128
"""A process that a signal has ended has this exit code plus the signal's number, as in a shell."""


class ExitCode(IntEnum):
    """The exit codes of `vrft` and of its workers; `launch/README.md` has the same table for users."""

    DONE = 0
    FAILED = 1
    USER_ERROR = 2
    STOPPED_BY_ALARM = 3
    BUSY = 75  # temporary failure in sysexits.h
    OUT_OF_MEMORY = 77
    HUNG = 124  # as timeout(1) has it
    HUNG_UP = SIGNALLED + 1  # SIGHUP
    INTERRUPTED = SIGNALLED + 2  # SIGINT
    KILLED = SIGNALLED + 9  # SIGKILL
    WARNED = SIGNALLED + 12  # SIGUSR2, SLURM's warning before the time limit
    TERMINATED = SIGNALLED + 15  # SIGTERM


class UserError(Exception):
    """A mistake in a config, a file or a row, told in full by its text.

    The command line and the worker print the text without a traceback and exit with code 2. Say what is wrong, the
    value, what would be right, and which key, file or row to change.
    """


def raise_all(faults: list[str], *, heading: str) -> None:
    """Raise one `UserError` that lists every fault; do nothing when there is none.

    At most `N_SHOWN` faults are printed; the rest are counted.
    """
    if not faults:
        return
    shown = ["  - " + fault.replace("\n", "\n    ") for fault in faults[:N_SHOWN]]  # a fault may quote any text
    if len(faults) > N_SHOWN:
        shown.append(f"  … and {len(faults) - N_SHOWN} more")
    raise UserError("\n".join([heading, *shown]))


Phase = Literal["loading", "evaluation", "rollout", "step"]


@contextlib.contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Errors raised in the block, or in a function decorated with it, carry this phase; of nested blocks the inner."""
    try:
        yield
    except Exception as error:
        error.phase = phase_of(error) or name
        raise


def phase_of(error: BaseException) -> Phase | None:
    """The phase of the run in which the error was raised; None outside of all."""
    return getattr(error, "phase", None)


def first_line(error: BaseException) -> str:
    """The first line of the error's text, or the name of its type where it has none.

    >>> first_line(OSError("no such file\nlook elsewhere")), first_line(OSError())
    ('no such file', 'OSError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_TAKES_NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextlib.contextmanager
def disk_errors_explained(*, then: str) -> Iterator[None]:
    """Within, an error of a disk that takes no more becomes a `UserError`. then: what the user does when there is room.

    It is full, a quota or a limit of a file's size is reached, or it is read-only. Libraries raise errors of their own
    with the system's words in them.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not any(os.strerror(number) in str(error) for number in _TAKES_NO_MORE):
            raise
        why = first_line(error)
        raise UserError(
            f"the disk is full, has a limit or is read-only ({why}); make room there, then {then}"
        ) from None


def suggestion(name: str, known) -> str:
    """Return `did you mean X? ` for the nearest known name, or nothing. Case and punctuation do not count.

    >>> suggestion("bta", ["beta", "delta"]), suggestion("Qwen/Qwen2.5-VL-3B-Instruct", ["qwen2_5_vl_3b", "tiny"])
    ('did you mean beta? ', 'did you mean qwen2_5_vl_3b? ')
    """
    spelled = {re.sub(r"[\W_]+", "_", str(one)).lower(): one for one in reversed(list(known))}
    near = difflib.get_close_matches(re.sub(r"[\W_]+", "_", str(name)).lower(), spelled, n=1)
    return f"did you mean {spelled[near[0]]}? " if near else ""


def shape_faults(value: Any, kind: type[BaseModel], key: str = "") -> list[str]:
    """One sentence for each key of a nested value that its model does not know or that is missing, and for each value
    of another type or outside its range. key: the dotted key under which the value stands.

    >>> from vrft.config.schema import DeepSpeed
    >>> shape_faults({"config": 3}, DeepSpeed, "deepspeed")
    ['deepspeed.config is 3; a mapping or null is needed']
    >>> shape_faults({"confg": None, "config": None}, DeepSpeed, "deepspeed")
    ["deepspeed has no key 'confg'; did you mean config? known: config"]
    """
    try:
        kind.model_validate(value)
    except ValidationError as error:
        found = [_sentence(one, value, kind, key) for one in error.errors(include_url=False)]
        return list(dict.fromkeys(found))  # a union says for each of its types what is wrong
    return []


def form_faults(values: Any, form: type[BaseModel]) -> list[str]:
    """One sentence for each value that is missing, or of another type or size than the form has it."""
    try:
        form.model_validate(values, strict=True)
    except ValidationError as error:
        return [
            f"{'.'.join(map(str, one['loc'])) or 'it'} is "
            + ("missing" if one["type"] == "missing" else f"{str(one['input'])[:60]!r}: {one['msg'].lower()}")
            for one in error.errors(include_url=False)
        ]
    return []


def _sentence(error: ErrorDetails, value: Any, kind: type[BaseModel], key: str) -> str:
    """One of pydantic's errors in the project's words."""
    names, owner, annotation = _field_at(error["loc"], kind)
    dotted = ".".join(filter(None, [key, *names])) or "the config"
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    if error["loc"][-1:] == ("[key]",):
        return f"{dotted.rpartition('.')[0] or dotted} has the key {error['loc'][-2]!r}; a text is needed"
    limits = error.get("ctx") or {}
    match error["type"]:
        case "extra_forbidden":
            place, known = dotted.rpartition(".")[0] or "the config", owner.model_fields
            return f"{place} has no key {names[-1]!r}; {suggestion(names[-1], known)}known: {', '.join(known)}"
        case "missing":
            return f"{dotted} is missing; {describe(annotation)} is needed"
        case "union_tag_not_found" | "union_tag_invalid":
            tag = limits["discriminator"].strip("'")
            return f"{dotted}.{tag} is {(value or {}).get(tag)!r}; {_choices(annotation, tag)} is needed"
        case "greater_than_equal":
            return f"{dotted} is {value}; at least {limits['ge']} is needed"
        case "greater_than":
            return f"{dotted} is {value}; it must be above {limits['gt']}"
        case "less_than_equal":
            return f"{dotted} is {value}; at most {limits['le']} is needed"
        case "value_error":
            return f"{dotted} is {value!r}; {limits['error']}"
    return f"{dotted} is {value!r}; {describe(annotation)} is needed"


def _field_at(place: Sequence[str | int], kind: type[BaseModel]) -> tuple[list[str], type[BaseModel], Any]:
    """The names down to the innermost field of a place in pydantic's words, the model that holds it, and its type."""
    names: list[str] = []
    owner, annotation = kind, kind
    for part in place:
        models = list(_models(annotation))
        if not models or part == "[key]":
            break
        if len(models) > 1:  # told apart by a tag, which stands in the place
            annotation = next(model for model in models if part in get_args(model.model_fields["name"].annotation))
            continue
        names.append(str(part))
        if any(get_origin(option) is dict for option in (annotation, *get_args(annotation))):
            annotation = models[0]  # a mapping's value
        else:
            owner = models[0]
            annotation = owner.model_fields[part].annotation if part in owner.model_fields else None
    return names, owner, annotation


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models within a type."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for option in get_args(annotation):
        yield from _models(option)


def _choices(annotation: Any, tag: str) -> str:
    """The tags that tell the models of a union apart."""
    return " or ".join(get_args(model.model_fields[tag].annotation)[0] for model in _models(annotation))


def describe(kind: Any) -> str:
    """The type in a user's words.

    >>> describe(int | None), describe(Literal["best", "last"]), describe(list[str]), describe(int | float)
    ('an integer or null', 'best or last', 'a list of texts', 'a number')
    """
    origin, options = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return describe(options[0])
    if origin in (Union, types.UnionType):
        words = dict.fromkeys(describe(option) for option in options)
        return " or ".join(word for word in words if not (word == _WORDS[int] and _WORDS[float] in words))
    if origin is Literal:
        return " or ".join(str(choice) for choice in options)
    if origin is list:
        return f"a list of {_PLURALS.get(options[0]) or describe(options[0])}"
    if origin is dict:
        return f"a mapping to {_plural(options[-1])}"
    return _WORDS.get(kind, "a mapping" if hasattr(kind, "model_fields") else str(kind))


def _plural(kind: Any) -> str:
    return _PLURALS[float] if float in get_args(kind) else _PLURALS.get(kind, "values")


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
