"""Scoring completions: what is counted, what is refused, and that the work's order changes nothing."""

import json

import pytest
from PIL import Image

from vrft.boxes import Frame
from vrft.errors import UserError
from vrft.evaluate import generate
from vrft.evaluate.generate import generate_completions, load_image, make_batches
from vrft.evaluate.protocols import SCORERS, primary_metrics, protocol_key
from vrft.evaluate.score import score_completions
from vrft.rows import read_rows
from vrft.tasks import load_task, task_names
from vrft.tasks.judge import Judge

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
        judge=Judge(load_task(task), REWARD),
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
        ([completion("r0", "a")], "'r1': 0 completions"),
        ([completion("r0", "a"), completion("r1", "a"), completion("r1", "b")], "'r1': 2 completions"),
        ([completion("r0", "a"), completion("r1", "a"), completion("x", "a")], "'x': a completion of no row"),
    ],
)
def test_completions_that_do_not_fit_the_rows_are_refused(completions, message):
    with pytest.raises(UserError, match=message):
        score(BOX_ROWS, completions)


@pytest.mark.parametrize(("scorer", "known"), [("coco", "grounding"), ("rouge", "coco, grounding, classification")])
def test_a_scorer_that_does_not_fit_is_refused_with_those_that_do(scorer, known):
    with pytest.raises(UserError, match=known):
        score(BOX_ROWS, [completion("r0", ""), completion("r1", "")], scorer=scorer)


def test_every_task_has_a_scorer_whose_primary_metrics_it_gives():
    official = {"AP"}
    assert len(task_names()) >= 7
    for name in task_names():
        task = load_task(name)
        for scorer in task.protocol_scorers:
            assert scorer in SCORERS
            metrics = primary_metrics({"scorer": scorer}, task)
            assert metrics
            assert set(metrics) - official <= set(task.metrics), name


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


def scene_rows(folder, n_rows):
    rows = []
    for i in range(n_rows):
        wh = [20 + 7 * (i % 3), 20]
        Image.new("RGB", wh).save(folder / f"{i}.png")
        rows.append(
            {"row_id": f"r{i}", "images": [f"{i}.png"], "image_wh": wh, "phrase": "x" * i, "gold": [0, 0, 9, 9]}
        )
    return rows


def stand_in_model(model, processor, questions, images, *, max_new_tokens, response_prefix):
    """As `generate_texts`: the completion tells who shares its batch, so a batch that differs would show."""
    batch = sorted(len(question) for question in questions)
    return [
        {"text": f"{response_prefix}{len(q)} {i[0].size} {batch}", "n_tokens": 1, "is_truncated": False}
        for q, i in zip(questions, images, strict=True)
    ]


def generate_from(rows, folder, **options):
    return generate_completions(
        rows,
        root=folder,
        task=load_task("grounding"),
        frame_for_row=frame_for_row,
        model=None,
        processor=None,
        max_new_tokens=8,
        batch_size=3,
        **options,
    )


def test_ranks_together_write_what_one_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "generate_texts", stand_in_model)
    rows = scene_rows(tmp_path, 11)
    alone = generate_from(rows, tmp_path, path=tmp_path / "completions.jsonl", response_prefix="<think>")
    assert [one["row_id"] for one in alone] == [row["row_id"] for row in rows]
    assert alone[0]["text"].startswith("<think>")
    assert read_rows(tmp_path / "completions.jsonl") == alone
    parts = [generate_from(rows, tmp_path, rank=r, world_size=3, response_prefix="<think>") for r in range(3)]
    together = {one["row_id"]: one for part in parts for one in part}
    assert [together[row["row_id"]] for row in rows] == alone


def test_an_image_that_cannot_be_read_names_row_and_file(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "generate_texts", stand_in_model)
    rows = scene_rows(tmp_path, 2)
    (tmp_path / "1.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"row 'r1': the image .*1\.png cannot be read"):
        generate_from(rows, tmp_path)
    with pytest.raises(UserError, match=r"row 'r9': the image .*none\.png cannot be read"):
        load_image(tmp_path / "none.png", what="row 'r9'")


def test_an_image_lies_as_its_orientation_says(tmp_path):
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # EXIF orientation: rotate by a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg", what="test").size == (20, 30)
