"""Reasoning grounding: the box of one object; the model must first reason which object is meant.

Q: Work out which object is meant, then find it in the image: two plus three minus one. …
A: <think>two plus three is five, minus one is four.</think><answer>(40,120),(300,460)</answer>
"""

from __future__ import annotations

from dataclasses import dataclass

from vrft.tasks.base import coordinate_words
from vrft.tasks.boxes import Frame
from vrft.tasks.one_box import OneBoxTask
from vrft.tasks.rows import Row


@dataclass(frozen=True)
class ReasoningGroundingTask(OneBoxTask):
    """A description, and the box of its object; columns as in `OneBoxTask`."""

    name = "reasoning_grounding"
    examples = (
        {"phrase": "what one drinks from", "gold": [402, 120, 470, 233]},
        {"phrase": "the animal that barks", "gold": [31, 205, 240, 470]},
    )

    def ask(self, row: Row, frame: Frame) -> str:
        return (
            f"Work out which object is meant, then find it in the image: {row['phrase']}. "
            f"Give its one box in {coordinate_words(frame)}."
        )


TASK = ReasoningGroundingTask
