"""The base of the detection tasks, whose answer is a list of boxes with confidences: its terms and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np

from vrft.tasks.answers import normal_name, read_boxes
from vrft.tasks.base import (
    AnswerTerm,
    Metric,
    Parsed,
    Task,
    require,
    require_distinct,
    require_own_aliases,
    require_texts,
)
from vrft.tasks.boxes import Frame, clip_to_image, from_frame, iou_matrix, to_frame
from vrft.tasks.reward_terms import (
    RewardOptions,
    calibration,
    count_closeness,
    detection_confidence,
    detection_giou,
    detection_iou,
    f1,
    match_boxes,
    precision,
    recall,
)
from vrft.tasks.rows import Row, check_box, labelled_boxes


class Detection(NamedTuple):
    """A predicted box in pixels of the original image, its confidence in [0, 1], and its label ("" without labels)."""

    xyxy: tuple[float, ...]
    confidence: float
    label: str = ""


class Matched(NamedTuple):
    """The predictions of one answer matched with the gold boxes of its row; boxes in pixels of the original image.

    pred_xyxy: (n_pred, 4). confidences: (n_pred,). gold_xyxy: (n_gold, 4). may_match: (n_pred, n_gold), True if the
    labels agree; None if labels are ignored. iou: (n_pred,), of each prediction with its assigned gold box; 0 without
    a match.
    """

    pred_xyxy: Sequence[Sequence[float]]
    confidences: Sequence[float]
    gold_xyxy: Sequence[Sequence[float]]
    may_match: np.ndarray | None
    iou: np.ndarray

    @property
    def n_gold(self) -> int:
        return len(self.gold_xyxy)

    @property
    def counts(self) -> tuple[int, int, int]:
        """The numbers of matches, of predictions and of golds."""
        return int((self.iou > 0).sum()), len(self.iou), self.n_gold


_TERMS = {
    "iou": lambda matched, row: detection_iou(matched.iou, matched.n_gold),
    "giou": lambda matched, row: detection_giou(matched.pred_xyxy, matched.gold_xyxy, matched.may_match),
    "confidence": lambda matched, row: detection_confidence(matched.iou, matched.confidences, matched.n_gold),
    "calibration": lambda matched, row: calibration(matched.iou, matched.confidences, matched.n_gold),
    "precision": lambda matched, row: precision(*matched.counts),
    "recall": lambda matched, row: recall(*matched.counts),
    "f1": lambda matched, row: f1(*matched.counts),
    "count": lambda matched, row: count_closeness(len(matched.pred_xyxy), matched.n_gold),
}


@dataclass(frozen=True)
class BoxListTask(Task):
    """Find all boxes of one or several categories; subclasses word the question.

    labelled: False asks for one category (column `category`, str; `gold`, a list of [x1, y1, x2, y2] in pixels of the
        original image, empty if there is none). True asks for several at once (column `categories`, list of str;
        `gold`, a list of {"label": one of them, "xyxy": [x1, y1, x2, y2]}), and each box of an answer has a label.
    Optional columns: `distractors`, and with labels `aliases` ({label: [other names for it]}).
    """

    labelled: bool = False

    answer_kind = "boxes"
    protocol_scorers = ("coco", "rows")
    asked_column = "category"
    one_category_examples: ClassVar[tuple[Row, ...]]
    labelled_examples = (
        {"categories": ["dog", "cat"], "gold": [{"label": "dog", "xyxy": [70, 64, 420, 330]}]},
        {
            "categories": ["cup", "driver's seat"],
            "aliases": {"cup": ["mug"]},
            "gold": [
                {"label": "cup", "xyxy": [12, 20, 96, 140]},
                {"label": "driver's seat", "xyxy": [210, 30, 300, 160]},
                {"label": "cup", "xyxy": [400, 250, 490, 390]},
                {"label": "driver's seat", "xyxy": [520, 40, 630, 210]},
            ],
        },
        {"categories": ["zebra", "okapi"], "gold": []},
    )

    @property
    def examples(self) -> tuple[Row, ...]:
        return self.labelled_examples if self.labelled else self.one_category_examples

    def check(self, row: Row) -> None:
        gold = require(row, "gold", list)
        if self.labelled:
            self._check_labels(row)
        elif "problem" not in row:
            require(row, "category", str)
        for xyxy in [entry["xyxy"] for entry in gold] if self.labelled else gold:
            check_box(xyxy, row["image_wh"])

    def _check_labels(self, row: Row) -> None:
        categories = {normal_name(name) for name in require_texts(row, "categories")}
        require_distinct(row["categories"], "categories")
        for entry in row["gold"]:
            label = entry.get("label") if isinstance(entry, dict) else None
            if not isinstance(label, str) or normal_name(label) not in categories or "xyxy" not in entry:
                raise ValueError(
                    f'gold {entry!r} is not {{"label": one of the categories, "xyxy": [4 numbers]}}; '
                    f"the categories are {row['categories']!r}"
                )
        for name in [*row["categories"], *(entry["label"] for entry in row["gold"])]:
            if len(name) > 200 or set(name) & set("[]{}\\") or {"'", '"'} <= set(name):
                raise ValueError(
                    f"category {name!r} cannot be written as a label: at most 200 characters, no brackets or "
                    "backslashes, and not both kinds of quotes are right"
                )
        aliases = row.get("aliases", {})
        if not isinstance(aliases, dict):
            raise ValueError(f"aliases is {aliases!r}; a mapping of labels to lists of other names is needed")
        for label in aliases:
            require_texts(aliases, label)
        require_own_aliases(aliases, row["categories"])

    def asked(self, text: str) -> Row:
        """As `Task.asked`; with labels, the categories, separated by commas."""
        return {"categories": [name.strip() for name in text.split(",")]} if self.labelled else super().asked(text)

    def wanted(self, row: Row) -> str:
        """The categories of the row, as a question names them."""
        if self.labelled:
            return "the categories " + ", ".join(f"'{name}'" for name in row["categories"])
        return f"the category '{row['category']}'"

    def answer_form(self, frame: Frame) -> str:
        label = ", 'Label': 'category'" if self.labelled else ""
        return f"[{{'Position': [x1, y1, x2, y2], 'Confidence': number{label}}}, ...]"

    def write(self, gold: list, frame: Frame) -> str:
        return write_boxes([Detection(xyxy, 1.0, label) for xyxy, label in labelled_boxes(gold)], frame)

    def parse(self, text: str, row: Row, frame: Frame, *, is_truncated: bool = False) -> Parsed:
        """As `Task.parse`. An alias of an asked label is replaced by the label, for rewards and scorers."""
        parsed = super().parse(text, row, frame, is_truncated=is_truncated)
        aliases = row.get("aliases")
        if not self.labelled or not aliases or not parsed.answer:
            return parsed
        asked = {normal_name(alias): label for label, names in aliases.items() for alias in names}
        answer = [box._replace(label=asked.get(normal_name(box.label), box.label)) for box in parsed.answer]
        return replace(parsed, answer=answer)

    def read(self, block: str, frame: Frame) -> tuple[list[Detection] | None, str | None]:
        """Boxes clipped to the image, in the written order. Of equal boxes with the same label only the first stays."""
        boxes, reason = read_boxes(block, with_labels=self.labelled)
        if boxes is None:
            return None, reason
        flat = from_frame(
            [value for box in boxes for value in box.xyxy], frame
        )  # all at once: a numpy call per box is slower
        detections: dict[tuple, Detection] = {}
        for box, xyxy in zip(boxes, clip_to_image(np.reshape(flat, (-1, 4)), frame.image_wh), strict=True):
            place, label = tuple(xyxy), box.label and normal_name(box.label)
            detections.setdefault((place, label), Detection(place, box.confidence, box.label))
        return list(detections.values()), None

    def read_gold(self, block: str, frame: Frame) -> tuple[list | None, str | None]:
        """Boxes, not clipped to the image; of equal boxes only the first stays."""
        boxes, reason = read_boxes(block, with_labels=self.labelled)
        if boxes is None:
            return None, reason
        if self.labelled:
            distinct = dict.fromkeys((box.label, box.xyxy) for box in boxes)
            return [{"label": label, "xyxy": from_frame(xyxy, frame)} for label, xyxy in distinct], None
        return [from_frame(xyxy, frame) for xyxy in dict.fromkeys(box.xyxy for box in boxes)], None

    def answer_terms(self, options: RewardOptions) -> dict[str, AnswerTerm]:
        """As `Task.answer_terms`: functions of what `measure` returns, and the row."""
        return dict(_TERMS)

    def measure(self, answer: list[Detection], row: Row, options: RewardOptions) -> Matched:
        """The answer's boxes matched with the row's golds."""
        pred, confidences = [d.xyxy for d in answer], [d.confidence for d in answer]
        gold = [xyxy for xyxy, _ in labelled_boxes(row["gold"])]
        may_match = self.may_match(answer, row, options)
        iou = match_boxes(pred, confidences, gold, options, may_match=may_match)
        return Matched(pred, confidences, gold, may_match, iou)

    def confidence_gap(self, answer: list[Detection], row: Row) -> float | None:
        if not answer:
            return None
        matched = self.measure(answer, row, RewardOptions())
        return float(np.mean(matched.confidences) - np.mean(matched.iou))

    def may_match(self, answer: list[Detection], row: Row, options: RewardOptions) -> np.ndarray | None:
        """(n_pred, n_gold), True if the labels agree; None if labels are ignored."""
        if not self.labelled or not options.label_aware:
            return None
        golds = [normal_name(label) for _, label in labelled_boxes(row["gold"])]
        labels = [normal_name(d.label) for d in answer]
        return np.array([[label == gold for gold in golds] for label in labels], bool).reshape(len(labels), len(golds))

    @property
    def metrics(self) -> dict[str, Metric]:
        terms = self.terms(RewardOptions())
        return {"iou": terms["iou"], "f1": terms["f1"], "pick_rate": pick_rate}


def write_boxes(detections: Sequence[Detection], frame: Frame) -> str:
    """The content of an answer block. Empty labels are not written."""
    boxes = []
    for xyxy, confidence, label in detections:
        quote = '"' if "'" in label else "'"
        labelled = f", 'Label': {quote}{label}{quote}" if label else ""
        boxes.append(f"{{'Position': {to_frame(xyxy, frame)}, 'Confidence': {confidence:.2f}{labelled}}}")
    return f"[{', '.join(boxes)}]" if boxes else "No Objects"


def pick_rate(parsed: Parsed, row: Row) -> float | None:
    """1.0 if the most confident box has a larger IoU with some gold box than with every distractor, else 0.0.

    Also 0.0 without a box. None if the row has no gold or no distractors.
    """
    if not row["gold"] or not row.get("distractors"):
        return None
    if not parsed.answer:
        return 0.0
    best = max(parsed.answer, key=lambda detection: detection.confidence)
    asked = iou_matrix([best.xyxy], [xyxy for xyxy, _ in labelled_boxes(row["gold"])]).max()
    return float(asked > iou_matrix([best.xyxy], row["distractors"]).max())
