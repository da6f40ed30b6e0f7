"""Confidences that rank boxes for average precision: as written, from token probabilities, or from agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vrft.tasks.answers import answer_span, box_spans, normal_name
from vrft.tasks.base import Parsed, Task
from vrft.tasks.boxes import Frame, iou_matrix
from vrft.tasks.rows import Row

_SAME_IOU = 0.5


def rank_by(
    protocol: Mapping, parsed: Parsed, completions: Sequence[Mapping], row: Row, *, task: Task, frame: Frame
) -> Parsed:
    """The completion, with the confidences of its boxes from the protocol's `score_source`. Without boxes, unchanged.

    `written`: as the model wrote them.
    `token_probability`: the geometric mean of the probabilities of the box's tokens.
    `agreement`: the share of the other samples that have a box with the same label at an IoU of at least 0.5.
    completions: those of the row; the first is sample 0, which `parsed` comes from. Raises ValueError that says what
    the completions lack for the source.
    """
    source = protocol.get("score_source") or "written"
    if source == "written":
        return parsed
    if source == "token_probability":
        if "token_logprobs" not in completions[0]:
            raise ValueError("it has no token_logprobs, which protocol.score_source=token_probability needs")
        scores = _token_probabilities(parsed, completions[0], row, task=task, frame=frame)
    else:
        if len(completions) != 1 + protocol["n_samples"]:
            raise ValueError(
                f"it has {len(completions) - 1} samples besides sample 0; protocol.score_source=agreement with "
                f"protocol.n_samples={protocol['n_samples']} needs as many"
            )
        others = [task.parse(one["text"], row, frame).answer or [] for one in completions[1:]]
        scores = [sum(_has(other, box) for other in others) / len(others) for box in parsed.answer or []]
    boxes = parsed.answer and [box._replace(confidence=score) for box, score in zip(parsed.answer, scores, strict=True)]
    return replace(parsed, answer=boxes)


def _token_probabilities(parsed: Parsed, completion: Mapping, row: Row, *, task: Task, frame: Frame) -> list[float]:
    if not parsed.answer:
        return []
    text = completion["text"]
    n_opened = len(parsed.text) - len(text)  # length of the <think> that the prompt may contain
    begin, end = answer_span(parsed.text)
    written: dict[tuple, float] = {}
    for first, last in box_spans(parsed.text[begin:end], with_labels=getattr(task, "labelled", False)):
        piece = f"<answer>{parsed.text[begin + first : begin + last]}</answer>"
        alone = task.parse(f"</think>{piece}", row, frame).answer
        place = (begin - n_opened + first, begin - n_opened + last)
        for box in alone or []:
            written.setdefault(_place(box), mean_probability(completion["token_logprobs"], *place))
    return [written[_place(box)] for box in parsed.answer]


def mean_probability(token_logprobs: Sequence[Sequence[float]], first: int, last: int) -> float:
    """The geometric mean of the probabilities of the tokens of the characters from `first` to before `last`.

    token_logprobs: `[end of the token in the text, its log probability]`, in order. A token with the same end as the
        token before it is part of the same character.

    >>> round(mean_probability([[2, -0.1], [4, -1.0], [6, -3.0], [9, -0.1]], 2, 5), 6)  # e ** -2
    0.135335
    """
    previous, logprobs = 0, []
    for end, logprob in token_logprobs:
        begin = min(previous, end - 1)
        if max(begin, first) < min(end, last):
            logprobs.append(logprob)
        previous = end
    return math.exp(math.fsum(logprobs) / len(logprobs)) if logprobs else 0.0


def _has(boxes: Sequence[Any], box: Any) -> bool:
    same = [other.xyxy for other in boxes if normal_name(other.label) == normal_name(box.label)]
    return bool(same) and bool(iou_matrix([box.xyxy], same).max() >= _SAME_IOU)


def _place(box: Any) -> tuple:
    return box.xyxy, normal_name(box.label)
