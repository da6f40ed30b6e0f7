"""Detection: all objects of one category, as boxes with confidences.

    Q: Find every seven in the image. …
    A: <think>One seven on the left.</think><answer>[{'Position': [40, 120, 300, 460], 'Confidence': 0.90}]</answer>

Columns: `category` (str), `gold` (list of [x1, y1, x2, y2] in pixels of the original image; empty: there is none).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vrft.answers import read_boxes
from vrft.boxes import Frame, clip_to_image, from_frame, iou_matrix, to_frame
from vrft.rewards import RewardOptions, detection_confidence, detection_iou, match_boxes
from vrft.rows import Row, box_fault
from vrft.tasks.base import Metric, Parsed, Task, Term, coordinate_words, require


class Detection(NamedTuple):
    """A predicted box in pixels of the original image, and its confidence in [0, 1]."""

    xyxy: tuple[float, ...]
    confidence: float


@dataclass(frozen=True)
class DetectionTask(Task):
    """Boxes of one category; see the module."""

    name = "detection"
    term_names = ("iou", "confidence", "format")
    protocol_scorers = ("coco",)
    asked_column = "category"

    def check(self, row: Row) -> None:
        if "problem" not in row:
            require(row, "category", str)
        for xyxy in require(row, "gold", list):
            if fault := box_fault(xyxy, row["image_wh"]):
                raise ValueError(fault)

    def ask(self, row: Row, frame: Frame) -> str:
        return (
            f"Find every object of the category '{row['category']}' in the image. "
            f"Give each box in {coordinate_words(frame)}, and your confidence from 0 to 1 with two decimals. "
            "If there is none, answer No Objects."
        )

    def answer_form(self, frame: Frame) -> str:
        return "[{'Position': [x1, y1, x2, y2], 'Confidence': number}, ...]"

    def write(self, gold: list, frame: Frame) -> str:
        boxes = [f"{{'Position': {to_frame(xyxy, frame)}, 'Confidence': 1.00}}" for xyxy in gold]
        return f"[{', '.join(boxes)}]" if boxes else "No Objects"

    def read(self, block: str, frame: Frame) -> tuple[list[Detection] | None, str | None]:
        """Boxes cut to the image, in the order written; of boxes in the same place only the first."""
        boxes, reason = read_boxes(block)
        if boxes is None:
            return None, reason
        detections = {}
        for box in boxes:
            xyxy = tuple(clip_to_image(from_frame(box.xyxy, frame), frame.image_wh))
            detections.setdefault(xyxy, Detection(xyxy, box.confidence))
        return list(detections.values()), None

    def read_gold(self, block: str, frame: Frame) -> tuple[list | None, str | None]:
        """Boxes as they are, not cut to the image; of equal boxes only the first."""
        boxes, reason = read_boxes(block)
        if boxes is None:
            return None, reason
        return [from_frame(xyxy, frame) for xyxy in dict.fromkeys(box.xyxy for box in boxes)], None

    def terms(self, options: RewardOptions) -> dict[str, Term]:
        def matched(answer: list[Detection], row: Row) -> np.ndarray:
            return match_boxes([d.xyxy for d in answer], [d.confidence for d in answer], row["gold"], options)

        def iou(parsed: Parsed, row: Row) -> float:
            return 0.0 if parsed.answer is None else detection_iou(matched(parsed.answer, row), len(row["gold"]))

        def confidence(parsed: Parsed, row: Row) -> float:
            if parsed.answer is None:
                return 0.0
            confidences = [d.confidence for d in parsed.answer]
            return detection_confidence(matched(parsed.answer, row), confidences, len(row["gold"]))

        return {"iou": iou, "confidence": confidence, "format": self.format_term}

    @property
    def metrics(self) -> dict[str, Metric]:
        return {"iou": self.terms(RewardOptions())["iou"], "pick_rate": pick_rate}


def pick_rate(parsed: Parsed, row: Row) -> float | None:
    """1.0 if the most confident box lies nearest (by IoU) to an object that was asked for, not to a distractor.

    0.0 if it touches no object at all or there is no box; None where the row has no gold or no distractors.
    """
    if not row["gold"] or not row.get("distractors"):
        return None
    if not parsed.answer:
        return 0.0
    best = max(parsed.answer, key=lambda detection: detection.confidence)
    asked = iou_matrix([best.xyxy], row["gold"]).max()
    return float(asked > iou_matrix([best.xyxy], row["distractors"]).max())


TASK = DetectionTask
