"""The words after the verb: checked, reworded for Hydra's grammar, and named where it cannot read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from vrft.config.paths import PATHS
from vrft.errors import UserError, suggestion

_FLAGS = {  # of Hydra; True: a value follows
    "--cfg": True,
    "-c": True,
    "--resolve": False,
    "--package": True,
    "-p": True,
    "--info": False,
    "-i": False,
    "--multirun": False,
    "-m": False,
    "--run": False,
    "-r": False,
    "--config-dir": True,
    "-cd": True,
    "--config-name": True,
    "-cn": True,
    "--config-path": True,
    "-cp": True,
    "--shell-completion": True,
    "-sc": True,
    "--version": False,
}
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # what may follow --info
_REFUSED = {
    "--hydra-help": "is not offered; leave it out and give --help, or read https://hydra.cc/docs",
    "--experimental-rerun": "is not offered: a pickle, which could run code, is never loaded",
}
_QUESTION = "predict.ask"
_TEXTS = {*PATHS, _QUESTION, "run.name", "model.revision", "dataset.hub", "dataset.revision"}
_LISTS = {"classes", "dataset.classes", "dataset.test_classes", "detections", "runs"}  # a text, or a list of texts


def careful_words(words: Sequence[str], *, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The words as Hydra takes them: options first, then overrides, in which questions and paths are quoted.

    groups: the names that each config group offers. Raises `UserError` for a word that is none of these, or whose
    value Hydra cannot read, with the word to type.
    """
    options, overrides = _sorted(words)
    is_swept = bool({"-m", "--multirun"} & set(options))
    return [*options, *(_readable(overrides, at, groups, is_swept) for at in range(len(overrides)))]


def _sorted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and all other words. Raises `UserError` for dashes before anything else."""
    options, overrides = [], []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        name, equals, _ = word.partition("=")
        if name in _REFUSED:
            raise UserError(f"{word} {_REFUSED[name]}")
        if name not in _FLAGS:
            meant = suggestion(name, _FLAGS)
            bare = word.lstrip("-") + ("" if equals else f"={queue.pop(0) if queue else '…'}")
            raise UserError(
                f"{name} is no option; {meant}a choice or a value is written without dashes: {_typed(bare)}. "
                "Options are --help, --cfg job, --resolve, --info, --config-dir=DIR and, to sweep, -m"
            )
        if name in ("--info", "-i") and not equals:  # Hydra would take the next word, whatever it is
            word = f"{name}={queue.pop(0) if queue and queue[0] in _INFO else 'all'}"
        options.append(word)
        if _FLAGS[name] and not equals and queue:
            options.append(queue.pop(0))
    return options, overrides


def _readable(words: Sequence[str], at: int, groups: Mapping[str, Sequence[str]], is_swept: bool) -> str:
    """The override at this place as Hydra takes it. Raises `UserError` where there is no such."""
    word = words[at]
    key, equals, value = word.partition("=")
    if not key or not (equals or word.startswith("~")):
        raise UserError(_no_override(words, at, groups))
    parsed = _parsed(word)
    if key.lstrip("+") in _TEXTS:
        if _is_kept(key.lstrip("+"), parsed, is_swept):
            return word
        if parsed is None and value.startswith("[") and key.lstrip("+") in _LISTS:
            inner = value.removeprefix("[").removesuffix("]").split(",")
            quoted = f"{key}=[{','.join(_quoted(one.strip()) for one in inner)}]"
            return quoted if value.endswith("]") and _parsed(quoted) else _refuse(words, at)
        if parsed is not None and parsed.is_choice_sweep() and key.lstrip("+") in _LISTS:
            return _refuse(words, at)
        if key == _QUESTION:
            value = value.replace("${", r"\${")  # no interpolation
        return f"{key}={','.join(map(_quoted, value.split(','))) if is_swept else _quoted(value)}"
    if parsed is None or (parsed.is_sweep_override() and not is_swept):
        _refuse(words, at)
    return word


def _is_kept(key: str, parsed: Override | None, is_swept: bool) -> bool:
    """True if Hydra reads the value of a text's key as the text that stands there, or as what was meant."""
    if parsed is None:
        return False
    value = parsed._value
    if isinstance(value, (str, QuotedString)) or is_swept:
        return not (key == _QUESTION and isinstance(value, str) and "${" in value)
    return key != _QUESTION and (value is None or isinstance(value, list))


