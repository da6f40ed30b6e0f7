"""One run on two machines, which here are one: both save and stop when one is told to, and go on to the same bits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torture.harness import BASE, differences

from vrft.run import health

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "launch" / "torchrun.sh"


def machine(node: int, port: int, run_dir: Path, *overrides: str) -> subprocess.Popen:
    meeting = ["launch.nnodes=2", f"launch.node_rank={node}", f"launch.rdzv_endpoint=localhost:{port}"]
    command = [sys.executable, "-m", "vrft", "train", *BASE, "launch=torchrun", *meeting, f"run.dir={run_dir}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([*command, *overrides], env=environment, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def test_a_signal_to_one_machine_saves_on_all_and_the_run_goes_on_to_the_same_bits(vrft, tmp_path):
    alone, run_dir = tmp_path / "alone", tmp_path / "run"
    vrft("train", *BASE, "launch=torchrun", "launch.nproc_per_node=2", f"run.dir={alone}")
    port = free_port()
    second = machine(1, port, run_dir)  # may be there first
    first = machine(0, port, run_dir)
    while not any((word.get("step") or 0) >= 3 for word in health.read_statuses(run_dir)):
        assert first.poll() is None, first.stderr.read()
        assert second.poll() is None, second.stderr.read()
        time.sleep(0.02)
    second.send_signal(signal.SIGUSR2)
    said = [one.communicate(timeout=200)[1] for one in (first, second)]
    assert second.returncode == 140, said
    assert first.returncode in (140, 143), said
    assert "run.resume=true resumes it" in said[0]
    assert list((run_dir / "checkpoints").glob("checkpoint-*"))
    both = [machine(node, port + 1, run_dir, "run.resume=true") for node in (0, 1)]
    said = [one.communicate(timeout=400)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert differences(alone, run_dir) == []


@pytest.fixture
def script(tmp_path):
    """Runs launch/torchrun.sh for two machines, by an `ssh` that runs the command here."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text('#!/bin/bash\n[ "$1" = -tt ] && exec bash -c "$3"\n')
    ssh.chmod(0o755)
    (ssh.parent / "vrft").write_text(f'#!/bin/bash\nexec {sys.executable} -m vrft "$@"\n')
    (ssh.parent / "vrft").chmod(0o755)
    path = f"{ssh.parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PORT": str(free_port()), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(*overrides: str) -> subprocess.CompletedProcess:
        command = ["bash", str(SCRIPT), "localhost localhost", "1", *BASE, "trainer.max_steps=2", *overrides]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    return run


def test_the_script_starts_every_machine(script, tmp_path):
    done = script(f"run.dir={tmp_path / 'a run'}", "run.name='two words'")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {word["node"] for word in health.read_statuses(tmp_path / "a run")} == {0, 1}
    assert (tmp_path / "a run" / "report.html").exists()


def test_what_the_first_machine_refuses_ends_the_others(script, tmp_path):
    (tmp_path / "mine.txt").touch()
    done = script(f"run.dir={tmp_path}", "launch.rdzv_timeout_s=1000")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "exists and is not empty" in done.stdout + done.stderr
