"""What ranks boxes for average precision: the tokens that write them, or the samples that agree with them."""

from __future__ import annotations

import json
import math

import pytest

from vrft.evaluate.box_ranking import mean_probability
from vrft.evaluate.box_ranking import rank_by as rank_by_protocol
from vrft.evaluate.score import score_completions
from vrft.tasks import load_task
from vrft.tasks.answers import answer_span, box_spans, read_answer_block, read_boxes
from vrft.tasks.boxes import Frame
from vrft.tasks.reward import RewardFunction

FRAME = Frame("norm1000", (100, 100), (56, 56))
ROW = {"row_id": "r", "images": ["a.png"], "image_wh": [100, 100], "category": "dog", "gold": [[0, 0, 50, 50]]}
LABELLED = {**ROW, "categories": ["dog", "cat"], "aliases": {"dog": ["hound"]}, "gold": []}
A, B = "{'Position': [0, 0, 500, 500], 'Confidence': 0.50}", "{'Position': [500, 500, 1000, 1000], 'Confidence': 0.50}"


def rank_by(source, parsed, completions, row, **more):
    protocol = {"score_source": source, "n_samples": len(completions) - 1}
    return rank_by_protocol(protocol, parsed, completions, row, **more)


def completion(text, sample=0, **more):
    return {"row_id": "r", "sample": sample, "text": text, "n_tokens": 5, "is_truncated": False, **more}


def by_character(text, *, likely, unlikely):
    """A token a character, of log probability -0.1, but -2 where `unlikely` stands."""
    first = text.index(unlikely)
    assert likely in text
    return [[n + 1, -2.0 if first <= n < first + len(unlikely) else -0.1] for n in range(len(text))]


@pytest.mark.parametrize(
    "block",
    [
        f"[{A}, {B}]",
        f"```json\n[{A},\n{B}]\n```",
        '[{"bbox_2d": [1, 2, 3, 4], "label": "bow (tie)"}, {"bbox_2d": [5, 6, 7, 8], "label": "cup"}]',
        "(1,2),(3,4) and (5,6),(7,8)",
        "[[1, 2, 3, 4], [5, 6, 7, 8]]",
        " 1, 2, 3, 4",
        '["dog", [1,2,3,4]], ["cat", [5,6,7,8]]',
        "x1=1, y1=2, x2=3, y2=4",
        f"[{A}, {{'Position': [1, 2",  # cut
        "No Objects",
        "[]",
    ],
)
def test_a_box_is_where_it_is_said_to_be_written(block):
    boxes, _ = read_boxes(block, with_labels=True)
    pieces = [block[first:last] for first, last in box_spans(block, with_labels=True)]
    assert [read_boxes(piece, with_labels=True)[0] for piece in pieces] == [[box] for box in boxes]


@pytest.mark.parametrize(
    "text",
    [
        "<think><answer>no</answer></think>\n<answer> yes </answer> yes",
        "<answer>a</answer><answer>yes",
        "<answer>yes</answer><think>then <answer>no</answer>",
        "<answer>x</answer>",
    ],
)
def test_the_answer_is_where_it_is_said_to_be(text):
    first, last = answer_span(text)
    assert text[first:last].strip() == read_answer_block(text)[0]


@pytest.mark.parametrize(("first", "last", "mean"), [(0, 2, -2), (0, 1, -1), (1, 2, -2), (2, 3, -2), (3, 9, -3)])
def test_a_token_counts_if_any_of_its_characters_does(first, last, mean):
    tokens = [[2, -1.0], [2, -3.0], [3, -2.0], [4, -3.0]]  # the second ends the character that the first begins
    assert mean_probability(tokens, first, last) == pytest.approx(math.exp(mean))


