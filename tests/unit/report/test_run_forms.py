"""Files of a run that are damaged or of another form: each is named before anything is made of it."""

from __future__ import annotations

import json

import pytest
import yaml
from written_run import write_config, write_evaluated, write_result

from vrft.errors import UserError
from vrft.report.run_files import RunFiles
from vrft.tasks import load_task, task_names

FIGURE = {"value": 0.5, "n": 2, "interval": [0.1, 0.9]}


def change(path, act):
    """Let `act` change the values of a JSON, YAML or JSON-lines file in place, or return others."""
    text = path.read_text()
    if path.suffix == ".jsonl":
        values = [json.loads(line) for line in text.splitlines()]
        act(values)
        path.write_text("".join(json.dumps(one) + "\n" for one in values))
        return
    values = yaml.safe_load(text)
    path.write_text(json.dumps(act(values) or values))


def read_all(run: RunFiles) -> None:
    """Read what a report reads."""
    for record in ("config", "result", "provenance", "logs", "alarms"):
        getattr(run, record)
    run.rows(), run.scores("best")


SCORES = "evaluations/best/test/scores.jsonl"
DAMAGES = [
    ("result.json", lambda it: [1], "it is '[1]'"),
    ("result.json", lambda it: it.update(after={"p": {"iou": FIGURE | {"interval": [[0]]}}}), "after.p.iou.interval"),
    ("result.json", lambda it: it.update(after={"p": {"iou": FIGURE | {"interval": [0.1]}}}), "after.p.iou.interval"),
    ("result.json", lambda it: it.update(primary_metrics=[]), "primary_metrics"),
    ("result.json", lambda it: it.pop("test_sets") and None, "test_sets is missing"),
    ("config.yaml", lambda it: it.update(trainer="x"), "trainer is 'x'"),
    ("config.yaml", lambda it: it.update(question={"x": 3}), "question.x is '3'"),
    ("provenance.json", lambda it: it.update(overrides="x"), "overrides is 'x'"),
    ("metrics.jsonl", lambda it: it[1].update(step="x"), "line 2: step is 'x'"),
    ("metrics.jsonl", lambda it: it[1].update(kl=[0]), "line 2: kl"),
    ("alarms.jsonl", lambda it: it[0].pop("message"), "line 1: message is missing"),
    (SCORES, lambda it: it.pop(), "has other rows than data/test.jsonl: 1 in place of 2"),
    (SCORES, lambda it: it.reverse(), "has other rows than data/test.jsonl: row 1 in place of 0"),
    (SCORES, lambda it: it[0].pop("metrics"), "line 1: metrics is missing"),
    (SCORES, lambda it: it[0].update(total="x"), "line 1: total is 'x'"),
    (SCORES, lambda it: it[1].update(answer=[{"xyxy": [0, 0, 1]}]), "line 2: answer.0.xyxy"),
    ("data/test.jsonl", lambda it: it[1].update(image_wh=[0, 9]), "line 2: image_wh.0 is '0'"),
    ("data/test.jsonl", lambda it: it[1].update(gold="x"), "line 2: gold"),
]


@pytest.mark.parametrize(("name", "act", "message"), DAMAGES, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_is_named_by_file_and_key(tmp_path, name, act, message):
    write_config(tmp_path, protocol={"name": "coco_all", "scorer": "coco"})
    write_result(tmp_path)
    write_evaluated(tmp_path, [{"gold": [[0, 0, 9, 9]]}, {"gold": []}], best=[{"answer": []}, {"answer": None}])
    (tmp_path / "provenance.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "kl": 0.1, "loss": "nan"}\n')
    (tmp_path / "alarms.jsonl").write_text('{"step": 1, "rule": "kl", "action": "warn", "message": "m"}\n')
    read_all(RunFiles(tmp_path))
    change(tmp_path / name, act)
    with pytest.raises(UserError) as raised:
        read_all(RunFiles(tmp_path))
    assert str(tmp_path / name) in str(raised.value)
    assert message in str(raised.value)


def test_a_record_too_deep_to_read_is_named(tmp_path):
    write_config(tmp_path)
    write_result(tmp_path)
    (tmp_path / "provenance.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"provenance.json cannot be read"):
        read_all(RunFiles(tmp_path))


SCORERS = {"classification": "classification", "detection": "coco", "open_vocabulary_detection": "coco"}
EXAMPLES = [
    pytest.param(name, example, id=f"{name}{', labelled' if options else ''}, {number}")
    for name in task_names()
    for options in ({}, *([{"labelled": True}] if SCORERS.get(name) == "coco" else []))
    for number, example in enumerate(load_task(name, **options).examples)
]


@pytest.mark.parametrize(("task", "example"), EXAMPLES)
def test_every_row_that_a_task_takes_can_be_reported(tmp_path, task, example):
    write_config(tmp_path, protocol={"name": "x", "scorer": SCORERS.get(task, "rows")})
    write_evaluated(tmp_path, [example], best=[{}] if task != "classification" else [{"metrics": {"accuracy": 1.0}}])
    assert RunFiles(tmp_path).rows()[0].items() >= example.items()
    assert len(RunFiles(tmp_path).scores("best")) == 1


@pytest.mark.parametrize(
    ("scorer", "row", "why"),
    [
        ("coco", {"gold": [], "categories": ["cup"], "aliases": {"cup": ["mug"]}}, "aliases of several labels"),
        ("classification", {"gold": "cat", "aliases": ["kitty"], "category": 7}, "a column that no question needs"),
        ("grounding", {"gold": [0, 0, 9, 9], "phrase": "a cup", "categories": {"a": 1}, "aliases": "x"}, "as above"),
    ],
)
def test_rows_that_training_takes_are_read(tmp_path, scorer, row, why):
    write_config(tmp_path, protocol={"name": scorer, "scorer": scorer})
    write_evaluated(tmp_path, [row])
    assert RunFiles(tmp_path).rows()[0] | row == RunFiles(tmp_path).rows()[0], why
