"""Train, evaluate, report: the whole path on the tiny model, two steps a task."""

from __future__ import annotations

import json
import shutil

import pytest

EXPERIMENTS = {
    "digits_riddles": ("grounding_v1", "accuracy@0.5"),
    "digits_detection": ("coco_present_v1", "AP"),
    "digits_classification": ("classification_v1", "accuracy"),
    "digits_grounding": ("grounding_v1", "accuracy@0.5"),
}


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_train_evaluates_trains_and_reports(vrft, tmp_path, experiment):
    run_dir = tmp_path / "run"
    vrft("train", f"experiment={experiment}", "debug=smoke", f"run.dir={run_dir}")
    protocol, metric = EXPERIMENTS[experiment]
    result = json.loads((run_dir / "result.json").read_text())
    for part in ("before", "after"):
        figure = result[part][protocol][metric]
        low, high = figure["interval"]
        assert 0 <= low <= figure["value"] <= high <= 1
        assert figure["n"] > 0
    n_test = result["n_rows"]["test"]
    assert n_test == 16
    steps = [entry["step"] for entry in read_lines(run_dir / "metrics.jsonl") if "reward" in entry]
    assert steps == [1, 2]
    rollouts = [line for path in sorted((run_dir / "rollouts").glob("*.jsonl")) for line in read_lines(path)]
    assert len(rollouts) == 2 * 2 * 4  # steps x prompts x completions
    for name in ("before", "best"):
        assert len(read_lines(run_dir / "evaluations" / name / "test" / "completions.jsonl")) == n_test
    page = (run_dir / "report.html").read_text()
    assert metric in page
    provenance = json.loads((run_dir / "provenance.json").read_text())
    assert provenance["data_hash"] == result["data_hash"]


def test_sft_trains_on_the_same_rows_and_logs_no_reward(vrft, tmp_path):
    rft, sft = tmp_path / "rft", tmp_path / "sft"
    vrft("train", "experiment=digits_riddles", "debug=smoke", f"run.dir={rft}", "evaluate.before=false")
    vrft("train", "experiment=digits_riddles", "debug=smoke", "trainer=sft", f"run.dir={sft}", "evaluate.before=false")
    assert (rft / "data" / "train.jsonl").read_bytes() == (sft / "data" / "train.jsonl").read_bytes()
    logged = read_lines(sft / "metrics.jsonl")
    assert any("loss" in entry for entry in logged)
    assert not any("reward" in entry for entry in logged)
    table = vrft("report", f"runs=[{rft},{sft}]").stdout
    assert "SFT" in table
    assert "RFT" in table


def test_two_processes_give_the_same_evaluation_as_one(vrft, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    vrft("evaluate", "experiment=digits_riddles", "debug=smoke", f"run.dir={one}")
    vrft(
        "train",
        "experiment=digits_riddles",
        "debug=smoke",
        f"run.dir={two}",
        "launch=torchrun",
        "launch.nproc_per_node=2",
    )
    name = "evaluations/before/test/completions.jsonl"
    assert (one / name).read_bytes() == (two / name).read_bytes()
    assert json.loads((two / "result.json").read_text())["after"] is not None


def test_the_same_seed_gives_the_same_rollouts(vrft, tmp_path):
    runs = [tmp_path / name for name in ("a", "b")]
    for run_dir in runs:
        vrft(
            "train", "experiment=digits_riddles", "debug=smoke", f"run.dir={run_dir}", "evaluate.before=false",
            "evaluate.after=false",
        )  # fmt: skip
    first, second = (sorted((run_dir / "rollouts").glob("*")) for run_dir in runs)
    assert len(first) == 2
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_run_that_stopped_after_training_half_goes_on_to_the_same_weights(vrft, tmp_path):
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    overrides = ("train", "experiment=digits_riddles", "debug=smoke", "trainer.save_steps=1", "evaluate.before=false")
    vrft(*overrides, f"run.dir={whole}")
    vrft(*overrides, f"run.dir={halved}")
    # As if killed in its second step: the first checkpoint is there, and some logs too many.
    for path in ("checkpoints/checkpoint-2", "checkpoints/last", "evaluations"):
        shutil.rmtree(halved / path)
    for path in ("result.json", "report.html"):
        (halved / path).unlink()
    vrft(*overrides, f"run.dir={halved}", "run.resume=true")
    weights = "checkpoints/last/model.safetensors"
    assert (halved / weights).read_bytes() == (whole / weights).read_bytes()
    validations = [
        [(e["step"], e["validation/iou"]) for e in read_lines(d / "metrics.jsonl") if "validation/iou" in e]
        for d in (whole, halved)
    ]
    assert validations[0] == validations[1]
    assert len(validations[0]) == 3
