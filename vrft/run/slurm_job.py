"""`launch=slurm`, inside the job: torchrun on every node. After SLURM's warning the job saves and is requeued."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vrft.config.launch_schema import TorchrunLaunch
from vrft.config.schema import Config
from vrft.errors import SIGNALLED, ExitCode, UserError, disk_errors_explained
from vrft.files import write_text_atomically
from vrft.run.directory import SLURM_FOLDER, alone_in
from vrft.run.health import SIGNALS
from vrft.run.out_of_memory import backed_off
from vrft.run.processes import start_worker
from vrft.run.resume import read_config
from vrft.terminal import careful_terminal

FOLDER = SLURM_FOLDER  # logs, submitit's files, and these
JOB, ENDED = "job.json", "ended.json"
_INTERRUPTED = frozenset(SIGNALLED + number for number in SIGNALS)
_KILLED_WITHIN_S = 60.0  # SLURM ends a job that is requeued
_CAUSE_WITHIN_S = 60.0  # the first node ends the others


@careful_terminal
def run_on_node(run_dir: str) -> None:
    """Run a node's share of the run, as submitit calls it on every node; ends the process with its exit code.

    submitit pickles the argument, so it is a string: all else is read from the run directory.
    """
    for number in SIGNALS:  # submitit's own handlers would requeue before anything is saved
        signal.signal(number, lambda number, frame: None)
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # also where the cluster gives a job another environment
    folder, node = Path(run_dir), int(os.environ["SLURM_NODEID"])
    try:
        config = read_config(folder)
        rendezvous = _rendezvous(config.launch.nnodes)
        code = _first_node(folder, config, rendezvous) if node == 0 else _start(folder, config, node, rendezvous)
    except UserError as error:
        print(f"vrft: {error}", file=sys.stderr)
        code = ExitCode.USER_ERROR
    if node and code in (*_INTERRUPTED, ExitCode.STOPPED_BY_ALARM, ExitCode.USER_ERROR, ExitCode.OUT_OF_MEMORY):
        code = 0  # the first node decides what comes next; after a failure here srun would kill it
    elif node and code:
        time.sleep(_CAUSE_WITHIN_S)  # the first node fails too: it prints the cause, and srun ends this one
    sys.stdout.flush()
    raise SystemExit(code)


def _start(run_dir: Path, config: Config, node: int, rendezvous: dict[str, Any]) -> int:
    """Run a node's processes by torchrun; the exit code. rendezvous: as `_rendezvous` returns it."""
    shared = config.launch.part(TorchrunLaunch, name="torchrun", node_rank=node, **rendezvous)
    return start_worker(run_dir, config.model_copy(update={"launch": shared}), is_patient=True)


def _first_node(run_dir: Path, config: Config, rendezvous: dict[str, Any]) -> int:
    """Run the first node's share, then write the report, or requeue the job; the exit code."""
    job_id, restarts = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    with alone_in(run_dir):
        code = _start(run_dir, config, 0, rendezvous)
        can_back_off = config.launch.nnodes == 1  # several nodes would have to agree: the parent resubmits there
        while code == ExitCode.OUT_OF_MEMORY and can_back_off and (smaller := backed_off(run_dir, config)):
            config = smaller
            code = _start(run_dir, config, 0, rendezvous)
    if code in (0, ExitCode.STOPPED_BY_ALARM):
        from vrft.report.write import write_reports

        with disk_errors_explained(then=f"give vrft report runs=[{run_dir}]"):
            write_reports([run_dir])
    limit, is_requeued = config.launch.max_requeues, False
    if code == ExitCode.WARNED or (code in _INTERRUPTED and _is_preempted(job_id)):
        code, is_requeued = ExitCode.WARNED, restarts < limit
        if not is_requeued:
            print(f"vrft: saved, and requeued launch.max_requeues={limit} times before: the job ends", file=sys.stderr)
    note_end(run_dir, job_id=job_id, restarts=restarts, code=code, is_requeued=is_requeued)
    if is_requeued:
        _requeue(run_dir, job_id, restarts)
    return code


def _requeue(run_dir: Path, job_id: str, restarts: int) -> None:
    """Put this job back into the queue, and wait until SLURM kills it. Returns only if SLURM refuses."""
    print(f"vrft: saved; job {job_id} goes back into the queue and will resume from there", file=sys.stderr, flush=True)
    done = subprocess.run(["scontrol", "requeue", job_id], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        time.sleep(_KILLED_WITHIN_S)
    else:
        print(f"vrft: SLURM does not requeue it: {done.stderr.strip()}", file=sys.stderr)
        note_end(run_dir, job_id=job_id, restarts=restarts, code=ExitCode.WARNED, is_requeued=False)


def _is_preempted(job_id: str) -> bool:
    """True if SLURM has preempted this job: a cancelled job gets the same signal."""
    return re.search(r"\bPreemptTime=\d", _scontrol("show", "job", job_id)) is not None


def _rendezvous(n_nodes: int) -> dict[str, Any]:
    """`rdzv_endpoint`, the address and port of the first node at which this job's nodes meet, and `rdzv_id`.

    Every job and every restart has its own port, as an earlier one may still be open.
    """
    if n_nodes == 1:
        return {"rdzv_endpoint": None, "rdzv_id": "vrft"}
    first = _scontrol("show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()[0]
    address = re.search(r"\bNodeAddr=(\S+)", _scontrol("-o", "show", "node", first))
    job, restarts = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    port = 20000 + (31 * job + restarts) % 10000
    return {"rdzv_endpoint": f"{address[1] if address else first}:{port}", "rdzv_id": f"{job}.{restarts}"}


def _scontrol(*arguments: str) -> str:
    """What `scontrol` prints."""
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False).stdout


def note_end(run_dir: Path, *, job_id: str, restarts: int, code: int, is_requeued: bool) -> None:
    """Write the run's exit code for the process that follows the job. restarts: how often it was requeued before."""
    ended = {"job": job_id, "restarts": restarts, "code": code, "is_requeued": is_requeued}
    write_text_atomically(run_dir / FOLDER / ENDED, json.dumps(ended) + "\n")
