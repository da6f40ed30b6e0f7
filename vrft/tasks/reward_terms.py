"""Reward terms: pure functions of answers and golds, each in [0, 1]. The config gives the weights.

"Published" in a docstring: the term follows Visual-RFT (arXiv 2503.01785, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from vrft.tasks.answers import normal_name
from vrft.tasks.boxes import giou_matrix, iou_matrix

MATCHINGS = ("greedy", "hungarian")
ON_FAULT = ("stop", "zero")
_N_GRAM = 4

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True)
class RewardOptions:
    """Options of the terms.

    matching: of predicted and gold boxes: `greedy` by falling confidence, or `hungarian` (the largest sum of IoU).
    iou_threshold: in [0, 1); the IoU of a match must exceed it. With 0, any overlap is a match (soft matching).
    label_aware: True: a box with a wrong label matches nothing.
    length_limit: number of characters up to which the term `length` is 1.
    on_fault: if a user-defined term fails: `stop` ends the run, `zero` gives 0 and counts the failure.
    timeout_s: seconds that one call of a user-defined term may take.
    """

    matching: str = "greedy"
    iou_threshold: float = 0.5
    label_aware: bool = True
    length_limit: int = 4000
    on_fault: str = "stop"
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name, known in (("matching", MATCHINGS), ("on_fault", ON_FAULT)):
            if getattr(self, name) not in known:
                raise ValueError(f"reward.options.{name} is {getattr(self, name)!r}; known: {', '.join(known)}")
        if not 0 <= self.iou_threshold < 1:
            raise ValueError(f"reward.options.iou_threshold is {self.iou_threshold}; it must lie in [0, 1)")
        for name in ("length_limit", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"reward.options.{name} is {getattr(self, name)}; it must be above 0")


def match_boxes(
    pred_xyxy: Sequence,
    confidences: Sequence[float],
    gold_xyxy: Sequence,
    options: RewardOptions,
    *,
    may_match: np.ndarray | None = None,
) -> np.ndarray:
    """IoU of each prediction (n, 4) with the gold box (m, 4) assigned to it, shape (n,); 0 without a match.

    Each gold box is assigned at most once, and only to a prediction whose IoU exceeds the threshold.
    may_match: (n, m), True if prediction and gold may match (their labels agree); None: all may.

    >>> match_boxes([[0, 0, 2, 2], [0, 0, 2, 2]], [0.5, 0.9], [[0, 0, 2, 2]], RewardOptions()).tolist()
    [0.0, 1.0]
    """
    iou = iou_matrix(pred_xyxy, gold_xyxy)
    iou = np.where(iou > options.iou_threshold, iou, 0.0)
    if may_match is not None:
        iou = np.where(may_match, iou, 0.0)
    matched = np.zeros(len(iou))
    if not iou.any():
        return matched
    if options.matching == "hungarian":
        pred_index, gold_index = linear_sum_assignment(-iou)
        matched[pred_index] = iou[pred_index, gold_index]
        return matched
    could_match = iou.any(axis=1)
    for index in np.argsort(-np.asarray(confidences, float), kind="stable"):
        if could_match[index]:
            best = int(iou[index].argmax())
            matched[index] = iou[index, best]
            if matched[index] > 0:
                iou[:, best] = 0.0
    return matched


def detection_iou(matched_iou: np.ndarray, n_gold: int) -> float:
    """Sum of the matches' IoU, divided by max(n_gold, n_pred), in [0, 1]; 1 without gold and predictions. Published."""
    n_most = max(n_gold, len(matched_iou))
    return float(matched_iou.sum() / n_most) if n_most else 1.0


def detection_giou(pred_xyxy: Sequence, gold_xyxy: Sequence, may_match: np.ndarray | None = None) -> float:
    """Sum of (GIoU + 1) / 2 of the best one-to-one pairs, divided by max(n_gold, n_pred), in [0, 1].

    Unlike IoU, it also ranks boxes that miss. Without boxes: as `detection_iou`.
    """
    n_most = max(len(gold_xyxy), len(pred_xyxy))
    if not len(gold_xyxy) or not len(pred_xyxy):
        return float(n_most == 0)
    closeness = (giou_matrix(pred_xyxy, gold_xyxy) + 1) / 2
    if may_match is not None:
        closeness = np.where(may_match, closeness, 0.0)
    return float(closeness[linear_sum_assignment(-closeness)].sum() / n_most)


def detection_confidence(matched_iou: np.ndarray, confidences: Sequence[float], n_gold: int) -> float:
    """Mean over predictions, in [0, 1]: the confidence of a match, one minus the confidence of a miss. Published.

    Without predictions: 1 if there is no gold, else 0. It is not a proper score: confidences of 0 and 1 give the most,
    and a miss of confidence 0 gives as much as a match of confidence 1. `calibration` fixes both.
    """
    if not len(matched_iou):
        return float(n_gold == 0)
    confidences = np.clip(np.asarray(confidences, float), 0, 1)
    return float(np.where(matched_iou > 0, confidences, 1 - confidences).mean())


