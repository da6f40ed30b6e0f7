"""Detection: all objects of one category, or of several with labels, as boxes with confidences.

Q: Find every object of the category 'dog' in the image. …
A: <think>One dog on the left.</think><answer>[{'Position': [40, 120, 300, 460], 'Confidence': 0.90}]</answer>

An answer is read by `vrft.tasks.box_list` with the patterns of `vrft.tasks.answers`.
"""

from __future__ import annotations

from dataclasses import dataclass

from vrft.tasks.base import coordinate_words
from vrft.tasks.box_list import BoxListTask
from vrft.tasks.boxes import Frame
from vrft.tasks.rows import Row


@dataclass(frozen=True)
class DetectionTask(BoxListTask):
    """Boxes of one category, or of several with labels; columns as in `BoxListTask`."""

    name = "detection"
    one_category_examples = (
        {"category": "dog", "gold": [[70, 64, 420, 330]]},
        {
            "category": "cup",
            "gold": [[12, 20, 96, 140], [210, 30, 300, 160], [400, 250, 490, 390], [520, 40, 630, 210]],
        },
        {"category": "zebra", "gold": []},
    )

    def ask(self, row: Row, frame: Frame) -> str:
        categories = self.wanted(row)
        which = f"any of {categories}" if self.labelled else categories
        return (
            f"Find every object of {which} in the image. "
            f"Give each box in {coordinate_words(frame)}, and your confidence from 0 to 1 with two decimals. "
            "If there is none, answer No Objects."
        )


TASK = DetectionTask