def _parsed(word: str) -> Override | None:
    """The override, or None if Hydra's grammar does not have it."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _quoted(text: str) -> str:
    """The text in Hydra's quotes; a pair around it that could not be read is taken off.

    >>> _quoted("driver's seat"), _quoted("'driver's seat'")
    ("'driver\\\\'s seat'", "'driver\\\\'s seat'")
    """
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return QuotedString(text, Quote.single).with_quotes()


def _typed(word: str) -> str:
    """The word as a shell takes it, in double quotes where it holds single ones.

    >>> print(_typed("run.seed=1"), _typed("runs=[a, b]"), _typed("predict.ask='it, left'"))
    run.seed=1 'runs=[a, b]' "predict.ask='it, left'"
    """
    is_plain_within = "'" in word and not set('"$`!\\\\') & set(word)
    return f'"{word}"' if is_plain_within else shlex.quote(word)


def _no_override(words: Sequence[str], at: int, groups: Mapping[str, Sequence[str]]) -> str:
    """What is wrong with a word without key or equals sign."""
    word = words[at]
    if word.startswith("=") or (words[at + 1 : at + 2] and words[at + 1].startswith("=")):
        at = max(0, at - word.startswith("="))
        parted = words[at : at + 2 + (words[at + 1 : at + 2] == ["="])]
        return f"write it without blanks: {_typed(''.join(parted))}"
    owners = [f"{group}={word}" for group, names in groups.items() if word in names]
    if owners:
        return f"{word!r} alone is no choice; did you mean {' or '.join(owners)}?"
    before = next((one for one in reversed(words[:at]) if "=" in one), None)
    if before is None:
        return f"{word!r} is neither GROUP=NAME nor KEY=VALUE"
    joined = list(words[words.index(before) : at + 1])
    if before.partition("=")[2].startswith(("[", "{")):
        return f"quote the whole word: {_typed(' '.join([*joined, *_rest(words, at)]))}"
    several = f"{before.partition('=')[0]}=[{','.join([before.partition('=')[2], *joined[1:]])}]"
    return (
        f"{word!r} is no KEY=VALUE; a value with blanks is one word in quotes: {_typed(' '.join(joined))}, "
        f"and so is a list: {_typed(several)}"
    )


def _rest(words: Sequence[str], at: int) -> list[str]:
    """The words after this one that belong to the same list: those up to the next override."""
    rest = []
    for word in words[at + 1 :]:
        if re.match(r"[\w.+~/@]+=", word):
            break
        rest.append(word)
    return rest


def _refuse(words: Sequence[str], at: int) -> str:
    """Raise `UserError` with the word to type in place of one that Hydra cannot read, or reads as several values."""
    word = words[at]
    key, _, value = word.partition("=")
    if not re.fullmatch(r"\+{0,2}~?[\w.@:/$-]+", key):
        raise UserError(f"{word!r} is no KEY=VALUE: the key {key!r} has signs that no key has")
    if value.startswith(("[", "{")):
        joined = " ".join([word, *_rest(words, at)])
        if joined != word:
            raise UserError(f"quote the whole word: {_typed(joined)}")
        form = "[a,'b, c']" if value[0] == "[" else "{name: 1, other: 'b, c'}"
        raise UserError(
            f"the value of {key} cannot be read: {value}; write it as {_typed(f'{key}={form}')}, texts with "
            "signs in quotes of their own"
        )
    text = _typed(f"{key}={_quoted(value)}")
    if _parsed(word) is not None:  # several values
        is_function = "(" in value  # choice(a,b), range(1,3)
        as_list = "" if is_function else f"a list is {_typed(f'{key}=[{value}]')}, "
        raise UserError(
            f"{key} gets several values: {value}; {as_list}one text is {text}; "
            "train and evaluate try each value with -m (--multirun)"
        )
    raise UserError(f"the value of {key} cannot be read: {value}; a text with such signs goes in quotes: {text}")
