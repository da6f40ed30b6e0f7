"""`launch=slurm`, where it is given: a job for the run, submitted through submitit and followed to its end."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from vrft.errors import ExitCode, UserError
from vrft.files import write_text_atomically
from vrft.run import health
from vrft.run.directory import OccupiedError, alone_in
from vrft.run.slurm_job import ENDED, FOLDER, JOB

# A job's final states, and the exit codes where the job itself has not said one.
_ENDS = {
    "COMPLETED": ExitCode.DONE,
    "FAILED": ExitCode.FAILED,
    "CANCELLED": ExitCode.TERMINATED,
    "TIMEOUT": ExitCode.WARNED,
    "PREEMPTED": ExitCode.WARNED,
    "OUT_OF_MEMORY": ExitCode.KILLED,
    "NODE_FAIL": ExitCode.FAILED,
    "BOOT_FAIL": ExitCode.FAILED,
    "DEADLINE": ExitCode.FAILED,
    "REVOKED": ExitCode.FAILED,
}
_TOOLS = ("sbatch", "srun", "scontrol")
_TAIL, _N_LOGS = 12, 4  # lines of a log that are shown, and of how many nodes
_LATE_S = 60  # how much later a network's file system may show what a job wrote last
_POLLS_S = (0.5, 10.0)  # between two looks: at first, and at most


def check_cluster(run_dir: Path) -> None:
    """Raise `UserError` where no job can be submitted, or where one for this run directory has not ended."""
    if missing := [name for name in _TOOLS if shutil.which(name) is None]:
        raise UserError(
            f"launch=slurm needs {', '.join(missing)} on PATH; give the command on a login node of the cluster, or "
            "choose launch=local or torchrun"
        )
    if importlib.util.find_spec("submitit") is None:
        raise UserError("launch=slurm needs submitit: pip install 'vrft[slurm]', or choose launch=torchrun")
    check_no_job(run_dir)


def check_no_job(run_dir: Path) -> None:
    """Raise `UserError` if a job that was submitted for the run directory has not ended."""
    job_id = _said(run_dir, JOB).get("job")
    if not isinstance(job_id, str) or not job_id.isdigit() or shutil.which("scontrol") is None:
        return
    known = _asked(job_id)
    if known is None:
        raise OccupiedError(f"SLURM does not answer about job {job_id} of run.dir={run_dir}; try again")
    state = known.get("JobState", "COMPLETED")
    if state not in _ENDS:
        raise OccupiedError(
            f"job {job_id} is to work in run.dir={run_dir} (SLURM says {state}); wait for its end "
            f"(squeue -j {job_id}), or end it (scancel {job_id})"
        )


def device_of_job(launch: dict[str, Any]) -> str | None:
    """What `launch.device=auto` means in a job: `cuda` if it asks for GPUs; None unless the run is one."""
    if launch.get("name") != "slurm":
        return None
    asks = launch.get("gpus_per_node") or any(_asks_for_gpus(*option) for option in (launch.get("extra") or {}).items())
    return "cuda" if asks else "cpu"


def _asks_for_gpus(key: str, value: Any) -> bool:
    """Whether an option of sbatch asks for GPUs.

    >>> _asks_for_gpus("gres", "gpu:a100:2"), _asks_for_gpus("gpus_per_task", 1), _asks_for_gpus("exclude", "gpu[1-4]")
    (True, True, False)
    """
    name = str(key).replace("_", "-")
    if name in ("gpus", "gpus-per-node", "gpus-per-task"):
        return str(value) not in ("0", "False")
    return (name == "gres" or name.startswith("tres")) and re.search(r"\bgpu\b", str(value)) is not None


def run_as_job(run_dir: Path, config: dict[str, Any]) -> int | None:
    """Submit the run and follow its job to the end; the run's exit code, or None where nobody waits for it.

    Raises `UserError` if the cluster refuses the job. Ctrl-C ends the waiting alone: the job goes on.
    """
    job_id = submit(run_dir, config)
    log = run_dir / FOLDER / f"{job_id}_0_log.out"
    print(f"vrft: job {job_id} is submitted; its log: {log}", file=sys.stderr)
    if not config["launch"]["wait"]:
        print(
            f"vrft: squeue -j {job_id} says how it fares, scancel {job_id} has it save and stop; at its end it writes "
            f"{run_dir / 'report.html'}",
            file=sys.stderr,
        )
        return None
    try:
        return follow(run_dir, job_id)
    except KeyboardInterrupt:
        print(f"\nvrft: no longer waiting; job {job_id} goes on (scancel {job_id}: save and stop)", file=sys.stderr)
        raise


def submit(run_dir: Path, config: dict[str, Any]) -> str:
    """Submit the frozen run directory as a job, and return the job's number.

    The frozen config is made to resume, from nothing at first: a requeued job then need not rewrite it, which other
    nodes could see too late on a network's file system.
    """
    folder = run_dir.resolve() / FOLDER
    folder.mkdir(exist_ok=True)
    with alone_in(folder):  # somebody may have submitted it since the check
        check_no_job(run_dir)
        return _submit(run_dir, folder, config)


def _submit(run_dir: Path, folder: Path, config: dict[str, Any]) -> str:
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from vrft.run.slurm_job import run_on_node

    resuming = config | {"run": config["run"] | {"resume": True}}
    text = yaml.safe_dump(resuming, sort_keys=False, allow_unicode=True)
    write_text_atomically(run_dir / "config.yaml", text)
    for pickled in folder.glob("*.pkl"):  # not the job's own, which it loads: they could run code
        pickled.unlink()
    (folder / ENDED).unlink(missing_ok=True)
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(**job_parameters(config))
    try:
        job = executor.submit(run_on_node, str(run_dir.resolve()))
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"sbatch refused the job: {said}; look at launch.partition, account, time, nnodes, gpus_per_node, "
            "cpus_per_task, mem and extra"
        ) from None
    write_text_atomically(folder / JOB, json.dumps({"job": job.job_id}) + "\n")
    return job.job_id


def job_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """What `submitit.SlurmExecutor.update_parameters` is given."""
    launch = config["launch"]
    per_node = {key: launch[key] for key in ("cpus_per_task", "gpus_per_node")}
    extra = {str(key).replace("_", "-"): value for key, value in launch["extra"].items() if value is not False}
    srun = ["--kill-on-bad-exit=1", "--wait=0"]  # a node that fails ends all; one that is done early does not
    if launch["cpus_per_task"]:
        srun.append(f"--cpus-per-task={launch['cpus_per_task']}")  # which srun no longer takes from sbatch
    return {
        "job_name": "vrft-" + re.sub(r"[^\w.-]+", "_", config["run"]["name"]),
        "partition": launch["partition"],
        "account": launch["account"],
        "time": launch["time"],
        "nodes": launch["nnodes"],
        "ntasks_per_node": 1,
        **per_node,
        "signal_delay_s": launch["signal_delay_s"],
        "setup": launch["setup"] or None,
        "stderr_to_stdout": True,
        "wckey": extra.pop("wckey", None),
        "srun_args": srun,
        "additional_parameters": {
            "requeue": True,
            "export": "ALL",
            **({"mem": launch["mem"]} if launch["mem"] else {}),
            **extra,
        },
    }


def follow(run_dir: Path, job_id: str) -> int:
    """Wait for the job's end, telling its states, and return the run's exit code; where it failed, show its logs."""
    line, wait_s, last = _Line(), _POLLS_S[0], ""
    while True:
        job = _asked(job_id)
        if job is not None:
            state = job["JobState"]
            line.show(_words(job_id, job), _progress(run_dir) if state == "RUNNING" else "")
            if state == "COMPLETED" or (state in _ENDS and state == last):  # twice: a job that is requeued may pass it
                break
            last = state
        time.sleep(wait_s)
        wait_s = _POLLS_S[0] if last in _ENDS else min(wait_s * 1.3, _POLLS_S[1])
    line.end()
    for _ in range(_LATE_S):
        if job["JobState"] != "COMPLETED" or _said(run_dir, ENDED).get("job") == job_id:
            break
        time.sleep(1)
    code = _code_of_job(run_dir, job_id, job)
    if code:
        print(f"vrft: job {job_id} ended as {job['JobState']}, exit code {code}", file=sys.stderr)
        errors = {word["error"]: word["rank"] for word in reversed(health.read_statuses(run_dir)) if "error" in word}
        for error, rank in reversed(errors.items()):
            print(f"vrft: rank {rank}: {error}", file=sys.stderr)
        if code != ExitCode.USER_ERROR or not errors:
            _show_logs(run_dir, job_id)
    return code


def _asked(job_id: str) -> dict[str, str] | None:
    """What SLURM knows of a job, at least its `JobState`; None where its controller does not answer for now.

    Of a job that ended some minutes ago the accounting is asked, where there is one; `COMPLETED` where none is, so that
    what the job itself has left behind counts.
    """
    done = subprocess.run(["scontrol", "-o", "show", "job", job_id], capture_output=True, text=True, check=False)
    if done.returncode == 0 and "JobState=" in done.stdout:
        return dict(pair.split("=", 1) for pair in done.stdout.split() if "=" in pair)
    if "Invalid job id" not in done.stderr:
        return None
    state, code = "COMPLETED", "0:0"
    if shutil.which("sacct"):
        command = ["sacct", "-n", "-X", "-P", "-j", job_id, "-o", "State,ExitCode"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and "|" in done.stdout:
            state, _, code = done.stdout.splitlines()[-1].partition("|")
    return {"JobState": state.split()[0], "ExitCode": code}


def _code_of_job(run_dir: Path, job_id: str, job: dict[str, str]) -> int:
    """The run's own, else what the job's end means; a run that has not said a code is never taken for finished."""
    said, state = _said(run_dir, ENDED), job["JobState"]
    if said.get("job") == job_id and not said["is_requeued"] and said["restarts"] >= int(job.get("Restarts", 0)):
        return said["code"] or _ENDS[state]
    status = job.get("ExitCode", "0:0").partition(":")[0]
    return (int(status) if state == "FAILED" and status.isdigit() else _ENDS[state]) or ExitCode.FAILED


def _words(job_id: str, job: dict[str, str]) -> str:
    """The job's state in a line."""
    restarts = int(job.get("Restarts", 0))
    words = f"vrft: job {job_id} {job['JobState']}"
    if job["JobState"] == "PENDING" and job.get("Reason", "None") != "None":
        words += f" ({job['Reason']})"
    if job["JobState"] == "RUNNING":
        words += f" on {job.get('NodeList')}"
    return words + (f", requeued {restarts} times" if restarts > 1 else ", requeued once" if restarts else "")


