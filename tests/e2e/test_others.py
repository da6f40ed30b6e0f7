"""Other tasks judged beside a run's own: the same figures as a run of that task alone has."""

from __future__ import annotations

import json


def test_another_task_is_judged_as_in_a_run_of_its_own(vrft, tmp_path):
    size = ("debug=smoke", "dataset.n_test=12")
    beside, alone = tmp_path / "beside", tmp_path / "alone"
    others = [f"evaluate.others.{name}.dataset.n_test=12" for name in ("classification", "detection")]
    vrft("evaluate", "experiment=digits_riddles", "others=digits", *size, *others, f"run.dir={beside}")
    vrft("evaluate", "experiment=digits_detection", *size, "dataset.domain=clean", f"run.dir={alone}")
    result = json.loads((beside / "result.json").read_text())
    assert list(result["others"]) == ["classification", "detection"]  # its own task is no other
    found = result["others"]["detection"]
    expected = json.loads((alone / "result.json").read_text())
    assert found["primary_metrics"] == expected["primary_metrics"]
    ours, theirs = found["evaluations"]["before"]["coco_asked_v1"], expected["before"]["coco_asked_v1"]
    assert {name: ours[name] for name in ("AP", "AP50", "pick_rate")} == {
        name: theirs[name] for name in ("AP", "AP50", "pick_rate")
    }
    completions = [folder / "completions.jsonl" for folder in (
        beside / "evaluations/others/detection/before/test", alone / "evaluations/before/test")]  # fmt: skip
    assert completions[0].read_text() == completions[1].read_text()
    assert result["peak_memory_gib"] > 0.1


def test_another_tasks_questions_are_not_too_long_either(vrft, tmp_path):
    """The run's own take 42 tokens at most, riddles 44."""
    sizes = ("debug=smoke", "others=digits", "memory.max_prompt_length=43")
    refused = vrft("evaluate", "experiment=digits_detection", *sizes, f"run.dir={tmp_path / 'run'}", code=2)
    assert "Questions longer than memory.max_prompt_length=43" in refused.stderr
    assert "evaluate.others.reasoning_grounding, row" in refused.stderr
    assert "44 tokens" in refused.stderr
