"""Reward terms: pure functions of answers and golds, each in [0, 1].

The terms follow the published method (Visual-RFT, arXiv 2503.01785, section 3.2) where their names say so; the config
gives the weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from vrft.answers import normal_name
from vrft.boxes import giou_matrix, iou_matrix

MATCHINGS = ("greedy", "hungarian")

_THINK_FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_PLAIN_FORMAT = re.compile(r"\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")


@dataclass(frozen=True)
class RewardOptions:
    """How terms judge: `matching` of predicted and gold boxes (`greedy` by falling confidence, or `hungarian`), and the
    `iou_threshold` that a match must exceed, in [0, 1)."""

    matching: str = "greedy"
    iou_threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.matching not in MATCHINGS:
            raise ValueError(f"reward.options.matching is {self.matching!r}; known: {', '.join(MATCHINGS)}")
        if not 0 <= self.iou_threshold < 1:
            raise ValueError(f"reward.options.iou_threshold is {self.iou_threshold}; it must lie in [0, 1)")


def match_boxes(
    pred_xyxy: Sequence, confidences: Sequence[float], gold_xyxy: Sequence, options: RewardOptions
) -> np.ndarray:
    """IoU of each prediction (n, 4) with the gold box (m, 4) given to it, shape (n,); 0 for a prediction without a
    match.

    Each gold box is given once, and only to a prediction whose IoU exceeds the threshold.

    >>> match_boxes([[0, 0, 2, 2], [0, 0, 2, 2]], [0.5, 0.9], [[0, 0, 2, 2]], RewardOptions()).tolist()
    [0.0, 1.0]
    """
    iou = iou_matrix(pred_xyxy, gold_xyxy)
    iou = np.where(iou > options.iou_threshold, iou, 0.0)
    matched = np.zeros(len(iou))
    if iou.size == 0:
        return matched
    if options.matching == "hungarian":
        pred_index, gold_index = linear_sum_assignment(-iou)
        matched[pred_index] = iou[pred_index, gold_index]
        return matched
    for index in np.argsort(-np.asarray(confidences, float), kind="stable"):
        best = int(np.argmax(iou[index]))
        matched[index] = iou[index, best]
        if matched[index] > 0:
            iou[:, best] = 0.0
    return matched


def detection_iou(matched_iou: np.ndarray, n_gold: int) -> float:
    """Sum of the matches' IoU over max(n_gold, n_pred), in [0, 1]; 1 when there is nothing to find and nothing was
    found."""
    n_most = max(n_gold, len(matched_iou))
    return float(matched_iou.sum() / n_most) if n_most else 1.0


def detection_confidence(matched_iou: np.ndarray, confidences: Sequence[float], n_gold: int) -> float:
    """Mean over predictions of the confidence where matched and one minus it where not, in [0, 1].

    Without predictions: 1 when there is nothing to find, else 0.
    """
    if not len(matched_iou):
        return float(n_gold == 0)
    confidences = np.clip(np.asarray(confidences, float), 0, 1)
    return float(np.where(matched_iou > 0, confidences, 1 - confidences).mean())


def box_iou(pred_xyxy: Sequence[float], gold_xyxy: Sequence[float]) -> float:
    """IoU of two boxes, in [0, 1]."""
    return float(iou_matrix([pred_xyxy], [gold_xyxy])[0, 0])


def box_giou(pred_xyxy: Sequence[float], gold_xyxy: Sequence[float]) -> float:
    """Generalised IoU of two boxes moved from [-1, 1] to [0, 1]; the published term is twice this."""
    return float((giou_matrix([pred_xyxy], [gold_xyxy])[0, 0] + 1) / 2)


def same_name(pred: str, gold: str) -> float:
    """1.0 if both name the same class (case, blanks, underscores and hyphens aside), else 0.0."""
    return float(normal_name(pred) == normal_name(gold))


def well_formed(text: str, thinking: str) -> float:
    """1.0 if the whole completion is one `<think>` block and one `<answer>` block (only the latter without thinking),
    else 0.0.

    >>> well_formed("<think>a</think> <answer>b</answer>", "think"), well_formed("<answer>b</answer>", "think")
    (1.0, 0.0)
    """
    # Tags first: with each tag there once, the pattern has one way to match, and takes linear time.
    wanted = _THINK_FORMAT if thinking == "think" else _PLAIN_FORMAT
    return float(_TAG.findall(text) == _TAG.findall(wanted.pattern) and wanted.fullmatch(text) is not None)