def _progress(run_dir: Path) -> str:
    word = next(iter(health.read_statuses(run_dir)), {})
    return f": {word['doing']} {word.get('step') or ''}".rstrip() if "doing" in word else ""


def _said(run_dir: Path, name: str) -> dict[str, Any]:
    try:
        said = json.loads((run_dir / FOLDER / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _show_logs(run_dir: Path, job_id: str) -> None:
    """The last lines of each node's log."""
    logs = sorted((run_dir / FOLDER).glob(f"{job_id}_*_log.out"))
    for log in logs[:_N_LOGS]:
        lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
        shown = "".join(f"  | {line}\n" for line in lines[-_TAIL:])
        print(f"vrft: the end of {log}:\n{shown}", file=sys.stderr, end="")
    if not logs:
        print(f"vrft: it has left no log in {run_dir / FOLDER}; does every node see that folder?", file=sys.stderr)


class _Line:
    """A line on the terminal that changes; elsewhere one line for each state."""

    def __init__(self) -> None:
        self.words, self.is_live = "", sys.stderr.isatty()

    def show(self, words: str, progress: str) -> None:
        if self.is_live:
            print(f"\r\033[K{words}{progress}", file=sys.stderr, end="", flush=True)
        elif words != self.words:
            print(words, file=sys.stderr)
        self.words = words

    def end(self) -> None:
        if self.is_live:
            print(file=sys.stderr)
