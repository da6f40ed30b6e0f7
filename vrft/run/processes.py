"""Worker processes: started from a frozen run directory, watched, given the parent's signals, their end explained."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from vrft.config.schema import Config
from vrft.errors import SIGNALLED, ExitCode, UserError, first_line
from vrft.memory.gpus import gpu_at_hand
from vrft.run import health

_EXPLAINED = (ExitCode.OUT_OF_MEMORY, ExitCode.USER_ERROR, ExitCode.STOPPED_BY_ALARM)  # the worker has said what it was
_TICK_S = 0.1
_N_ROWS_NAMED = 8
_MOMENTS_S = 5.0


def find_device() -> str:
    """`cuda` (torch's name for ROCm too) if the driver shows a GPU to this process, else `cpu`.

    torch would say the same, but importing it takes seconds.
    """
    return "cuda" if gpu_at_hand() else "cpu"


def start_worker(run_dir: Path, config: Config, *, is_patient: bool = False) -> int:
    """Run `python -m vrft.run.worker RUN_DIR`, in one process or several, to its end; its exit code.

    | signal to this process | in training                     | otherwise          | exit code     |
    |------------------------|---------------------------------|--------------------|---------------|
    | SIGHUP                 | the step is finished and saved  | the processes end  | 129           |
    | SIGINT                 | the step is finished and saved  | the processes end  | 130           |
    | SIGUSR2                | the step is finished and saved  | the processes end  | 140           |
    | SIGTERM                | the step is finished and saved  | the processes end  | 143           |
    | a second of these      | the processes are killed        | the processes end  | of the first  |
    | SIGKILL                | the step is finished and saved  | the processes end  | 137           |

    is_patient: True where a scheduler sends several signals; the second then kills nothing. A process that writes no
    status for `launch.watchdog_s` hangs: all write their stacks and are killed, and the exit code is 124.

    `torch.distributed.run` starts the processes where there are several, and under DeepSpeed, which needs its
    environment. Of several machines each starts its own processes. They begin when all are there, in the run directory
    of machine 0. A signal to one machine makes all of them save and end. Raises `UserError` where machine 0 cannot
    listen at the port of `launch.rdzv_endpoint`.
    """
    launch, node = config.launch, getattr(config.launch, "node_rank", 0)
    health.remove_statuses(run_dir, node)
    if (n_nodes := getattr(launch, "nnodes", 1)) > 1:
        if node == 0:
            _check_port(launch.rdzv_endpoint)
        where = f"at {launch.rdzv_endpoint} (launch.rdzv_timeout_s={launch.rdzv_timeout_s})"
        _say(f"vrft: machine {node} of {n_nodes} waits for the others {where}")
    received: list[int] = []
    # torchrun inherits SIG_IGN; else it would kill its workers after 30 s. Workers set handlers of their own.
    with health.handling(signal.SIG_IGN) as handled:
        # In a process group of its own: Ctrl-C reaches this process alone, which passes it on once.
        worker = subprocess.Popen(
            worker_command(run_dir, config),
            env=os.environ | ({"OMP_NUM_THREADS": str(launch.threads)} if launch.threads else {}),
            process_group=0,
            preexec_fn=health.end_with_parent,
        )
        try:
            for number in handled:
                signal.signal(number, lambda number, frame: received.append(number))
            watch = _Watch(run_dir, worker, received, node=node, is_patient=is_patient)
            watch.wait(launch.watchdog_s)
        except BaseException:
            _kill(worker)
            raise
    return _code_of_run(watch)


def _say(words: str) -> None:
    """Print a line on the standard error. Where nobody takes it the run goes on."""
    with contextlib.suppress(OSError):
        print(words, file=sys.stderr)


def _check_port(endpoint: str) -> None:
    """Raise `UserError` if another program listens at the port where this machine is to receive the others."""
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch does; a port just left is free
        try:
            own.bind(("", int(endpoint.rpartition(":")[2])))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"launch.rdzv_endpoint is {endpoint}, and this machine cannot listen there ({first_line(error)}); "
                "choose another port on all machines"
            ) from None


def _code_of_run(watch: _Watch) -> int:
    """The exit code that the run's end means. Prints the cause where no process has."""
    statuses, code = health.read_statuses(watch.run_dir, watch.node), watch.worker.returncode
    codes = [status["code"] for status in statuses if "code" in status]
    if watch.is_hung:
        return ExitCode.HUNG
    if code == 0:
        return ExitCode.DONE
    explained = [status for status in statuses if status.get("code") in _EXPLAINED]  # torchrun turns every code into 1
    for status in sorted(explained, key=lambda status: status["code"] != ExitCode.OUT_OF_MEMORY):
        if status["rank"] and "error" in status and status["code"] != ExitCode.OUT_OF_MEMORY:
            _say(f"vrft: {status['error']}")  # the others failed because this process ended
        return status["code"]
    have_all_ended = len(codes) == len(statuses)
    interrupted = [one for one in codes if one > SIGNALLED]
    if interrupted and (watch.received or have_all_ended):  # else torchrun ended them, as another had failed
        return interrupted[0]
    if watch.received and (watch.is_killed or not statuses):
        return SIGNALLED + watch.received[0]
    if statuses and have_all_ended:
        return max(codes)
    _say(first_failure(watch.run_dir, statuses, watch.missed))
    return SIGNALLED - code if code < 0 else code  # below 0: killed by that signal


def worker_command(run_dir: Path, config: Config) -> list[str]:
    """The command line of the worker."""
    launch = config.launch
    if launch.name == "local" and not config.deepspeed.config:
        return [sys.executable, "-m", "vrft.run.worker", str(run_dir)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--signals-to-handle", "SIGQUIT"]
    torchrun += ["--nproc-per-node", str(launch.nproc_per_node)]
    if getattr(launch, "nnodes", 1) == 1:
        return [*torchrun, "--standalone", "-m", "vrft.run.worker", str(run_dir)]
    node, wait_s = launch.node_rank, launch.rdzv_timeout_s
    torchrun += ["--nnodes", str(launch.nnodes), "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", launch.rdzv_endpoint, "--rdzv-id", launch.rdzv_id]
    # torchrun alone would compare the endpoint's name with this machine's, which may have several.
    torchrun += ["--rdzv-conf", f"is_host={node == 0},read_timeout={wait_s},join_timeout={wait_s}"]
    return [*torchrun, "-m", "vrft.run.worker", str(run_dir), str(node)]


def first_failure(run_dir: Path, statuses: Sequence[dict[str, Any]], missed: Mapping[int, float]) -> str:
    """The message that names the first process that failed or was killed, what it was doing, and at which rows.

    statuses: as `health.read_statuses` returns them. missed: by rank, when a process was first seen to be gone, in
    seconds of the monotonic clock. torchrun's own account has neither step nor rows, and counts whole seconds.
    """
    ends = [(status["time"], status, status["error"]) for status in statuses if status["state"] == "failed"]
    for status in statuses:
        when = missed.get(status["rank"], math.inf)
        if status["state"] == "runs":
            # The others fail within moments of a death. Where one fails, torchrun kills the rest half a minute later.
            ends.append((when - _MOMENTS_S, status, "ended without a word, as when memory runs out"))
        elif status["state"] == "interrupted" and "code" not in status:
            ends.append((when, status, "was killed before it had saved this step"))
    if not ends:
        return f"vrft: the worker of {run_dir} ended before it began"
    _, status, why = min(ends, key=lambda end: end[0])
    return f"vrft: rank {status['rank']} {_position(status)}: {why}"


def _position(status: dict[str, Any]) -> str:
    """What a process is doing, its step and its rows, in words."""
    rows = status.get("rows") or []
    named = ", ".join(map(str, rows[:_N_ROWS_NAMED])) + (", …" if len(rows) > _N_ROWS_NAMED else "")
    step = f" step {status['step']}" if status.get("step") is not None else ""
    return f"in {status.get('doing', 'its beginning')}{step}" + (f", at rows {named}" if rows else "")


class _Watch:
    """Watches a run's processes until they end."""

    def __init__(
        self, run_dir: Path, worker: subprocess.Popen, received: list[int], *, node: int, is_patient: bool
    ) -> None:
        """received: signals, to which a handler appends. node: this machine's number. is_patient: True kills nothing at
        a second signal."""
        self.run_dir, self.worker, self.received = run_dir, worker, received
        self.node, self.is_patient = node, is_patient
        self.missed: dict[int, float] = {}  # by rank, when its process was first seen to be gone
        self._processes: dict[int, psutil.Process] = {}  # by rank
        self.is_hung = self.is_killed = False

    def wait(self, watchdog_s: float | None) -> None:
        """Return when all processes have ended; pass signals on, and end a run that hangs."""
        n_passed_on = 0
        while self._is_running() and not (self.is_hung or self.is_killed):
            time.sleep(_TICK_S)
            statuses = health.read_statuses(self.run_dir, self.node)
            self._find_processes(statuses)
            if (n_received := len(self.received)) > n_passed_on:  # those at once count as one, later ones do not
                if n_passed_on == 0 or not self.is_patient:
                    self._pass_on(statuses if n_passed_on == 0 else [])
                n_passed_on = n_received
            elif watchdog_s and _silent_s(statuses) > watchdog_s:
                self._write_stacks(statuses, watchdog_s)
                _kill(self.worker)
                self.is_hung = True
        self.worker.wait()
        self._send(signal.SIGKILL)  # where torchrun was killed, nobody else ends a process that hangs

    def _is_running(self) -> bool:
        """True while the launcher or any process that it started is alive."""
        return self.worker.poll() is None or any(map(_is_alive, self._processes.values()))

    def _find_processes(self, statuses: Sequence[dict[str, Any]]) -> None:
        """Find the processes that wrote the statuses, and note which are gone.

        A status may come from elsewhere: only processes that the worker has started are taken.
        """
        for status in statuses:
            if status["rank"] not in self._processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(status["pid"])
                    if self.worker.pid in (process.pid, *(one.pid for one in process.parents())):
                        self._processes[status["rank"]] = process
        for rank in {status["rank"] for status in statuses} - set(self.missed):
            if rank not in self._processes or not _is_alive(self._processes[rank]):
                self.missed[rank] = time.monotonic()

    def _write_stacks(self, statuses: Sequence[dict[str, Any]], watchdog_s: float) -> None:
        """Have every process write the stacks of its threads, and print what each was doing.

        The parent asks, since `faulthandler.dump_traceback_later` in each process would miss one that is stopped, and
        would show the stack of the first alone: its exit has torchrun end the others.
        """
        self._send(signal.SIGUSR1)
        time.sleep(1.0)
        _say(f"vrft: no word for launch.watchdog_s={watchdog_s:g} seconds, so the run is ended")
        for status in statuses:
            stack = self.run_dir / health.FOLDER / f"stack_{status['rank']}.txt"
            _say(f"vrft: rank {status['rank']} {_position(status)}; its stack: {stack}")

    def _send(self, number: int) -> None:
        """Send a signal to every process that has written a status."""
        for process in self._processes.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _pass_on(self, statuses: Sequence[dict[str, Any]]) -> None:
        """Send the first signal to every process that has written a status; where none has, kill the worker."""
        if not statuses:
            _kill(self.worker)
            self.is_killed = True
        self._send(self.received[0])  # before a word: `| tee log` ends by the same Ctrl-C, and a broken pipe takes none
        if any(status.get("saves") for status in statuses):
            _say("\nvrft: interrupted; the step is finished and saved (once more: end at once)")


def _silent_s(statuses: Sequence[dict[str, Any]]) -> float:
    """Seconds since the oldest status of a process at work was written; 0 before the first process is at work.

    Until then it may be downloading a model. Once all have finished, the newest status counts.
    """
    at_work = [status for status in statuses if "doing" in status]
    if not at_work:
        return 0.0
    unfinished = [status["time"] for status in at_work if status["state"] != "finished"]
    return time.monotonic() - min(unfinished, default=max(status["time"] for status in at_work))


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _kill(worker: subprocess.Popen) -> None:
    """Kill the worker and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
