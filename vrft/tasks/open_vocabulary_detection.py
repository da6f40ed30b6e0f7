"""Open-vocabulary detection: all objects that fit a free description, also one that was not in training.

Q: Find everything in the image that fits the description 'fire hydrant' (a street tap for fire engines). …
A: <think>A red one by the kerb.</think><answer>[{'Position': [40, 120, 300, 460], 'Confidence': 0.90}]</answer>

Columns as in `BoxListTask`, and optionally `definition` (str), as in LVIS.
"""

from __future__ import annotations

from dataclasses import dataclass

from vrft.tasks.base import coordinate_words
from vrft.tasks.box_list import BoxListTask
from vrft.tasks.boxes import Frame
from vrft.tasks.rows import Row


@dataclass(frozen=True)
class OpenVocabularyDetectionTask(BoxListTask):
    """Boxes of what fits one description, or one of several with labels."""

    name = "open_vocabulary_detection"
    one_category_examples = (
        {"category": "fire hydrant", "definition": "a street tap for fire engines", "gold": [[70, 64, 420, 330]]},
        {
            "category": "mug or cup",
            "gold": [[12, 20, 96, 140], [210, 30, 300, 160], [400, 250, 490, 390], [9, 300, 90, 470]],
        },
        {"category": "okapi", "gold": []},
    )

    def ask(self, row: Row, frame: Frame) -> str:
        if self.labelled:
            wanted = "one of the descriptions " + ", ".join(f"'{name}'" for name in row["categories"])
        else:
            wanted = f"the description '{row['category']}'"
        definition = f" ({row['definition']})" if row.get("definition") else ""
        return (
            f"Find everything in the image that fits {wanted}{definition}. "
            f"Give each box in {coordinate_words(frame)}, and your confidence from 0 to 1 with two decimals. "
            "If nothing fits, answer No Objects."
        )


TASK = OpenVocabularyDetectionTask
