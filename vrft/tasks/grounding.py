"""Grounding: the box of the one object that a phrase names.

Q: Find this object in the image: the digit seven. Give its one box in integers from 0 to 1000. …
A: <think>It is on the left.</think><answer>(40,120),(300,460)</answer>
"""

from __future__ import annotations

from dataclasses import dataclass

from vrft.tasks.base import coordinate_words
from vrft.tasks.boxes import Frame
from vrft.tasks.one_box import OneBoxTask
from vrft.tasks.rows import Row


@dataclass(frozen=True)
class GroundingTask(OneBoxTask):
    """A phrase, and the box that it names; columns as in `OneBoxTask`."""

    name = "grounding"
    examples = (
        {"phrase": "the red cup", "gold": [402, 120, 470, 233]},
        {"phrase": "the dog on the left", "gold": [31, 205, 240, 470]},
    )

    def ask(self, row: Row, frame: Frame) -> str:
        return f"Find this object in the image: {row['phrase']}. Give its one box in {coordinate_words(frame)}."


TASK = GroundingTask
