"""`launch=slurm`, inside the job: on every node torchrun, and after SLURM's warning back into the queue."""

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

import yaml

from vrft.errors import SIGNALLED, ExitCode, UserError
from vrft.files import write_text_atomically
from vrft.run.directory import SLURM_FOLDER, alone_in
from vrft.run.health import SIGNALS
from vrft.run.out_of_memory import backed_off
from vrft.run.processes import start_worker

_INTERRUPTED = frozenset(SIGNALLED + number for number in SIGNALS)
_KILLED_WITHIN_S = 60.0
_TOLD_WITHIN_S = 60.0


def run_on_node(run_dir: str) -> None:
    """What submitit calls on every node: a node's share of the run. Ends the process with its exit code.

    Plain data in, and nothing of the user's: the run directory says all.
    """
    for number in SIGNALS:  # submitit's own handlers would requeue before anything is saved
        signal.signal(number, lambda number, frame: None)
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # also where the cluster gives a job another environment
    folder, node = Path(run_dir), int(os.environ["SLURM_NODEID"])
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        config["launch"] |= {"node_rank": node, **_meeting(config["launch"])}
        code = _first_node(folder, config) if node == 0 else start_worker(folder, config, is_patient=True)
    except UserError as error:
        print(f"vrft: {error}", file=sys.stderr)
        code = ExitCode.USER_ERROR
    if node and code in (*_INTERRUPTED, ExitCode.STOPPED_BY_ALARM, ExitCode.USER_ERROR, ExitCode.OUT_OF_MEMORY):
        code = 0  # the first node says what comes now; a failure here would have srun end it
    elif node and code:
        time.sleep(_TOLD_WITHIN_S)  # the first node, which fails too, names the cause and ends this one
    sys.stdout.flush()
    raise SystemExit(code)


def _first_node(run_dir: Path, config: dict[str, Any]) -> int:
    """Work, then report, or go back into the queue."""
    job_id, restarts = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    with alone_in(run_dir):
        code = start_worker(run_dir, config, is_patient=True)
        can_back_off = config["launch"]["nnodes"] == 1  # several nodes would have to agree: the parent resubmits there
        while code == ExitCode.OUT_OF_MEMORY and can_back_off and (smaller := backed_off(run_dir, config)):
            config = smaller
            code = start_worker(run_dir, config, is_patient=True)
    if code in (0, ExitCode.STOPPED_BY_ALARM):
        from vrft.report.write import write_reports

        write_reports([run_dir])
    limit, is_requeued = config["launch"]["max_requeues"], False
    if code == ExitCode.WARNED or (code in _INTERRUPTED and _is_preempted(job_id)):
        code, is_requeued = ExitCode.WARNED, restarts < limit
        if not is_requeued:
            print(f"vrft: saved, and requeued launch.max_requeues={limit} times before: the job ends", file=sys.stderr)
    note_end(run_dir, job_id=job_id, restarts=restarts, code=code, is_requeued=is_requeued)
    if is_requeued:
        _requeue(run_dir, job_id, restarts)
    return code


def _requeue(run_dir: Path, job_id: str, restarts: int) -> None:
    """Put this job back into the queue, and wait for SLURM to end what runs of it; returns if it does not."""
    print(f"vrft: saved; job {job_id} goes back into the queue and will go on from there", file=sys.stderr, flush=True)
    done = subprocess.run(["scontrol", "requeue", job_id], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        time.sleep(_KILLED_WITHIN_S)
    else:
        print(f"vrft: SLURM does not requeue it: {done.stderr.strip()}", file=sys.stderr)
        note_end(run_dir, job_id=job_id, restarts=restarts, code=ExitCode.WARNED, is_requeued=False)


def _is_preempted(job_id: str) -> bool:
    """True if another job has taken this one's place, which a cancelled job cannot say."""
    return re.search(r"\bPreemptTime=\d", _told("show", "job", job_id)) is not None


def _meeting(launch: dict[str, Any]) -> dict[str, Any]:
    """Where this job's nodes meet: a port of the first, of which every job and every start has its own."""
    if launch["nnodes"] == 1:
        return {}
    first = _told("show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()[0]
    address = re.search(r"\bNodeAddr=(\S+)", _told("-o", "show", "node", first))
    job, restarts = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    port = 20000 + (31 * job + restarts) % 10000
    return {"rdzv_endpoint": f"{address[1] if address else first}:{port}", "rdzv_id": f"{job}.{restarts}"}


def _told(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False).stdout


FOLDER = SLURM_FOLDER  # logs, submitit's files, and these
JOB, ENDED = "job.json", "ended.json"


def note_end(run_dir: Path, *, job_id: str, restarts: int, code: int, is_requeued: bool) -> None:
    """Leave the run's exit code to who follows the job. restarts: how often it had been requeued before."""
    said = {"job": job_id, "restarts": restarts, "code": code, "is_requeued": is_requeued}
    write_text_atomically(run_dir / FOLDER / ENDED, json.dumps(said) + "\n")
