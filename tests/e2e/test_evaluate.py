"""Evaluating a checkpoint: asked as it was trained, and resumed after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from vrft.cli.main import main

SMALL = ("experiment=digits_riddles", "debug=smoke", "dataset.n_test=80", "memory.evaluation_batch_size=4")
COMPLETIONS = "evaluations/before/test/completions.jsonl"


@pytest.fixture(scope="module")
def checkpoint(vrft, tmp_path_factory):
    """A checkpoint of two steps that saw images of at most 12,544 pixels."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    vrft("train", "experiment=digits_riddles", "debug=smoke", "evaluate.before=false", "evaluate.after=false",
         "trainer.max_steps=1", "memory.max_pixels=12544", f"run.dir={run_dir}")  # fmt: skip
    return run_dir / "checkpoints" / "last"


def test_a_checkpoint_is_asked_as_it_was_trained_and_a_difference_is_told(vrft, tmp_path, checkpoint):
    card = json.loads((checkpoint / "vrft.json").read_text())
    assert card["example"]["question"].startswith("Work out which object is meant")
    same = vrft("evaluate", "experiment=digits_riddles", "debug=smoke", f"model.path={checkpoint}",
                f"run.dir={tmp_path / 'same'}")  # fmt: skip
    assert "warning" not in same.stderr
    assert "max_pixels: 12544" in (tmp_path / "same" / "config.yaml").read_text()
    card["prompt"] = card["prompt"].replace("<|im_start|>user", "<|im_start|>system\nBe brief.<|im_end|>user", 1)
    other = checkpoint.parent / "other"
    other.mkdir()
    for path in checkpoint.iterdir():
        (other / path.name).symlink_to(path)
    for name in ("vrft.json", "manifest.json"):  # the second has the hash of the first
        (other / name).unlink()
    (other / "vrft.json").write_text(json.dumps(card))
    drifted = vrft("evaluate", "experiment=digits_riddles", "debug=smoke", f"model.path={other}",
                   "memory.max_pixels=401408", f"run.dir={tmp_path / 'drifted'}")  # fmt: skip
    assert "memory.max_pixels is 401408; the checkpoint was trained with 12544" in drifted.stderr
    assert "Be brief." in drifted.stderr


def test_a_killed_evaluation_goes_on_to_the_same_bytes(vrft, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    vrft("evaluate", *SMALL, f"run.dir={whole}")
    command = [sys.executable, "-m", "vrft", "evaluate", *SMALL, f"run.dir={killed}"]
    process = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    kept = killed / "evaluations" / "before" / "test" / "batches" / "rank_000.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (kept.is_file() and kept.read_bytes().count(b"\n") >= 3):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    n_kept = kept.read_bytes().count(b"\n")
    assert 3 <= n_kept < 20
    done = vrft("evaluate", *SMALL, f"run.dir={killed}", "run.resume=true")
    assert done.returncode == 0
    assert (killed / COMPLETIONS).read_bytes() == (whole / COMPLETIONS).read_bytes()
    assert not kept.exists()
    refused = vrft("evaluate", *SMALL, f"run.dir={killed}", "run.resume=true", "rollout.temperature=0.5", code=2)
    assert "was started with another experiment" in refused.stderr


def test_boxes_are_ranked_by_tokens_or_samples_from_any_number_of_processes(vrft, tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which `main` sets
    small = ("experiment=digits_detection", "debug=smoke", "dataset.n_test=12", "memory.evaluation_batch_size=4",
             "protocol.n_resamples=9", "memory.max_completion_length=64")  # fmt: skip
    kinds = {
        "token_probability": [],
        "agreement": ["protocol.n_samples=2"],
        "agreement of two": ["protocol.n_samples=2", "launch=torchrun", "launch.nproc_per_node=2"],
    }
    found = {}
    for name, extra in kinds.items():
        source, run_dir = name.split()[0], tmp_path / name.replace(" ", "_")
        vrft("evaluate", *small, f"protocol.score_source={source}", *extra, f"run.dir={run_dir}")
        found[name] = (run_dir / COMPLETIONS).read_bytes()
        key = f"coco_asked_v1_{source}" + ("_of_2_at_1" if source == "agreement" else "")
        result = json.loads((run_dir / "result.json").read_text())["before"][key]
        rows, out = run_dir / "data" / "test.jsonl", run_dir / "scores.json"
        arguments = [
            "protocol=coco_asked", "task=detection", f"protocol.score_source={source}", f"rows={rows}",
            f"completions={run_dir / COMPLETIONS}", "protocol.n_samples=2", "protocol.n_resamples=9", f"out={out}",
        ]  # fmt: skip
        assert main(["score", *arguments]) == 0
        scored = json.loads(out.read_text())
        assert scored["protocol"] == key
        assert scored["metrics"]["AP"] == result["AP"]
        assert scored["per_class"]
    assert found["agreement"] == found["agreement of two"]
    samples = [json.loads(line) for line in found["agreement"].splitlines()]
    assert [one["sample"] for one in samples] == [0, 1, 2] * 12
    greedy = [json.loads(line) for line in found["token_probability"].splitlines()]
    assert [one["text"] for one in greedy] == [one["text"] for one in samples if one["sample"] == 0]
    assert all(len(one["token_logprobs"]) == one["n_tokens"] - (not one["is_truncated"]) for one in greedy)