def calibration(matched_iou: np.ndarray, confidences: Sequence[float], n_gold: int) -> float:
    """A proper score of the confidences c, in [0, 1]. A box of confidence 0 does not change it.

    Each match adds 2c - c²; each other box subtracts c². This is the Brier score 1 - (c - hit)² minus its value at
    c = 0, so the expected score is largest if c is the probability of a match. The sum divided by n_gold is at most 1.
    It is moved from [-1, 1] to [0, 1] and clipped at 0, where further confident misses cost nothing (`iou` punishes
    them). Without gold: 1 minus the sum of c².

    >>> calibration(np.array([0.8, 0.0]), [1.0, 0.0], 1), calibration(np.array([0.8, 0.0]), [1.0, 1.0], 1)
    (1.0, 0.5)
    """
    c = np.clip(np.asarray(confidences, float), 0, 1)
    total = float(np.where(matched_iou > 0, 2 * c - c**2, -(c**2)).sum())
    share = (1 + total / n_gold) / 2 if n_gold else 1 + total
    return min(max(share, 0.0), 1.0)


def precision(n_matched: int, n_pred: int, n_gold: int) -> float:
    """Share of the predictions that match, in [0, 1]; without predictions: 1 if there is no gold, else 0."""
    return n_matched / n_pred if n_pred else float(n_gold == 0)


def recall(n_matched: int, n_pred: int, n_gold: int) -> float:
    """Share of the golds that are matched, in [0, 1]; without gold: 1 if there is no prediction, else 0."""
    return n_matched / n_gold if n_gold else float(n_pred == 0)


def f1(n_matched: int, n_pred: int, n_gold: int) -> float:
    """Harmonic mean of precision and recall, in [0, 1]; 1 without gold and predictions."""
    return 2 * n_matched / (n_pred + n_gold) if n_pred + n_gold else 1.0


def count_closeness(n_pred: int, n_gold: int) -> float:
    """One minus the error of the count, divided by the larger count, in [0, 1]; 1 for equal counts, also 0 and 0.

    >>> count_closeness(3, 4), count_closeness(0, 4), count_closeness(0, 0)
    (0.75, 0.0, 1.0)
    """
    return 1 - abs(n_pred - n_gold) / max(n_pred, n_gold, 1)


def box_iou(pred_xyxy: Sequence[float], gold_xyxy: Sequence[float]) -> float:
    """IoU of two boxes, in [0, 1]."""
    return float(iou_matrix([pred_xyxy], [gold_xyxy])[0, 0])


def box_giou(pred_xyxy: Sequence[float], gold_xyxy: Sequence[float]) -> float:
    """Generalised IoU of two boxes, moved from [-1, 1] to [0, 1]; the published term is twice this."""
    return float((giou_matrix([pred_xyxy], [gold_xyxy])[0, 0] + 1) / 2)


def point_in_box(point_xy: Sequence[float], xyxy: Sequence[float]) -> float:
    """1.0 if the point is in the box or on its edge, else 0.0."""
    (x, y), (x1, y1, x2, y2) = point_xy, xyxy
    return float(x1 <= x <= x2 and y1 <= y <= y2)


def point_closeness(point_xy: Sequence[float], xyxy: Sequence[float], image_wh: Sequence[int]) -> float:
    """In [0, 1]: 1 in the box, falling with the distance to the box, 0 at a distance of the image's diagonal."""
    (x, y), (x1, y1, x2, y2) = point_xy, xyxy
    distance = np.hypot(max(x1 - x, 0.0, x - x2), max(y1 - y, 0.0, y - y2))
    return float(max(0.0, 1 - distance / np.hypot(*image_wh)))


def same_name(pred: str, golds: Sequence[str]) -> float:
    """1.0 if the name is one of the golds, ignoring case, blanks, underscores, hyphens, outer punctuation; else 0.0."""
    return float(normal_name(pred) in {normal_name(gold) for gold in golds})


def well_formed(text: str, *, has_thought: bool) -> float:
    """1.0 if the whole completion is one `<think>` block, blanks, and one `<answer>` block, else 0.0. Published.

    has_thought: False: only the `<answer>` block.

    >>> well_formed("<think>a</think> <answer>b</answer>", has_thought=True)
    1.0
    >>> well_formed("<answer>b</answer>", has_thought=True)
    0.0
    """
    n_thoughts = int(has_thought)
    if [text.count(tag) for tag in _TAGS] != [n_thoughts, n_thoughts, 1, 1] or not text.endswith("</answer>"):
        return 0.0
    thought, _, answer = text.rpartition("</think>")
    is_thought = thought.startswith("<think>") if has_thought else not thought
    return float(is_thought and (answer.lstrip() if has_thought else answer).startswith("<answer>"))


def within_length(text: str, limit: int) -> float:
    """1 up to `limit` characters, falling to 0 at twice as many, in [0, 1] (the soft overlong penalty of DAPO, arXiv
    2503.14476, section 3.4).

    >>> within_length("a" * 30, 20)
    0.5
    """
    return min(max(2 - len(text) / limit, 0.0), 1.0)


def without_repetition(text: str) -> float:
    """The share of distinct 4-grams among all 4-grams of words, in (0, 1]; 1 for fewer than four words.

    >>> without_repetition("the dog is here"), round(without_repetition("no " * 23), 2)
    (1.0, 0.05)
    """
    words = text.lower().split()
    n_all = len(words) - _N_GRAM + 1
    return len(set(zip(*(words[start:] for start in range(_N_GRAM)), strict=False))) / n_all if n_all > 0 else 1.0
