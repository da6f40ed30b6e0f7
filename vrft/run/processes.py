"""Worker processes: started from a frozen run directory, watched, interrupted when the parent is, and accounted for."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from vrft.errors import SIGNALLED, ExitCode
from vrft.memory.gpus import gpu_at_hand
from vrft.run import health
from vrft.run.health import SIGNALS

_EXPLAINED = (ExitCode.OUT_OF_MEMORY, ExitCode.USER_ERROR, ExitCode.STOPPED_BY_ALARM)  # the worker has said what it was
_TICK_S = 0.1
_N_ROWS_NAMED = 8
_MOMENTS_S = 5.0


def find_device() -> str:
    """`cuda` (torch's name for ROCm too) if the driver shows a GPU to this process, else `cpu`.

    torch would say the same, but importing it takes seconds.
    """
    return "cuda" if gpu_at_hand() else "cpu"


def start_worker(run_dir: Path, config: dict[str, Any], *, is_patient: bool = False) -> int:
    """Run `python -m vrft.run.worker RUN_DIR` to its end and return its exit code.

    A first SIGINT, SIGTERM, SIGHUP or SIGUSR2 is passed on to every process: in training these save and stop, with 128
    + its number. A second one kills them, unless `is_patient`, as where a scheduler sends several. Where a process says
    nothing for `launch.watchdog_s`, each writes its stack, and the run is ended with 124. Where this process is killed,
    the others save and stop too. Several processes, or one under DeepSpeed (which needs its environment), are started
    by `torch.distributed.run`. Of several machines each starts its own processes, which begin when all are there; the
    first, `launch.node_rank=0`, has made the run directory. A signal on one of them saves and stops on all.
    """
    launch, node = config["launch"], config["launch"].get("node_rank", 0)
    environment = dict(os.environ)
    if launch["threads"]:
        environment["OMP_NUM_THREADS"] = str(launch["threads"])
    health.forget(run_dir, node)
    if (n_nodes := launch.get("nnodes", 1)) > 1:
        where = f"at {launch['rdzv_endpoint']} (launch.rdzv_timeout_s={launch['rdzv_timeout_s']})"
        print(f"vrft: machine {node} of {n_nodes} waits for the others {where}", file=sys.stderr)
    received: list[int] = []
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    # Ignored by torchrun, which would give its workers 30 s to save; workers take them over.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in heeded}
    # A group of its own: Ctrl-C reaches the parent alone, which passes it on once.
    command = worker_command(run_dir, config)
    worker = subprocess.Popen(command, env=environment, process_group=0, preexec_fn=health.end_with_parent)
    try:
        for number in heeded:
            signal.signal(number, lambda number, frame: received.append(number))
        watch = _Watch(run_dir, worker, received, node=node, is_patient=is_patient)
        watch.wait(launch["watchdog_s"])
    except BaseException:
        _kill(worker)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return _code_of_run(watch)


def _code_of_run(watch: _Watch) -> int:
    """What the run's end means, and a word about it where nobody has said one."""
    words, code = health.heard(watch.run_dir, watch.node), watch.worker.returncode
    said = [word["code"] for word in words if "code" in word]
    if watch.is_hung:
        return ExitCode.HUNG
    if code == 0:
        return 0
    explained = [word for word in words if word.get("code") in _EXPLAINED]  # torchrun turns every code into 1
    for word in sorted(explained, key=lambda word: word["code"] != ExitCode.OUT_OF_MEMORY):
        if word["rank"] and "error" in word and word["code"] != ExitCode.OUT_OF_MEMORY:
            print(f"vrft: {word['error']}", file=sys.stderr)  # the others failed because this process ended
        return word["code"]
    have_all_ended = len(said) == len(words)
    interrupted = [one for one in said if one > 128]
    if interrupted and (watch.received or have_all_ended):  # else torchrun ended them, for another had failed
        return interrupted[0]
    if watch.received and (watch.is_killed or not words):
        return SIGNALLED + watch.received[0]
    if words and have_all_ended:
        return max(said)
    print(account(watch.run_dir, words, watch.gone), file=sys.stderr)
    return SIGNALLED - code if code < 0 else code  # below 0: killed by that signal


def worker_command(run_dir: Path, config: dict[str, Any]) -> list[str]:
    """The command line of the worker."""
    launch = config["launch"]
    if launch["name"] == "local" and not config["deepspeed"]["config"]:
        return [sys.executable, "-m", "vrft.run.worker", str(run_dir)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--signals-to-handle", "SIGQUIT"]
    torchrun += ["--nproc-per-node", str(launch["nproc_per_node"])]
    if launch.get("nnodes", 1) == 1:
        return [*torchrun, "--standalone", "-m", "vrft.run.worker", str(run_dir)]
    node, wait_s = launch["node_rank"], launch["rdzv_timeout_s"]
    torchrun += ["--nnodes", str(launch["nnodes"]), "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", launch["rdzv_endpoint"], "--rdzv-id", launch["rdzv_id"]]
    # Said, not left to torchrun, which looks whether the endpoint's name is this machine's.
    torchrun += ["--rdzv-conf", f"is_host={node == 0},read_timeout={wait_s},join_timeout={wait_s}"]
    return [*torchrun, "-m", "vrft.run.worker", str(run_dir), str(node)]


def account(run_dir: Path, words: Sequence[dict[str, Any]], gone: Mapping[int, float]) -> str:
    """Who ended the run, and at which samples: the first process that failed, or that died without a word.

    words: as `health.heard` gives them. gone: when a process was first missed, by rank, on the monotonic clock.
    """
    ends = [(word["time"], word, word["error"]) for word in words if word["state"] == "failed"]
    for word in words:
        if word["state"] == "runs":
            # The others fail within moments of a death; where one fails, torchrun kills the rest half a minute later.
            when = gone.get(word["rank"], math.inf) - _MOMENTS_S
            ends.append((when, word, "ended without a word, as when memory runs out"))
        elif word["state"] == "interrupted" and "code" not in word:
            ends.append((gone.get(word["rank"], math.inf), word, "was killed before it had saved this step"))
    if not ends:
        return f"vrft: the worker of {run_dir} ended before it began"
    _, word, why = min(ends, key=lambda end: end[0])
    return f"vrft: rank {word['rank']} {_where(word)}: {why}"


def _where(word: dict[str, Any]) -> str:
    rows = word.get("rows") or []
    named = ", ".join(map(str, rows[:_N_ROWS_NAMED])) + (", …" if len(rows) > _N_ROWS_NAMED else "")
    step = f" step {word['step']}" if word.get("step") is not None else ""
    return f"in {word.get('doing', 'its beginning')}{step}" + (f", at rows {named}" if rows else "")


class _Watch:
    """The parent's watch over a run's processes until they end."""

    def __init__(
        self, run_dir: Path, worker: subprocess.Popen, received: list[int], *, node: int, is_patient: bool
    ) -> None:
        """received: signals, to which a handler appends. node: this machine's number. is_patient: never to kill."""
        self.run_dir, self.worker, self.received = run_dir, worker, received
        self.node, self.is_patient = node, is_patient
        self.gone: dict[int, float] = {}  # by rank, when it was first missed
        self._processes: dict[int, psutil.Process] = {}  # by rank
        self.is_hung = self.is_killed = False

    def wait(self, watchdog_s: float | None) -> None:
        """Until all processes have ended; passes signals on."""
        n_passed_on = 0
        while self._is_running() and not (self.is_hung or self.is_killed):
            time.sleep(_TICK_S)
            words = health.heard(self.run_dir, self.node)
            self._know(words)
            if (n_received := len(self.received)) > n_passed_on:  # those at once count as one, later ones do not
                if n_passed_on == 0 or not self.is_patient:
                    self._pass_on(words if n_passed_on == 0 else [])
                n_passed_on = n_received
            elif watchdog_s and _silence(words) > watchdog_s:
                self._write_stacks(words, watchdog_s)
                _kill(self.worker)
                self.is_hung = True
        self.worker.wait()
        self._send(signal.SIGKILL)  # where torchrun was killed before, nobody else would

    def _is_running(self) -> bool:
        """Whether anyone is: where torchrun is killed, its processes save and stop."""
        return self.worker.poll() is None or any(map(_is_alive, self._processes.values()))

    def _know(self, words: Sequence[dict[str, Any]]) -> None:
        """Note which processes speak, of those that the worker has started, and which are gone."""
        for word in words:
            if word["rank"] not in self._processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(word["pid"])
                    if self.worker.pid in (process.pid, *(one.pid for one in process.parents())):
                        self._processes[word["rank"]] = process
        for rank in {word["rank"] for word in words} - set(self.gone):
            if rank not in self._processes or not _is_alive(self._processes[rank]):
                self.gone[rank] = time.monotonic()

    def _write_stacks(self, words: Sequence[dict[str, Any]], watchdog_s: float) -> None:
        """Have every process write its stack, and tell where each stood."""
        self._send(signal.SIGUSR1)
        time.sleep(1.0)
        print(f"vrft: no word for launch.watchdog_s={watchdog_s:g} seconds, so the run is ended", file=sys.stderr)
        for word in words:
            stack = self.run_dir / health.FOLDER / f"stack_{word['rank']}.txt"
            print(f"vrft: rank {word['rank']} {_where(word)}; its stack: {stack}", file=sys.stderr)

    def _send(self, number: int) -> None:
        """A signal to every process that has spoken."""
        for process in self._processes.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _pass_on(self, words: Sequence[dict[str, Any]]) -> None:
        """The first signal to every process that has begun; else, or in impatience, the end."""
        if not words:
            _kill(self.worker)
            self.is_killed = True
        elif any(word.get("saves") for word in words):
            print("\nvrft: interrupted; the step is finished and saved (once more: end at once)", file=sys.stderr)
        self._send(self.received[0])


def _silence(words: Sequence[dict[str, Any]]) -> float:
    """Seconds since the process that has been silent longest spoke; 0 before any has begun to work.

    Until then a model may be on its way from the hub. Once all have finished the last word counts.
    """
    begun = [word for word in words if "doing" in word]
    if not begun:
        return 0.0
    working = [word["time"] for word in begun if word["state"] != "finished"]
    return time.monotonic() - min(working, default=max(word["time"] for word in begun))


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _kill(worker: subprocess.Popen) -> None:
    """End the worker, and whatever it has started, at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
