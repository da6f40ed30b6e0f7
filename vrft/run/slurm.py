"""`launch=slurm`, on the login node: the run is submitted as a job by submitit, and followed to its end."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vrft.config.launch_schema import SlurmLaunch
from vrft.config.schema import Config
from vrft.config.section import with_values
from vrft.errors import ExitCode, UserError
from vrft.files import write_text_atomically
from vrft.run import health
from vrft.run.directory import OccupiedError, alone_in
from vrft.run.resume import write_config
from vrft.run.slurm_job import ENDED, FOLDER, JOB

# A job's final states, and the exit codes if the job has left none.
_ENDS = {
    "COMPLETED": ExitCode.DONE,
    "CANCELLED": ExitCode.TERMINATED,
    **dict.fromkeys(("TIMEOUT", "PREEMPTED"), ExitCode.WARNED),
    "OUT_OF_MEMORY": ExitCode.KILLED,
    **dict.fromkeys(("FAILED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED"), ExitCode.FAILED),
}
_TOOLS = ("sbatch", "srun", "scontrol")
_TAIL, _N_LOGS = 12, 4  # lines of a log that are shown, and of how many nodes
_LATE_S = 60  # a network's file system may show so much later what a job wrote last
_POLLS_S = (0.5, 10.0)  # between two queries: at first, and at most


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
    job_id = _read(run_dir, JOB).get("job")
    if not isinstance(job_id, str) or not job_id.isdigit() or shutil.which("scontrol") is None:
        return
    job = _query(job_id)
    if job is None:
        raise OccupiedError(f"SLURM does not answer about job {job_id} of run.dir={run_dir}; try again")
    state = job.get("JobState", "COMPLETED")
    if state not in _ENDS:
        raise OccupiedError(
            f"job {job_id} already uses run.dir={run_dir} (SLURM says {state}); wait for its end "
            f"(squeue -j {job_id}), or end it (scancel {job_id})"
        )


def device_of_job(launch: Mapping[str, Any]) -> str | None:
    """The device of a run that is a job: `cuda` if the job asks for GPUs, else `cpu`; None if the run is no job.

    launch: the section of the config, composed and not yet checked. A login node has no GPU to look at.
    """
    if launch.get("name") != "slurm":
        return None
    extra = launch.get("extra")
    options = extra.items() if isinstance(extra, Mapping) else ()  # another type is refused later
    asks = launch.get("gpus_per_node") or any(_asks_for_gpus(*option) for option in options)
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


def run_as_job(run_dir: Path, config: Config) -> int | None:
    """Submit the run and follow its job to the end; the run's exit code, or None with `launch.wait=false`.

    Raises `UserError` if the cluster refuses the job. Ctrl-C ends the waiting alone: the job goes on.
    """
    job_id = submit(run_dir, config)
    log = run_dir / FOLDER / f"{job_id}_0_log.out"
    print(f"vrft: job {job_id} is submitted; its log: {log}", file=sys.stderr)
    if not config.launch.wait:
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


def submit(run_dir: Path, config: Config) -> str:
    """Submit the frozen run directory as a job, and return the job's number.

    The frozen config gets `run.resume=true`, though there is nothing to resume yet. So a requeued job need not rewrite
    it: on a network's file system other nodes could read the old one.
    """
    folder = run_dir.resolve() / FOLDER
    folder.mkdir(exist_ok=True)
    with alone_in(folder):  # somebody may have submitted it since the check
        check_no_job(run_dir)
        return _submit(run_dir, folder, config)


def _submit(run_dir: Path, folder: Path, config: Config) -> str:
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from vrft.run.slurm_job import run_on_node

    write_config(run_dir, with_values(config, {"run.resume": True}))
    for pickled in folder.glob("*.pkl"):  # a run directory from elsewhere may hold some, and the job loads its pickle
        pickled.unlink()
    (folder / ENDED).unlink(missing_ok=True)
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(**job_parameters(config.launch, config.run.name))
    try:
        job = executor.submit(run_on_node, str(run_dir.resolve()))
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        message = " ".join(str(error).split())
        raise UserError(
            f"sbatch refused the job: {message}; look at launch.partition, account, time, nnodes, gpus_per_node, "
            "cpus_per_task, mem and extra"
        ) from None
    write_text_atomically(folder / JOB, json.dumps({"job": job.job_id}) + "\n")
    return job.job_id


def job_parameters(launch: SlurmLaunch, run_name: str) -> dict[str, Any]:
    """The arguments of `submitit.SlurmExecutor.update_parameters`."""
    per_node = {"cpus_per_task": launch.cpus_per_task, "gpus_per_node": launch.gpus_per_node}
    extra = {str(key).replace("_", "-"): value for key, value in launch.extra.items() if value is not False}
    srun = ["--kill-on-bad-exit=1", "--wait=0"]  # a node that fails ends the others; one that finishes first does not
    if launch.cpus_per_task:
        srun.append(f"--cpus-per-task={launch.cpus_per_task}")  # srun no longer takes it from sbatch
    return {
        "job_name": "vrft-" + re.sub(r"[^\w.-]+", "_", run_name),
        "partition": launch.partition,
        "account": launch.account,
        "time": launch.time,
        "nodes": launch.nnodes,
        "ntasks_per_node": 1,
        **per_node,
        "signal_delay_s": launch.signal_delay_s,
        "setup": launch.setup or None,
        "stderr_to_stdout": True,
        "wckey": extra.pop("wckey", None),
        "srun_args": srun,
        "additional_parameters": {
            "requeue": True,
            "export": "ALL",
            **({"mem": launch.mem} if launch.mem else {}),
            **extra,
        },
    }


def follow(run_dir: Path, job_id: str) -> int:
    """Wait for the job's end, printing its states; the run's exit code. Of a failed job, print errors and logs."""
    job = _wait_for_end(run_dir, job_id)
    code = _code_of_job(run_dir, job_id, job)
    if code:
        print(f"vrft: job {job_id} ended as {job['JobState']}, exit code {code}", file=sys.stderr)
        statuses = health.read_statuses(run_dir)
        errors = {status["error"]: status["rank"] for status in reversed(statuses) if "error" in status}
        for error, rank in reversed(errors.items()):
            print(f"vrft: rank {rank}: {error}", file=sys.stderr)
        if code != ExitCode.USER_ERROR or not errors:
            _show_logs(run_dir, job_id)
    return code


def _wait_for_end(run_dir: Path, job_id: str) -> dict[str, str]:
    """What SLURM knows of the job once it has ended, and what the job wrote last can be read here."""
    line, wait_s, last = _Line(), _POLLS_S[0], ""
    while True:
        job = _query(job_id)
        if job is not None:
            state = job["JobState"]
            line.show(_state_line(job_id, job), _progress(run_dir) if state == "RUNNING" else "")
            # Any other final state must be seen twice: a job on its way back into the queue passes through one.
            if state == "COMPLETED" or (state in _ENDS and state == last):
                break
            last = state
        time.sleep(wait_s)
        wait_s = _POLLS_S[0] if last in _ENDS else min(wait_s * 1.3, _POLLS_S[1])
    line.end()
    for _ in range(_LATE_S):
        if job["JobState"] != "COMPLETED" or _read(run_dir, ENDED).get("job") == job_id:
            break
        time.sleep(1)
    return job


def _query(job_id: str) -> dict[str, str] | None:
    """What SLURM knows of a job, at least its `JobState`; None if its controller does not answer now.

    The controller forgets a job some minutes after its end. Then the accounting is queried, where there is one; else
    the state is `COMPLETED`, so that what the job itself has written counts. submitit's `Job.state` needs accounting.
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
    """The run's own exit code if the job has left one, else what its final state means; 0 only if the run says so."""
    ended, state = _read(run_dir, ENDED), job["JobState"]
    if ended.get("job") == job_id and not ended["is_requeued"] and ended["restarts"] >= int(job.get("Restarts", 0)):
        return ended["code"] or _ENDS[state]
    status = job.get("ExitCode", "0:0").partition(":")[0]
    return (int(status) if state == "FAILED" and status.isdigit() else _ENDS[state]) or ExitCode.FAILED


def _state_line(job_id: str, job: dict[str, str]) -> str:
    """The job's state in a line."""
    restarts = int(job.get("Restarts", 0))
    text = f"vrft: job {job_id} {job['JobState']}"
    if job["JobState"] == "PENDING" and job.get("Reason", "None") != "None":
        text += f" ({job['Reason']})"
    if job["JobState"] == "RUNNING":
        text += f" on {job.get('NodeList')}"
    return text + (f", requeued {restarts} times" if restarts > 1 else ", requeued once" if restarts else "")


def _progress(run_dir: Path) -> str:
    """What rank 0 is doing, to follow the state; empty before it has written a status."""
    status = next(iter(health.read_statuses(run_dir)), {})
    return f": {status['doing']} {status.get('step') or ''}".rstrip() if "doing" in status else ""


def _read(run_dir: Path, name: str) -> dict[str, Any]:
    """What a file of the folder `slurm` holds; nothing if it cannot be read."""
    try:
        found = json.loads((run_dir / FOLDER / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _show_logs(run_dir: Path, job_id: str) -> None:
    """Print the last lines of each node's log."""
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
