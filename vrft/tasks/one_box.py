"""The base of grounding and reasoning grounding: the answer is one box."""

from __future__ import annotations

from dataclasses import dataclass

from vrft.tasks.answers import read_box
from vrft.tasks.base import AnswerTerm, Metric, Parsed, Task, given, require
from vrft.tasks.boxes import Frame, clip_to_image, from_frame, iou_matrix, to_frame
from vrft.tasks.reward_terms import RewardOptions, box_giou, box_iou
from vrft.tasks.rows import Row, check_box

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class OneBoxTask(Task):
    """A task whose answer is one box, written `(x1,y1),(x2,y2)`. Subclasses word the question.

    Columns: `phrase` (str), `gold` ([x1, y1, x2, y2] in pixels of the original image). Optional: `distractors` (boxes).
    """

    answer_kind = "box"
    protocol_scorers = ("grounding", "masks", "rows")
    asked_column = "phrase"

    def check(self, row: Row) -> None:
        if "problem" not in row:
            require(row, "phrase", str)
        check_box(given(row, "gold"), row["image_wh"])

    def answer_form(self, frame: Frame) -> str:
        return "(x1,y1),(x2,y2)"

    def write(self, gold: list[float], frame: Frame) -> str:
        x1, y1, x2, y2 = to_frame(gold, frame)
        return f"({x1},{y1}),({x2},{y2})"

    def read(self, block: str, frame: Frame) -> tuple[Box | None, str | None]:
        """The box, clipped to the image. An inverted box is readable; its IoU is 0."""
        written, reason = read_box(block)
        if written is None:
            return None, reason
        return tuple(clip_to_image(from_frame(written, frame), frame.image_wh)), None

    def read_gold(self, block: str, frame: Frame) -> tuple[list[float] | None, str | None]:
        """The box, not clipped to the image."""
        written, reason = read_box(block)
        return (from_frame(written, frame), None) if written else (None, reason)

    def answer_terms(self, options: RewardOptions) -> dict[str, AnswerTerm]:
        return {
            "iou": lambda answer, row: box_iou(answer, row["gold"]),
            "giou": lambda answer, row: box_giou(answer, row["gold"]),
        }

    @property
    def metrics(self) -> dict[str, Metric]:
        iou = self.terms(RewardOptions())["iou"]
        return {"accuracy@0.5": lambda parsed, row: float(iou(parsed, row) >= 0.5), "iou": iou, "pick_rate": picks_gold}


def picks_gold(parsed: Parsed, row: Row) -> float | None:
    """1.0 if the box has a higher IoU with the gold than with any distractor, else 0.0; None without distractors."""
    if not row.get("distractors"):
        return None
    if parsed.answer is None:
        return 0.0
    asked, others = iou_matrix([parsed.answer], [row["gold"]]), iou_matrix([parsed.answer], row["distractors"])
    return float(asked.max() > others.max())
