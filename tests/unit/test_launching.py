"""Workers: their command, their exit codes, and the end that Ctrl-C brings to both sides."""

from __future__ import annotations

import sys

import pytest

from vrft import launching
from vrft.launching import start_worker, worker_command


def settings(*, name="local", processes=1, deepspeed=None, threads=None) -> dict:
    return {
        "launch": {"name": name, "nproc_per_node": processes, "threads": threads},
        "deepspeed": {"config": deepspeed},
    }


@pytest.mark.parametrize(
    ("config", "is_torchrun"),
    [
        (settings(), False),
        (settings(name="torchrun", processes=2), True),
        (settings(deepspeed={"zero_optimization": {"stage": 3}}), True),  # DeepSpeed reads torchrun's environment
    ],
)
def test_what_starts_the_worker(config, is_torchrun, tmp_path):
    command = worker_command(tmp_path, config)
    assert command[0] == sys.executable
    assert command[-3:] == ["-m", "vrft.run", str(tmp_path)]
    assert ("torch.distributed.run" in command) == is_torchrun
    if is_torchrun:
        assert command[command.index("--nproc-per-node") + 1] == str(config["launch"]["nproc_per_node"])


@pytest.fixture
def worker(monkeypatch):
    """Make the worker run this source instead of `vrft.run`."""

    def becomes(source: str) -> None:
        monkeypatch.setattr(launching, "worker_command", lambda run_dir, config: [sys.executable, "-c", source])

    return becomes


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("", 0),
        ("raise SystemExit(2)", 2),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),  # as the out-of-memory killer does
        ("import os; raise SystemExit(int(os.environ['OMP_NUM_THREADS']) != 3)", 0),  # launch.threads reaches it
    ],
)
def test_the_workers_exit_code_is_passed_on(worker, tmp_path, source, code):
    worker(source)
    assert start_worker(tmp_path, settings(threads=3)) == code


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interruption_reaches_the_worker_once_and_is_130(worker, tmp_path, name):
    source = f"""
import os, signal
try:
    os.kill(os.getppid(), signal.{name})  # whoever interrupts vrft
    signal.pause()
except KeyboardInterrupt:
    with open({str(tmp_path / "interrupted")!r}, "a") as file:
        file.write("once")
"""
    worker(source)
    assert start_worker(tmp_path, settings()) == 130
    assert (tmp_path / "interrupted").read_text() == "once"
