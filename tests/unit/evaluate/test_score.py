"""Scoring completions: what is counted, what is refused, and that the work's order changes nothing."""

import json

import pytest

from vrft.errors import UserError
from vrft.evaluate.completions import make_batches
from vrft.evaluate.protocols import SCORERS, primary_metrics, protocol_key, questions_not_asked
from vrft.evaluate.score import score_completions
from vrft.tasks import load_task, task_names
from vrft.tasks.boxes import Frame
from vrft.tasks.grounding import TASK as GroundingTask
from vrft.tasks.reward import RewardFunction

REWARD = {"weights": {"iou": 1.0, "confidence": 1.0, "accuracy": 1.0, "format": 0.5}, "options": {}}
SCENE = {"images": ["a.png"], "image_wh": [100, 100]}
BOX_ROWS = [
    {**SCENE, "row_id": "r0", "phrase": "the cup", "gold": [0, 0, 50, 50], "distractors": [[50, 50, 100, 100]]},
    {**SCENE, "row_id": "r1", "phrase": "the cat", "gold": [50, 50, 100, 100]},
]
DETECTION_ROWS = [
    {**SCENE, "row_id": "d0", "category": "cup", "gold": [[0, 0, 50, 50]], "distractors": [[50, 50, 100, 100]]},
    {**SCENE, "row_id": "d1", "category": "cat", "gold": []},
    {**SCENE, "row_id": "d2", "category": "dog", "gold": [[0, 0, 20, 20], [50, 50, 100, 100]]},
]


def frame_for_row(row):
    return Frame("norm1000", tuple(row["image_wh"]), (56, 56))


def completion(row_id, text, is_truncated=False):
    return {"row_id": row_id, "sample": 0, "text": text, "n_tokens": 10, "is_truncated": is_truncated}


def score(rows, completions, task="grounding", scorer="grounding"):
    protocol = {"name": scorer, "version": 1, "scorer": scorer, "n_resamples": 50}
    return score_completions(
        rows,
        completions,
        task=load_task(task),
        frame_for_row=frame_for_row,
        protocol=protocol,
        judge=RewardFunction(load_task(task), REWARD),
    )


def test_grounding_is_scored_row_by_row():
    right = "<think>left</think><answer>(0,0),(500,500)</answer>"
    scored, metrics = score(BOX_ROWS, [completion("r1", "the cat", is_truncated=True), completion("r0", right)])
    assert scored[0] == {
        "row_id": "r0",
        "text": right,
        "is_truncated": False,
        "answer": [0.0, 0.0, 50.0, 50.0],
        "reason": None,
        "terms": {"iou": 1.0, "format": 1.0},
        "total": 1.5,
        "metrics": {"accuracy@0.5": 1.0, "iou": 1.0, "pick_rate": 1.0},
    }
    assert (scored[1]["answer"], scored[1]["reason"], scored[1]["total"]) == (None, "no_answer", 0.0)
    values = {name: (metric["value"], metric["n"]) for name, metric in metrics.items()}
    assert values["accuracy@0.5"] == (0.5, 2)
    assert values["pick_rate"] == (1.0, 1), "one row has distractors"
    assert values["unreadable"] == values["unreadable/no_answer"] == values["truncated"] == (0.5, 2)
    assert values["unreadable/not_found"] == (0.0, 2)
    assert values["reward"] == (0.75, 2)
    json.dumps([scored, metrics], allow_nan=False)


def test_a_metric_of_a_users_own_may_be_a_bool():
    """In the file it is a number: what reads it again knows of no other."""

    class Own(GroundingTask):
        @property
        def metrics(self):
            return {"right": lambda parsed, row: parsed.answer == row["gold"], "none": lambda parsed, row: None}

    rows, protocol = BOX_ROWS[:1], {"name": "rows", "version": 1, "scorer": "rows", "n_resamples": 50}
    [scored], _ = score_completions(
        rows,
        [completion("r0", "no")],
        task=Own(),
        frame_for_row=frame_for_row,
        protocol=protocol,
        judge=RewardFunction(Own(), REWARD),
    )
    assert json.dumps(scored["metrics"]) == '{"right": 0.0, "none": null}'


