"""No known trick earns more than honest work under `strict`; under `visual_rft` exactly those that its README lists."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from vrft.tasks import load_task, task_names
from vrft.tasks.answers import normal_name
from vrft.tasks.audit import audit
from vrft.tasks.audit.attacks import attacks
from vrft.tasks.audit.reference_answers import reference_answers
from vrft.tasks.boxes import FRAMES, Frame
from vrft.tasks.reward import RewardFunction

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
    judge = RewardFunction(task, reward, trust_code=["test_audit"])
    return list(audit(task, rows, judge=judge, frame_for_row=lambda row: Frame(frame, (640, 480), (532, 392))))


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


def all_pay(parsed, row, image_paths):
    return 1.0


@pytest.mark.parametrize(
    ("name", "weights", "attack"),
    [
        ("detection", {"count": 1.0}, "zero_confidence_padding"),  # the number of boxes is no sign of where they are
        ("detection", {"format": 1.0}, "empty_answer"),  # the form is all that is paid
        ("classification", {"format": 1.0}, "common_class"),
        ("grounding", {"test_audit.all_pay": 1.0}, "swapped_corners"),  # everything is paid
        ("counting", {"test_audit.all_pay": 1.0, "format": 1.0}, "near_count"),
    ],
)
def test_the_audit_can_fail(name, weights, attack):
    reward = {"weights": weights, "weights_for": {}}
    outcomes = outcomes_of(name, {}, "strict", **reward)
    assert attack in {one["attack"] for one in outcomes if one["succeeds"]}


def test_a_substring_for_a_class_would_be_found(monkeypatch):
    def either_holds_the_other(pred, golds):  # the original's rule
        return float(any(normal_name(pred) in normal_name(gold) or normal_name(gold) in normal_name(pred)
                         for gold in golds))  # fmt: skip

    monkeypatch.setattr("vrft.tasks.classification.same_name", either_holds_the_other)
    found = {one["attack"] for one in outcomes_of("classification", {}, "strict") if one["succeeds"]}
    assert {"all_classes", "part_of_name", "sentence", "one_character"} <= found


@pytest.mark.parametrize("n_rows", [1, 3, 20])
@pytest.mark.parametrize("n_gold", [1, 3, 5])
def test_strict_holds_on_rows_of_any_number_of_boxes(n_rows, n_gold):
    task = load_task("detection")
    gold = [[10 + 100 * i, 10, 90 + 100 * i, 90] for i in range(n_gold)]
    rows = [{"row_id": str(i), "image_wh": [640, 480], "category": "dog", "gold": gold} for i in range(n_rows)]
    reward = yaml.safe_load((CONF / "reward" / "strict.yaml").read_text(encoding="utf-8"))
    found = audit(
        task, rows, judge=RewardFunction(task, reward), frame_for_row=lambda row: Frame("pixels", (640, 480), (1, 1))
    )
    assert [one["attack"] for one in found if one["succeeds"]] == []


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
    for honest, row in zip(reference_answers(task, rows, [frame] * len(rows)), rows, strict=True):
        parsed = task.parse(honest.completion, row, frame)
        assert parsed.reason is None
        values = [metric(parsed, row) for metric in task.metrics.values()]
        if task.answer_kind in ("box", "boxes") and row["gold"]:
            assert 0.2 < values[0] <= 1
