"""A user's mistakes: a short message with value and key, exit code 2, no traceback, nothing half written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

SMOKE = ("experiment=digits_riddles", "debug=smoke")


def refused(vrft, run_dir, *overrides: str) -> str:
    done = vrft("train", *overrides, f"run.dir={run_dir}", code=2)
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    assert not (run_dir / "result.json").exists()
    return output


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("model.path=./no_such_model",), ("model.path", "no_such_model")),
        (("memory.max_prompt_length=20",), ("max_prompt_length=20", "Raise it")),
        (("launch=torchrun", "launch.nproc_per_node=3"), ("prompts_per_step", "2 × 4 = 8", "nproc_per_node=3")),
        (("reward.weights={count: 1.0}",), ("reward.weights", "iou")),
        (("protocol=classification",), ("protocol", "reasoning_grounding")),
        (("trainer.args.betaa=1",), ("beta",)),
        (("memory.num_generations=many",), ("num_generations",)),
        (("trainer=grppo",), ("grppo", "grpo")),
    ],
)
def test_a_wrong_setting_is_refused_by_name(vrft, tmp_path, overrides, words):
    output = refused(vrft, tmp_path / "run", *SMOKE, *overrides)
    for word in words:
        assert word in output
    assert not (tmp_path / "run").exists(), "so that the same command, mended, can be given again"


def test_an_existing_run_directory_is_refused_and_kept(vrft, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("mine")
    output = refused(vrft, run_dir, *SMOKE)
    assert "run.resume" in output
    assert (run_dir / "config.yaml").read_text() == "mine"


def test_bad_rows_are_named_all_at_once(vrft, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"image": "missing.png", "phrase": "the cat", "gold": [0, 0, 5, 5]}) + "\n")
    output = refused(vrft, tmp_path / "run", "task=grounding", "dataset=json", f"dataset.path={rows}")
    assert "missing.png" in output


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can only be mounted by root")
def test_a_full_disk_is_told_in_one_line(vrft, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], check=True)
    try:
        output = refused(vrft, disk / "run", *SMOKE, "evaluate.before=false")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert "is full" in output


def test_ctrl_c_ends_parent_and_worker_without_a_result(tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "vrft", "train", *SMOKE, f"run.dir={run_dir}", "trainer.max_steps=500"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").exists() and parent.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    parent.send_signal(signal.SIGINT)
    output, _ = parent.communicate(timeout=60)
    assert parent.returncode == 130, output
    assert "Traceback" not in output
    assert not (run_dir / "result.json").exists()
    left = subprocess.run(["pgrep", "-f", f"vrft.run.worker {run_dir}"], capture_output=True, text=True, check=False)
    assert left.stdout == ""
