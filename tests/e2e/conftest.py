"""Runs of the real command line in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def vrft():
    """`vrft("train", "experiment=…", code=0) -> CompletedProcess`; fails with the output if the exit code is
    another."""

    def run(*arguments: str, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "vrft", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=600, check=False
        )
        assert done.returncode == code, f"{' '.join(command)}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def healthy(tmp_path_factory):
    """`healthy("grpo", "trainer.max_steps=2")`: the run directory of a training without a fault, not to be changed; see
    healthy_run.py."""
    from healthy_run import train_in  # which imports all of vrft

    known = {}

    def made(trainer: str, *overrides: str) -> Path:
        if (trainer, *overrides) not in known:
            run_dir = tmp_path_factory.mktemp(trainer)
            train_in(run_dir, trainer, *overrides)
            known[trainer, *overrides] = run_dir
        return known[trainer, *overrides]

    return made
