"""No known trick earns more than honest work under `strict`; under `visual_rft` exactly those that its README lists."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from vrft.boxes import FRAMES, Frame
from vrft.tasks import load_task, task_names
from vrft.tasks.attacks import attacks, honest_answers
from vrft.tasks.audit import audit
from vrft.tasks.judge import Judge

CONF = Path(__file__).parents[2] / "conf"
TASKS = [(name, {}) for name in task_names()] + [
    (name, {"labelled": True}) for name in ("detection", "open_vocabulary_detection")
]


def listed_in_readme() -> set[str]:
    text = (CONF / "reward" / "README.md").read_text(encoding="utf-8")
    table = text.partition("| attack |")[2].partition("\n\n")[0]
    return {line.split("|")[1].strip() for line in table.splitlines()[2:]}


def outcomes_of(name: str, options: dict, preset: str, *, frame: str = "norm1000", **changes) -> list[dict]:
    task = load_task(name, **options)
    rows = [{"row_id": str(i), "image_wh": [640, 480], **row} for i, row in enumerate(task.examples)]
    reward = yaml.safe_load((CONF / "reward" / f"{preset}.yaml").read_text(encoding="utf-8")) | changes
    return list(
        audit(task, rows, judge=Judge(task, reward), frame_for_row=lambda row: Frame(frame, (640, 480), (532, 392)))
    )


@pytest.mark.parametrize(
    ("frame", "thinking"), [*((frame, "think") for frame in FRAMES), ("norm1000", "prefilled"), ("norm1000", "none")]
)
@pytest.mark.parametrize(("name", "options"), TASKS)
def test_no_attack_pays_under_strict(name, options, thinking, frame):
    outcomes = outcomes_of(name, {**options, "thinking": thinking}, "strict", frame=frame)
    assert len(outcomes) >= 20
    assert [one["attack"] for one in outcomes if one["succeeds"]] == []
    assert all(math.isfinite(one["earns"]) and one["honest"] > 0 for one in outcomes)


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_under_visual_rft_exactly_the_listed_attacks_pay(name, options):
    outcomes = outcomes_of(name, options, "visual_rft")
    expected = listed_in_readme() if load_task(name).answer_kind == "boxes" else set()
    assert {one["attack"] for one in outcomes if one["succeeds"]} == expected
    assert len(listed_in_readme()) == 6


def test_the_audit_can_fail():
    # Paying the form alone makes an empty answer worth as much as an honest one; paying the number of boxes, padding.
    outcomes = outcomes_of("detection", {}, "strict", weights={"count": 1.0})
    assert "zero_confidence_padding" in {one["attack"] for one in outcomes if one["succeeds"]}


def test_every_attack_applies_to_some_task():
    known = {attack.name for name in task_names() for attack in attacks(load_task(name).answer_kind)}
    applied = {one["attack"] for name, options in TASKS for one in outcomes_of(name, options, "strict")}
    assert applied == known
    assert len(known) >= 50


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_honest_answers_are_read_and_good_but_not_perfect(name, options):
    task = load_task(name, **options)
    frame = Frame("norm1000", (640, 480), (640, 480))
    rows = [{"row_id": str(i), "image_wh": [640, 480], **row} for i, row in enumerate(task.examples)]
    for honest, row in zip(honest_answers(task, rows, [frame] * len(rows)), rows, strict=True):
        parsed = task.parse(honest.completion, row, frame)
        assert parsed.reason is None
        values = [metric(parsed, row) for metric in task.metrics.values()]
        if task.answer_kind in ("box", "boxes") and row["gold"]:
            assert 0.2 < values[0] <= 1
