"""Worker processes: started from a frozen run directory, waited for, and ended when the parent is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_GRACE_S = 40.0  # torchrun itself gives its workers 30 s


def find_device() -> str:
    """`cuda` if the driver reports a GPU to this process, else `cpu`; torch would say the same, seconds later."""
    n_devices = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "cpu"
    has_gpu = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(n_devices)) == 0 and n_devices.value > 0
    return "cuda" if has_gpu else "cpu"


def start_worker(run_dir: Path, config: dict[str, Any]) -> int:
    """Run `python -m vrft.run RUN_DIR` to its end and return its exit code; 130 after Ctrl-C.

    Several processes, or one under DeepSpeed (which needs its environment), are started by `torch.distributed.run`.
    """
    launch = config["launch"]
    environment = dict(os.environ)
    if launch["threads"]:
        environment["OMP_NUM_THREADS"] = str(launch["threads"])
    # A group of its own: Ctrl-C reaches the parent alone, which passes it on once.
    worker = subprocess.Popen(worker_command(run_dir, config), env=environment, process_group=0)
    with _signals_interrupt():
        try:
            code = worker.wait()
        except KeyboardInterrupt:
            _end(worker)
            return 130
    return 128 - code if code < 0 else code  # a shell's way to say: killed by a signal


def worker_command(run_dir: Path, config: dict[str, Any]) -> list[str]:
    """The command line of the worker."""
    launch = config["launch"]
    if launch["name"] == "local" and not config["deepspeed"]["config"]:
        return [sys.executable, "-m", "vrft.run", str(run_dir)]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(launch["nproc_per_node"]),
    ]
    return [*torchrun, "-m", "vrft.run", str(run_dir)]


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Turn SIGTERM (a scheduler's) and SIGHUP (a closed terminal's) into what Ctrl-C is."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(worker: subprocess.Popen) -> None:
    """Pass Ctrl-C on to the worker's whole group, wait for it to leave its files whole, and kill what is left."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(_GRACE_S)
            return