@pytest.mark.parametrize("thinking", ["think", "prefilled", "none"])
def test_a_box_has_the_probability_of_its_own_tokens(thinking):
    task = load_task("detection", thinking=thinking)
    thought = {"think": f"<think>{B}</think>", "prefilled": f"{B}</think>", "none": ""}[thinking]
    text = f"{thought}<answer>[{A}, {B}, {A}]</answer>"  # the first again: its first tokens count
    last_b, last_a = text.rindex(B), text.rindex(A)
    tokens = [
        [n + 1, -5.0 if n >= last_a else -2.0 if last_b <= n < last_b + len(B) else -0.1] for n in range(len(text))
    ]
    one = completion(text, token_logprobs=tokens)
    ranked = rank_by("token_probability", task.parse(text, ROW, FRAME), [one], ROW, task=task, frame=FRAME)
    assert [box.xyxy for box in ranked.answer] == [(0, 0, 50, 50), (50, 50, 100, 100)]
    assert [box.confidence for box in ranked.answer] == pytest.approx([math.exp(-0.1), math.exp(-2)])


def test_agreement_is_the_share_of_samples_with_that_box_and_label():
    task = load_task("detection", labelled=True)

    def text(*boxes):
        entries = (f"{{'Position': {xyxy}, 'Confidence': 0.9, 'Label': '{label}'}}" for xyxy, label in boxes)
        return f"<answer>[{', '.join(entries)}]</answer>"

    corner, moved, other = [0, 0, 500, 500], [0, 0, 500, 400], [500, 500, 1000, 1000]
    samples = [
        text((corner, "dog"), (other, "cat"), (corner, "cat")),
        text((moved, "hound"), (moved, "dog")),  # another name for it; twice is once
        text((other, "cat"), (corner, "dog")),
        "<answer>nothing",  # unreadable: agrees with nothing
        text((other, "dog")),  # another label
    ]
    completions = [completion(one, sample) for sample, one in enumerate(samples)]
    parsed = task.parse(samples[0], LABELLED, FRAME)
    ranked = rank_by("agreement", parsed, completions, LABELLED, task=task, frame=FRAME)
    assert [(box.label, box.confidence) for box in ranked.answer] == [("dog", 0.5), ("cat", 0.25), ("cat", 0.0)]
    assert [box.confidence for box in parsed.answer] == [0.9, 0.9, 0.9]
    with pytest.raises(ValueError, match=r"4 samples besides sample 0; .*protocol\.n_samples=8 needs as many"):
        rank_by_protocol(
            {"score_source": "agreement", "n_samples": 8}, parsed, completions, LABELLED, task=task, frame=FRAME
        )


@pytest.mark.parametrize(("text", "answer"), [("<answer>No Objects</answer>", []), ("nothing", None)])
@pytest.mark.parametrize("source", ["written", "token_probability", "agreement"])
def test_an_answer_without_boxes_stays(source, text, answer):
    task = load_task("detection")
    completions = [completion(text, token_logprobs=[[len(text), -1.0]]), completion(text, 1)]
    parsed = task.parse(text, ROW, FRAME)
    assert rank_by(source, parsed, completions, ROW, task=task, frame=FRAME).answer == answer


def test_the_source_decides_the_figures_and_not_the_reward():
    """Two boxes of equal written confidence, the wrong one first; the tokens and the samples know better."""
    task, text = load_task("detection"), f"<answer>[{B}, {A}]</answer>"
    reward = {"weights": {"iou": 1.0, "confidence": 1.0}, "options": {}}
    completions = [
        completion(text, token_logprobs=by_character(text, likely=A, unlikely=B)),
        *(completion(f"<answer>[{A}]</answer>", sample) for sample in (1, 2)),
    ]

    def score(source):
        protocol = {"name": "coco_all", "version": 1, "scorer": "coco", "n_resamples": 2, "score_source": source}
        protocol["n_samples"] = 2
        [scored], metrics = score_completions(
            [ROW],
            completions[::-1],
            task=task,
            frame_for_row=lambda row: FRAME,
            protocol=protocol,
            judge=RewardFunction(task, reward),
        )
        json.dumps(scored)
        return metrics["AP"]["value"], scored["terms"], [box["confidence"] for box in scored["answer"]]

    written, tokens, agreement = map(score, ("written", "token_probability", "agreement"))
    assert (written[0], tokens[0], agreement[0]) == pytest.approx((0.5, 1.0, 1.0))
    assert written[1] == tokens[1] == agreement[1]
    assert (written[2], agreement[2]) == ([0.5, 0.5], [0.0, 1.0])
    assert tokens[2] == pytest.approx([math.exp(-2), math.exp(-0.1)])
