"""Runs that are killed, terminated, damaged or out of disk, and resumed: a sample of `make torture`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from healthy_run import N_STEPS, work
from torture.harness import differences, set_resume

TORTURE = Path(__file__).parents[1] / "torture" / "torture.py"


def torture(out: Path, *arguments: str) -> str:
    command = [sys.executable, str(TORTURE), "--out", str(out), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    told = torture(tmp_path, "--parts", "kills", "terminations", "damages", "--settings", "default", "--n", "2")
    assert "| kills | default | 2 |" in told


def test_a_run_killed_in_its_last_save_leaves_nothing_half_written(healthy, tmp_path):
    """No later save clears it away."""
    run_dir = shutil.copytree(healthy("grpo"), tmp_path / "run")
    (run_dir / "result.json").unlink()
    (run_dir / "checkpoints" / "checkpoint.partial" / "checkpoint-6").mkdir(parents=True)
    set_resume(healthy("grpo"), run_dir, resume=True)
    assert work(run_dir) == 0
    assert differences(healthy("grpo"), run_dir, last=f"checkpoint-{N_STEPS}") == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can only be mounted by root")
def test_whatever_ends_a_run_it_goes_on_to_the_same_bits(tmp_path):
    told = torture(tmp_path, "--n", "3")
    assert told.count("| kills |") == 6
