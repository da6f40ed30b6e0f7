"""Readers of model text: the answer block, and the boxes, box, point, count or name inside of it.

Model text is untrusted. A reader returns `(answer, None)`, or `(None, reason)` with a reason of `REASONS`. It never
raises. All patterns run in linear time: training reads whatever a model samples, and 100,000 blanks once took 26 s.

An ambiguous text is unreadable. A guess would pay for text that says nothing: `...` was once read as "No Objects".
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

REASONS = ("no_answer", "empty_answer", "not_found", "malformed", "several")
"""Why an answer is unreadable. no_answer: no answer block after the thought. empty_answer: an empty block. not_found:
nothing of the right kind in the block. malformed: a box, point or count that is not made of plain numbers. several:
more than one, where one was asked for."""

# At most nine digits before the point: a float cannot hold every longer integer, and `1e308` or NaN must not be read.
# Up to twenty decimals, because models do write coordinates such as 91.50103349190772.
_NUMBER = r"[-+]?(?:[0-9]{1,9}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})"
_FOUR_NUMBERS = re.compile(rf"\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*(?:,\s*)?")
_CODE_FENCE = re.compile(r"```(?:[a-z]+(?=\s))?")
_OBJECT = re.compile(r"\{[^{}]*\}")
_BRACKETS = re.compile(r"[\[(]([^\[\]()]*)[\])]")
_KEY = r"['\"]?\s*:\s*"
# Searched in text in lower case: this takes a quarter less time for a list of boxes than re.IGNORECASE.
_CONFIDENCE_NAME = r"(?:conf(?:idence)?(?:_score)?|score)"
_CONFIDENCE_KEY = re.compile(rf"{_CONFIDENCE_NAME}\W?{_KEY}")
_CONFIDENCE = re.compile(rf"\b{_CONFIDENCE_NAME}{_KEY}['\"]?({_NUMBER})['\"]?\s*[,}}]")
# At most 200 characters: without a limit, many opening quotes in one long object take quadratic time. The label ends at
# a quote that is followed by `,` or `}`, so that an apostrophe inside a name is kept.
_LABEL = re.compile(rf"\b(?:label|category|class|name){_KEY}(['\"])(.{{0,200}}?)\1\s*[,}}]", re.DOTALL | re.IGNORECASE)
_PAIR = rf"[(\[]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[)\]]"
_CORNER_PAIR = re.compile(rf"{_PAIR}\s*(?:(?:,|and|to)\s*)?{_PAIR}")
_POINT = re.compile(_PAIR)
_BARE_POINT = re.compile(rf"\s*(?:x\s*=\s*)?({_NUMBER})\s*,\s*(?:y\s*=\s*)?({_NUMBER})\s*")
_X_AND_Y = re.compile(rf"['\"]x['\"]\s*:\s*({_NUMBER})\s*,\s*['\"]y['\"]\s*:\s*({_NUMBER})\s*[,}}]")
_COUNT = re.compile(r"[0-9]{1,9}")
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SIGNS = "-+−–"
_MARKS = "\"'`*.,;:!?()[]{}“”‘’。、，！？\u200b"
_EDGE_MARKS = f"{_MARKS}_- \t\r\n"
_NO_PART_OF_NAME = re.compile(r"[\s_\-]+")
_NO_OBJECTS = ("noobjects", "noobject", "none", "noobjectsfound", "therearenoobjects")


class WrittenBox(NamedTuple):
    """A box as the model wrote it.

    xyxy: in the frame of the text. confidence: in [0, 1]; 1 if none is written. label: "" if none is written or wanted.
    """

    xyxy: tuple[float, float, float, float]
    confidence: float
    label: str = ""


def read_answer_block(text: str) -> tuple[str | None, str | None]:
    """The text inside the last `<answer>` block after the thought, stripped.

    Text inside `<think>` never counts, and a thought that is not closed leaves no answer. A block without `</answer>`
    (cut by the length limit) ends with the text.

    >>> read_answer_block("<think>maybe <answer>no</answer></think><answer> yes </answer>")
    ('yes', None)
    >>> read_answer_block("<answer></answer>")
    (None, 'empty_answer')
    """
    span = answer_span(text)
    if span is None:
        return None, "no_answer"
    block = text[slice(*span)].strip()
    return (block, None) if block else (None, "empty_answer")


def answer_span(text: str) -> tuple[int, int] | None:
    """Start and end of the text inside the answer block, as in `read_answer_block` but not stripped."""
    begin = text.rfind("</think>") + 1  # 0 if there is no thought; +1 is enough, because no tag starts inside a tag
    end = text.find("<think>", begin)
    end = len(text) if end < 0 else end
    tag = text.rfind("<answer>", begin, end)
    if tag < 0:
        return None
    begin = tag + len("<answer>")
    closing = text.find("</answer>", begin, end)
    return begin, end if closing < 0 else closing


def box_spans(block: str) -> list[tuple[int, int]]:
    """Start and end in the block of each box of `read_boxes`, in its order. Each piece read alone gives its box."""
    if "{" in block:
        return [match.span() for match in _OBJECT.finditer(block)]
    if pairs := [match.span() for match in _CORNER_PAIR.finditer(block)]:
        return pairs
    if _FOUR_NUMBERS.fullmatch(block):
        return [(0, len(block))]
    return [match.span() for match in _BRACKETS.finditer(block) if any(map(str.isnumeric, match.group(1)))]


def read_boxes(block: str, *, with_labels: bool = False) -> tuple[list[WrittenBox] | None, str | None]:
    """The boxes of a detection answer, in the order written; `[]` for 'No Objects' or an empty list.

    Reads objects `{'Position': [x1, y1, x2, y2], 'Confidence': c, 'Label': 'name'}`, with single or double quotes, with
    any key for the box (such as `bbox_2d`), also in a code fence. Without an object it reads pairs `(x1,y1),(x2,y2)`,
    else lists of four numbers, in brackets or alone. A last object that the length limit cut is ignored.
    with_labels: False leaves every label "".

    >>> read_boxes("[{'Position': [0, 20, 40, 60], 'Confidence': 0.90}, {'Position': [1, 2")
    ([WrittenBox(xyxy=(0.0, 20.0, 40.0, 60.0), confidence=0.9, label='')], None)
    >>> read_boxes("No Objects")
    ([], None)
    """
    if "{" in block:
        found = [_read_object(text, with_labels) for text in _OBJECT.findall(block)]
    else:
        found = [WrittenBox(_floats(pair), 1.0) for pair in _CORNER_PAIR.findall(block)] or _read_bare_boxes(block)
    # One unreadable box makes the whole answer unreadable: else a model could hide a wrong box by writing it badly.
    if any(box is None for box in found):
        return None, "malformed"
    # No box is not "no objects": `[[[[` or a cut first object must not earn what an empty image earns.
    if not found and not _says_none(block):
        return None, "not_found"
    return found, None


def read_box(block: str) -> tuple[tuple[float, ...] | None, str | None]:
    """The one box of a grounding answer, as written; two boxes are unreadable. Reads all forms of `read_boxes`.

    >>> read_box("(100,200),(300,400)")
    ((100.0, 200.0, 300.0, 400.0), None)
    >>> read_box("(1,2),(3,4) (5,6),(7,8)")
    (None, 'several')
    """
    boxes, reason = read_boxes(block)
    if not boxes:
        return None, reason or "not_found"
    return (boxes[0].xyxy, None) if len(boxes) == 1 else (None, "several")


def read_point(block: str) -> tuple[tuple[float, float] | None, str | None]:
    """The one point of a pointing answer, (x, y) as written.

    Reads `(x, y)`, `[x, y]` (also as the value of a key, such as `point_2d`), `{"x": x, "y": y}` and bare `x, y`.

    >>> read_point('{"point_2d": [120, 40], "label": "cup"}'), read_point("(1,2) or (3,4)")
    (((120.0, 40.0), None), (None, 'several'))
    """
    points = _POINT.findall(block) or _X_AND_Y.findall(block)
    if not points and (bare := _BARE_POINT.fullmatch(block)):
        points = [bare.groups()]
    if not points:
        return None, "malformed" if re.search(r"\d", block) else "not_found"
    return (_floats(points[0]), None) if len(points) == 1 else (None, "several")


def read_count(block: str) -> tuple[int | None, str | None]:
    """The count of a counting answer, a whole number from 0.

    Written in digits, with or without words around it, or as one English word up to ten. A second number (also a word),
    a sign or a fraction makes the answer unreadable: "3 of 5" and "0-1000" would hold the right count too often.

    >>> read_count("There are 3."), read_count("three"), read_count("3 of 5"), read_count("-3")
    ((3, None), (3, None), (None, 'several'), (None, 'malformed'))
    """
    tokens = [token.strip(_MARKS) for token in block.split()]
    written = [token for token in tokens if any(character.isnumeric() for character in token)]
    words = [token.lower() for token in tokens if token.lower() in _NUMBER_WORDS]
    if not written and len(tokens) == 1:
        written, words = [str(_NUMBER_WORDS.index(word)) for word in words], []
    if len(written) != 1 or words:
        return None, "several" if written else "not_found"
    if not _COUNT.fullmatch(written[0]) or any(token and not token.strip(_SIGNS) for token in tokens):
        return None, "malformed"
    return int(written[0]), None


def read_name(block: str) -> tuple[str | None, str | None]:
    """The class name, without a code fence, and without quotes, full stops, stars and brackets around it.

    >>> read_name("**Maine Coon**."), read_name("-")
    (('Maine Coon', None), (None, 'not_found'))
    """
    name = _CODE_FENCE.sub("", block).strip(_EDGE_MARKS)
    return (name, None) if normal_name(name) else (None, "not_found")


def normal_name(name: str) -> str:
    """The form in which class names are compared: lower case, no blanks, underscores, hyphens or marks around it.

    >>> normal_name("Maine_Coon."), normal_name("maine coon")
    ('mainecoon', 'mainecoon')
    """
    return _NO_PART_OF_NAME.sub("", unicodedata.normalize("NFC", name).strip(_EDGE_MARKS)).lower()


def _read_object(text: str, with_label: bool) -> WrittenBox | None:
    inside = map(_FOUR_NUMBERS.fullmatch, _BRACKETS.findall(text))
    numbers = next((match for match in inside if match), None)  # not the brackets of a label: 'bow (tie)'
    if numbers is None:
        return None
    lower = text.lower()
    confidence = _CONFIDENCE.search(lower)
    # A key without a readable value is no confidence of 1: 'Confidence': NaN would earn what the surest box earns.
    if confidence is None and _CONFIDENCE_KEY.search(lower):
        return None
    value = float(confidence.group(1)) if confidence else 1.0
    label = _LABEL.search(text) if with_label else None
    return WrittenBox(_floats(numbers.groups()), min(max(value, 0.0), 1.0), label.group(2) if label else "")


def _read_bare_boxes(block: str) -> list[WrittenBox | None]:
    if alone := _FOUR_NUMBERS.fullmatch(block):
        return [WrittenBox(_floats(alone.groups()), 1.0)]
    inside = [text for text in _BRACKETS.findall(block) if any(character.isnumeric() for character in text)]
    matches = [_FOUR_NUMBERS.fullmatch(text) for text in inside]
    return [WrittenBox(_floats(match.groups()), 1.0) if match else None for match in matches]


def _floats(texts: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(map(float, texts))


def _says_none(block: str) -> bool:
    text = _CODE_FENCE.sub("", block)
    return normal_name(text) in _NO_OBJECTS or "".join(text.split()) == "[]"