def test_detection_has_the_official_figures_beside_the_row_means():
    texts = [
        "<answer>[{'Position': [0, 0, 500, 500], 'Confidence': 0.90}]</answer>",
        "<answer>No Objects</answer>",
        "<answer>nothing",
    ]
    scored, metrics = score(DETECTION_ROWS, [completion(f"d{i}", t) for i, t in enumerate(texts)], "detection", "coco")
    assert scored[0]["answer"] == [{"xyxy": [0.0, 0.0, 50.0, 50.0], "confidence": 0.9, "label": ""}]
    assert scored[1]["answer"] == [], "'No Objects' is an answer"
    assert scored[2]["answer"] is None
    assert next(iter(metrics)) == "AP"
    assert metrics["AP"]["value"] == pytest.approx(0.5), "cup 1, dog 0; the cat's category has no gold box"
    assert metrics["AP"]["n"] == 1, "one image"
    assert (metrics["pick_rate"]["value"], metrics["pick_rate"]["n"]) == (1.0, 1)


@pytest.mark.parametrize(("task", "scorer"), [("grounding", "grounding"), ("detection", "coco")])
def test_no_rows_have_no_figures(task, scorer):
    scored, metrics = score([], [], task, scorer)
    assert scored == []
    assert {(metric["value"], metric["n"], metric["interval"]) for metric in metrics.values()} == {(None, 0, None)}


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        ([completion("r0", "a")], "'r1': no completion"),
        ([completion("r0", "a"), completion("r1", "a"), completion("r1", "b")], r"'r1': samples \[0, 0\] are given"),
        ([completion("r0", "a"), completion("r1", "a"), completion("x", "a")], "'x': a completion without a row"),
    ],
)
def test_completions_that_do_not_fit_the_rows_are_refused(completions, message):
    with pytest.raises(UserError, match=message):
        score(BOX_ROWS, completions)


@pytest.mark.parametrize(
    ("scorer", "known"), [("coco", "grounding"), ("rouge", "coco, masks, grounding, classification")]
)
def test_a_scorer_that_does_not_fit_is_refused_with_those_that_do(scorer, known):
    with pytest.raises(UserError, match=known):
        score(BOX_ROWS, [completion("r0", ""), completion("r1", "")], scorer=scorer)


def test_every_task_has_a_scorer_whose_primary_metrics_it_gives():
    official = {"AP", "gIoU", "cIoU"}
    assert len(task_names()) >= 7
    for name in task_names():
        task = load_task(name)
        for scorer in task.protocol_scorers:
            assert scorer in SCORERS
            metrics = primary_metrics({"scorer": scorer}, task)
            assert metrics
            assert set(metrics) - official <= set(task.metrics), name


def test_questions_that_no_row_asks_are_counted():
    """Three categories in two images make six."""
    rows = [*DETECTION_ROWS, {**SCENE, "row_id": "d3", "images": ["b.png"], "category": "cup", "gold": []}]
    assert questions_not_asked(rows, {"scorer": "coco", "asked": "all"}) == 2
    assert questions_not_asked(rows, {"scorer": "coco", "asked": "present"}) == 0
    labelled = [{**SCENE, "images": [name], "categories": ["cup", "cat", "dog"]} for name in ("a.png", "b.png")]
    assert questions_not_asked(labelled, {"scorer": "coco", "asked": "all"}) == 0


def test_protocol_key():
    assert protocol_key({"name": "coco_present", "version": 1, "scorer": "coco"}) == "coco_present_v1"


@pytest.mark.parametrize(
    ("sizes", "expected", "why"),
    [
        ([], [], "no rows"),
        ([1, 3, 2], [[1, 2], [0]], "largest first"),
        ([2, 2, 2], [[0, 1], [2]], "equal sizes keep their order"),
    ],
)
def test_batches(sizes, expected, why):
    assert make_batches(sizes, 2) == expected, why
