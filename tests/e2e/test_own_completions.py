"""SFT on the model's own right completions: which are right, what is taught, and what happens where none is."""

from __future__ import annotations

import json

import pytest

from vrft.files import read_rows
from vrft.tasks import load_task
from vrft.tasks.boxes import Frame, iou_matrix

RUN = (
    "train", "experiment=digits_riddles", "debug=smoke", "trainer=sft_own", "evaluate.before=false",
    "evaluate.after=false", "evaluate.checkpoint=last", "trainer.eval_steps=null",
)  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(vrft, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("own") / "run"
    vrft(*RUN, "trainer.own_samples=4", f"run.dir={run_dir}")
    return run_dir


def test_what_earns_enough_of_the_answers_pay_is_right(run_dir):
    """`strict` pays the IoU of a riddle's box, so earning half of it is IoU 0.5, read here by another way."""
    rows = {row["row_id"]: row for row in read_rows(run_dir / "data" / "train.jsonl")}
    judged = read_rows(run_dir / "own_completions.jsonl")
    assert len(judged) == 4 * len(rows) == 40  # greedy ones, which training never samples, aside
    task, n_right = load_task("reasoning_grounding"), 0
    for one in judged:
        row = rows[one["row_id"]]
        frame = Frame("norm1000", tuple(row["image_wh"]), tuple(row["image_wh"]))
        answer = task.parse(one["text"], row, frame).answer
        iou = 0.0 if answer is None else float(iou_matrix([answer], [row["gold"]])[0, 0])
        assert one["earned"] == pytest.approx(iou, abs=1e-6)
        n_right += iou >= 0.5
    assert 0 < n_right < len(judged)


def test_a_run_that_goes_on_takes_the_same_ones(vrft, run_dir):
    before = (run_dir / "own_completions.jsonl").read_bytes()
    done = vrft(*RUN, "trainer.own_samples=4", f"run.dir={run_dir}", "run.resume=true")
    assert (run_dir / "own_completions.jsonl").read_bytes() == before
    assert "own completions:" not in done.stderr  # nothing is sampled again
    n_right = sum(json.loads(line)["earned"] >= 0.5 for line in before.decode().splitlines())
    assert "different right completions of" in done.stderr
    assert int(done.stderr.partition(" different right")[0].split()[-1]) <= n_right


def test_none_right_is_told_with_what_would_help(vrft, tmp_path):
    done = vrft(*RUN, "trainer.own_samples=1", "trainer.own_at_least=1.0", f"run.dir={tmp_path / 'run'}", code=2)
    assert "none of the model's own completions of 10 training rows is right" in done.stderr
    assert "trainer.own_samples" in done.stderr
