r"""The boxes in JSON or Python objects that a model has written, in any of its dialects.

| written | read as |
|---|---|
| `{"bbox_2d": [1, 2, 3, 4], "label": "cat"}` | a box, under any key, and its label, under a key of `_LABEL_KEY` |
| `{"bbox_2d": [[1, 2], [3, 4]]}`, `{"x1": 1, "y1": 2, "x2": 3, "y2": 4}` | one box |
| `{"label": "cat", "bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}` | two boxes with this label |
| `{"label": ["cat", "dog"], "bbox_2d": [[…], […]]}`, or both keys twice | two boxes, each with its own label |
| `{"cat": [[1, 2, 3, 4], [5, 6, 7, 8]], "dog": [9, 9, 20, 20]}` | boxes labelled by their keys |
| `{"label": "cat", "box": {"x1": 1, …}}` | the inner box with the outer label |
| `{"bbox_2d": "[1, 2, 3, 4]"}` | one box, where the key names boxes and the text is nothing else |
| `"caf\u00e9"`, `"5\" disk"`, `'driver's seat'` | café, 5" disk, driver's seat |
| `"score": 0.9`, `"score": "90%"`, `"score": null` | a confidence of 0.9, 0.9, and none written |

Keys, texts and boxes are separated first, so that no other text counts as a key or a box. Everything else is
unreadable: two labels for one box, a text that may be its label under another key, a list of four with three numbers.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

# At most nine digits before the point: a float cannot hold every longer integer, and `1e308` or NaN must not be read.
# Up to twenty decimals, because models do write coordinates such as 91.50103349190772.
NUMBER = r"[-+]?(?:[0-9]{1,9}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})"
BETWEEN = r"(?:\s*+,\s*+|\s++)"
FOUR_NUMBERS = rf"\s*({NUMBER}){BETWEEN}({NUMBER}){BETWEEN}({NUMBER}){BETWEEN}({NUMBER})\s*(?:,\s*)?"
PAIR = rf"[(\[]\s*({NUMBER})\s*,\s*({NUMBER})\s*[)\]]"


def _text(quote: str) -> str:
    # It ends at a quote before a mark, so that an apostrophe inside is kept. A brace ends the object in any case. The
    # possessive `*+` never looks back: many opening quotes in one object once took quadratic time.
    inner = rf"[^{quote}\\{{}}]*+"
    return rf"{quote}{inner}(?:(?:\\[^{{}}]|{quote}(?!\s*[,:=}}\])])){inner})*+{quote}"


_TEXT = "|".join(map(_text, "'\""))
_ITEM = re.compile(
    rf"[\[(]{FOUR_NUMBERS}[\])]|[\[(]\s*{PAIR}\s*(?:,\s*)?{PAIR}\s*(?:,\s*)?[\])]|(?P<brace>[{{}}])"
    rf"|(?:(?P<text>{_TEXT})|(?P<word>[^\s,;:=\[\](){{}}\"'][^\s,;:=\[\](){{}}]*+))(?P<key>\s*[:=])?"
    r"|(?P<unclosed>[\"'][^{}]*+)"
)
_BOX_TEXT = re.compile(rf"\s*(?:[\[(]{FOUR_NUMBERS}[\])]|{FOUR_NUMBERS}|[\[(]?\s*{PAIR}\s*(?:,\s*)?{PAIR}\s*[\])]?)\s*")
_LONGEST_BOX_TEXT = 200
_CONFIDENCE = re.compile(rf"({NUMBER})(%?)")
_KEYS = {
    "confidence": re.compile(r"conf(?:idence)?s?(?:scores?)?|scores?"),
    "label": re.compile(
        r"(?:label|class|object)s?(?:names?|labels?|class|ref)?|categor(?:y|ies)(?:names?)?|names?|ref(?:erence)?|phrase"
        r"|entity"
    ),
    "box": re.compile(
        r"(?:bounding|pred(?:icted)?)?(?:b?box(?:e?s)?|(?:position|coord(?:inate)?|location|rect(?:angle)?|region)s?|xyxy)"
        r"(?:2d|xyxy|coords?|coordinates?)?|"
    ),
}
_NO_PART_OF_KEY = str.maketrans("", "", " _-\t\n“”‘’")
_LONGEST_KEY = 60
_NULL = ("null", "None")
_ESCAPE = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|\\.", re.DOTALL)
_MOST_NESTED = 16


class WrittenBox(NamedTuple):
    """A box as the model wrote it.

    xyxy: in the frame of the text. confidence: in [0, 1]; 1 if none is written. label: "" if none is written or wanted.
    """

    xyxy: tuple[float, float, float, float]
    confidence: float
    label: str = ""


Span = tuple[int, int]
"""Start and end in the text."""


class _Found(NamedTuple):
    """A box of an object. confidence, label: None if the object itself has none."""

    xyxy: tuple[float, ...]
    confidence: float | None
    label: str | None
    span: Span


@dataclass(slots=True)
class _Object:
    """An object that is being read. values: texts and words by key, None for null. boxes: each with its key.

    inner: the boxes of the objects inside. has_empty: one of these has none. is_bad: something is ambiguous.
    """

    start: int
    key: str = ""
    values: dict[str, list[str | None]] = field(default_factory=dict)
    boxes: list[tuple[tuple[float, ...], str]] = field(default_factory=list)
    inner: list[_Found] = field(default_factory=list)
    has_empty: bool = False
    is_bad: bool = False


def object_boxes(text: str, original: str, *, with_labels: bool) -> list[tuple[WrittenBox | None, Span]]:
    """The boxes of all objects in the text, in the order written, each with the place of its object.

    None in place of a box: an object is unreadable. An object that the end of the text cuts is ignored, but not the
    whole objects inside of it. original: the text with its own marks, which labels keep. with_labels: False leaves
    every label "", and then no object is unreadable for its label.
    """
    found: list[_Found] = []
    stack: list[_Object] = []
    for item in _ITEM.finditer(text, text.find("{")):
        if item.lastgroup != "brace":
            if stack:
                _add(item, stack[-1], original)
        elif item.group() == "{":
            stack.append(_Object(item.start()))
            if len(stack) > _MOST_NESTED:
                return [(None, item.span())]
        elif stack:
            closed = stack.pop()
            boxes = _boxes_of(closed, item.end(), with_labels=with_labels)
            if boxes is None or not (boxes or stack):
                return [(None, (closed.start, item.end()))]
            if stack:
                stack[-1].has_empty |= not boxes
            (stack[-1].inner if stack else found).extend(boxes)
    for cut in stack:
        if cut.has_empty or (with_labels and any(box.label is None for box in cut.inner)):
            return [(None, (cut.start, len(text)))]
        found += cut.inner
    return [
        (WrittenBox(box.xyxy, 1.0 if box.confidence is None else box.confidence, box.label or ""), box.span)
        for box in found
    ]


@functools.lru_cache(maxsize=256)
def kind_of_key(key: str) -> str:
    """What a key names: `confidence`, `label` or `box`; "" for any other, which may itself be the label of its box."""
    plain = key[:_LONGEST_KEY].lower().translate(_NO_PART_OF_KEY)
    return next((kind for kind, pattern in _KEYS.items() if pattern.fullmatch(plain)), "")


def _add(item: re.Match, to: _Object, original: str) -> None:
    kind = item.lastgroup
    if kind is None:
        to.boxes.append((tuple(map(float, item.group(1, 2, 3, 4) if item[1] else item.group(5, 6, 7, 8))), to.key))
    elif kind == "unclosed":
        to.is_bad = True
    else:
        first, last = item.span("word")
        is_word = first >= 0
        if not is_word:
            first, last = item.span("text")
        value = item.group("word") if is_word else _decoded(original[first + 1 : last - 1])
        box = None if is_word or kind == "key" else _box_in(item.group("text")[1:-1], to.key)
        if box:
            to.boxes.append((box, to.key))
        elif kind == "key":
            to.key = value
            to.values.setdefault(value, [])
        elif not is_word or any(map(str.isalnum, value)):  # not the ... of the form
            to.values.setdefault(to.key, []).append(None if is_word and value in _NULL else value)


def _box_in(text: str, key: str) -> tuple[float, ...] | None:
    """The box that a text under this key is, or None."""
    if not key or kind_of_key(key) != "box" or len(text) > _LONGEST_BOX_TEXT:
        return None
    match = _BOX_TEXT.fullmatch(text)
    return tuple(float(number) for number in match.groups() if number is not None) if match else None


def _boxes_of(item: _Object, end: int, *, with_labels: bool) -> list[_Found] | None:
    """The boxes of an object and of those inside of it; None if it is unreadable."""
    n, span = len(item.boxes), (item.start, end)
    if item.is_bad or (item.has_empty and not n) or any(map(_has_other_numbers, item.boxes, repeat(item.values))):
        return None
    if not n and not item.inner:
        return []
    confidences = _confidences(item, n or 1)
    labels = _labels(item, n or 1) if with_labels else [""] * (n or 1)
    if confidences is None or labels is None:
        return None
    if not item.inner:
        return [_Found(item.boxes[i][0], confidences[i], labels[i], span) for i in range(n)]
    if n:
        found = [_Found(item.boxes[i][0], confidences[i], labels[i], span) for i in range(n)] + item.inner
    else:
        found = [_inherited(box, confidences[0], labels[0], span) for box in item.inner]
    # Without an own label the key of the outer object may be the label.
    return None if any(box.label is None for box in found) else found


def _has_other_numbers(box: tuple[tuple[float, ...], str], values: dict[str, list[str | None]]) -> bool:
    """True for [[1, 2, 3, 4], [5, 6, 7]]: else a model could hide a wrong box by writing it badly."""
    return any(any(map(str.isdigit, value or "")) for value in values.get(box[1], ()))


def _inherited(box: _Found, confidence: float | None, label: str | None, span: Span) -> _Found:
    has_own = (box.confidence is not None or confidence is None) and (box.label is not None or label is None)
    if has_own:
        return box
    return _Found(
        box.xyxy,
        confidence if box.confidence is None else box.confidence,
        label if box.label is None else box.label,
        span,
    )


def _confidences(item: _Object, n: int) -> list[float | None] | None:
    """The confidence of each of n boxes, None where none is written; None if they are unreadable."""
    written = _spread(_values(item, "confidence"), n)
    if written is None:
        return None
    found: list[float | None] = []
    for text in written:
        match = text and _CONFIDENCE.fullmatch(text.strip())
        # A key without a readable value is no confidence of 1: 'Confidence': NaN would earn what the surest box earns.
        if text is not None and not match:
            return None
        found.append(min(max(float(match[1]) / (100 if match[2] else 1), 0.0), 1.0) if match else None)
    return found


def _labels(item: _Object, n: int) -> list[str | None] | None:
    """The label of each of n boxes, None where none is written; None if they are unreadable."""
    values = _values(item, "label")
    if values is not None:
        return None if None in values else _spread(values, n)
    labels = [None if kind_of_key(key) == "box" else key for _, key in item.boxes] or [None]
    has_other_text = any(
        text and text.lower() not in ("true", "false") and any(map(str.isalpha, text))
        for key, texts in item.values.items()
        if kind_of_key(key) != "confidence"
        for text in texts
    )
    return None if has_other_text and None in labels and item.boxes else labels


def _values(item: _Object, kind: str) -> list[str | None] | None:
    """The values of the object's first key of this kind, or None; `{"objects": [{…}, …]}` has none."""
    return next(
        (values for key, values in item.values.items() if kind_of_key(key) == kind and (values or item.boxes)), None
    )


def _spread(values: list | None, n: int) -> list | None:
    """A value for each of n boxes: the one of all, or one each; without values None each; None if they do not fit."""
    if values is None or len(values) == 1:
        return (values or [None]) * n
    return values if len(values) == n else None


def _decoded(text: str) -> str:
    """The text of a JSON or Python string; a lone surrogate, which no file can hold, becomes U+FFFD."""
    if "\\" not in text:
        return text
    return _ESCAPE.sub(_character, text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _character(escape: re.Match) -> str:
    try:
        return json.loads(f'"{escape.group()}"')
    except ValueError:
        return "'" if escape.group() == "\\'" else escape.group()
