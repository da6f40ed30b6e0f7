"""Readers of model text: the answer block, and in it boxes and names.

Model text is untrusted. A reader returns `(answer, None)`, or `(None, reason)` with a reason of `REASONS`; it never
raises. All patterns run in linear time, and no number with more than nine digits before its point is read.
"""

from __future__ import annotations

import re
from typing import NamedTuple

REASONS = ("no_answer", "empty_answer", "no_box", "malformed_box")
"""Why an answer could not be read: no answer block after the thought · an empty block · no box and no 'No Objects' in
it · a box that is not four plain numbers."""

_NUMBER = r"[-+]?[0-9]{1,9}(?:\.[0-9]{0,20})?"
_FOUR_NUMBERS = re.compile(rf"\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*(?:,\s*)?")
_CODE_FENCE = re.compile(r"```[a-z]*")
_OBJECT = re.compile(r"\{[^{}]*\}")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_CONFIDENCE = re.compile(rf"['\"](?:Confidence|confidence|score)['\"]\s*:\s*['\"]?({_NUMBER})['\"]?\s*[,}}]")
_CORNER_PAIR = re.compile(
    rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)\s*(?:,\s*)?\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)"
)


class WrittenBox(NamedTuple):
    """A box as written: numbers in the frame of the text, and a confidence in [0, 1] (1 where none is written)."""

    xyxy: tuple[float, float, float, float]
    confidence: float


def read_answer_block(text: str) -> tuple[str | None, str | None]:
    """The inside of the last `<answer>` block after the thought, stripped.

    What stands inside `<think>` never counts; a thought that is not closed leaves no answer. A last block that the
    length limit cut (no `</answer>`) is returned as far as it goes.

    >>> read_answer_block("<think>maybe <answer>no</answer></think><answer> yes </answer>")
    ('yes', None)
    >>> read_answer_block("<answer></answer>")
    (None, 'empty_answer')
    """
    after_thought = text.rpartition("</think>")[2]
    if "<think>" in after_thought:
        after_thought = after_thought.partition("<think>")[0]
    _, tag, block = after_thought.rpartition("<answer>")
    if not tag:
        return None, "no_answer"
    block = block.partition("</answer>")[0].strip()
    return (block, None) if block else (None, "empty_answer")


def read_boxes(block: str) -> tuple[list[WrittenBox] | None, str | None]:
    """The boxes of a detection answer, in the order written; `[]` for 'No Objects' or an empty list.

    Reads `{'Position': [x1, y1, x2, y2], 'Confidence': c}` objects with single or double quotes (also `bbox_2d` keys
    and code fences: keys of the box do not matter), and, where there is no object, bare lists of four numbers. A last
    object that the length limit cut is left out.

    >>> read_boxes("[{'Position': [0, 20, 40, 60], 'Confidence': 0.90}, {'Position': [1, 2")
    ([WrittenBox(xyxy=(0.0, 20.0, 40.0, 60.0), confidence=0.9)], None)
    >>> read_boxes("No Objects")
    ([], None)
    """
    found = [_read_object(text) for text in _OBJECT.findall(block)] if "{" in block else _read_bare_boxes(block)
    if any(box is None for box in found):
        return None, "malformed_box"
    if not found and not _says_none(block):
        return None, "no_box"
    return found, None


def read_box(block: str) -> tuple[tuple[float, float, float, float] | None, str | None]:
    """The one box of a grounding answer, as written; two boxes are no answer.

    Reads `(x1,y1),(x2,y2)`, and whatever `read_boxes` reads.

    >>> read_box("(100,200),(300,400)")
    ((100.0, 200.0, 300.0, 400.0), None)
    >>> read_box("(1,2),(3,4) (5,6),(7,8)")
    (None, 'malformed_box')
    """
    pairs = _CORNER_PAIR.findall(block)
    if not pairs:
        boxes, reason = read_boxes(block)
        if reason or not boxes:
            return None, reason or "no_box"
        pairs = [box.xyxy for box in boxes]
    if len(pairs) > 1:
        return None, "malformed_box"
    return tuple(float(value) for value in pairs[0]), None


def normal_name(name: str) -> str:
    """A class name as it is compared: lower case, without blanks, underscores and hyphens.

    >>> normal_name("Maine_Coon ") == normal_name("maine coon")
    True
    """
    return re.sub(r"[\s_\-]+", "", name).lower()


def _read_object(text: str) -> WrittenBox | None:
    bracket = _BRACKETS.search(text)
    numbers = _FOUR_NUMBERS.fullmatch(bracket.group(1)) if bracket else None
    if numbers is None:
        return None
    confidence = _CONFIDENCE.search(text)
    if confidence is None and "onfidence" in text:
        return None
    value = float(confidence.group(1)) if confidence else 1.0
    return WrittenBox(tuple(map(float, numbers.groups())), min(max(value, 0.0), 1.0))


def _read_bare_boxes(block: str) -> list[WrittenBox | None]:
    inside = [text for text in _BRACKETS.findall(block) if text.strip()]
    matches = [_FOUR_NUMBERS.fullmatch(text) for text in inside]
    return [WrittenBox(tuple(map(float, match.groups())), 1.0) if match else None for match in matches]


def _says_none(block: str) -> bool:
    words = normal_name(_CODE_FENCE.sub("", block))
    return words == "[]" or words.strip("[]'\".") in ("noobjects", "noobject", "none")
