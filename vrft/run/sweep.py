"""Sweeps: every child in a process of its own, recorded whatever ends it, and skipped once it is complete.

A sweep's folder holds, for each child, its run directory NAME/ and beside it in `children/` what became of it:
`NAME.json` (state, exit code, cause, the config's hash) and `NAME.log` (all that it printed). Several terminals may
work on one sweep: each skips the children that another runs.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vrft.errors import SIGNALLED, ExitCode, UserError
from vrft.files import open_to_append, write_text_atomically
from vrft.report.sweep import CHILDREN, read_record
from vrft.run import health
from vrft.run.directory import OccupiedError, claimed
from vrft.run.resume import config_hash
from vrft.run.sweep_choice import PENALTY, objective, reason_to_skip, trial
from vrft.terminal import careful_terminal

N_LAST_LINES = 15
_BAR = re.compile(r"^.*[\d?](?:(?:it|row|step)/s|s/(?:it|row|step))[^\]]*\]?")  # of progress, at a line's beginning
_NO_RESULT = re.compile(
    r"[+~]*(run\.(dir|name|resume)|sweep|question|logging|launch|dataset\.n_processes)\b"
)  # of overrides
_UNDER_WAY = ("submitted", "waiting", "running", "busy")  # another process or job does it: no failure


def run_child(
    values: dict[str, Any], *, sweep_dir: Path, choices: dict[str, Any], overrides: Sequence[str], names: list[str]
) -> float:
    """Run one child of a sweep to its end, unless that is done or another process does it; the child's objective.

    values: the composed config, not yet checked: the child checks it, as that may import the user's own code. names:
    the children of this call; this one's name is appended. The objective is the best validation figure of the first
    primary metric; that of a failed child is `PENALTY`. Raises `SystemExit` after a signal, once the child has saved.
    """
    name = child_name(values, overrides)
    names.append(name)
    run_dir, record = sweep_dir / name, sweep_dir / CHILDREN / f"{name}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    values = {**values, "run": {**values["run"], "dir": str(run_dir)}}
    mine = trial(values)
    with claimed(record.with_suffix(".lock")) as is_mine:
        if not is_mine:
            print(f"{name}: another process runs it")
            return PENALTY
        if _is_completed(values, run_dir, record):
            record.touch()  # it belongs to this call too
            print(f"{name}: completed before")
            return objective(run_dir)
        if skipped := reason_to_skip(mine, sweep_dir):
            _write_record(record, skipped)
            print(f"{name}: {skipped['state'].replace('_', ' ')} ({skipped['cause']})", flush=True)
            return PENALTY
        job = {"values": values, "choices": choices, "overrides": list(overrides)}
        found, received = _run_and_record(job, run_dir, record, mine=mine)
    with contextlib.suppress(OSError):  # the terminal may be gone, and the signal must still be passed on
        print(f"{name}: {found['state']}" + (f" ({found['cause']})" if found["cause"] else ""), flush=True)
    if received:
        raise SystemExit(SIGNALLED + received[0])
    return objective(run_dir) if found["state"] == "completed" else PENALTY


def _is_completed(values: dict[str, Any], run_dir: Path, record: Path) -> bool:
    """True if the child has a result, by this config."""
    known = read_record(record)
    is_same = known.get("state") == "completed" and known.get("config_hash") == config_hash(values)
    return is_same and (run_dir / "result.json").is_file()


def _run_and_record(
    job: dict[str, Any], run_dir: Path, record: Path, *, mine: dict[str, Any] | None
) -> tuple[dict[str, Any], list[int]]:
    """Run the child in a process of its own; its record, and the signals that came meanwhile. mine: its `trial`."""
    values, log = job["values"], record.with_suffix(".log")
    is_resuming = run_dir.is_dir() and any(run_dir.iterdir())
    values["run"]["resume"] = values["run"]["resume"] or is_resuming
    print(f"{record.stem}: {'resumes' if is_resuming else 'starts'}; its output: {log}", flush=True)
    started = time.monotonic()
    known = {"config_hash": config_hash(values), "trial": mine, "overrides": job["overrides"], "last_lines": []}
    running = {"state": "running", "code": None, "cause": "it has not ended, or was killed together with its sweep"}
    _write_record(record, running | known)
    code, received = _run_in_own_process(job, log)
    found = known | outcome(code, log, run_dir, is_stopped=bool(received))
    found["seconds"] = round(time.monotonic() - started, 1)
    _write_record(record, found)
    return found, received


def _write_record(path: Path, record: dict[str, Any]) -> None:
    write_text_atomically(path, json.dumps(record, indent=2) + "\n")


def child_name(values: dict[str, Any], overrides: Sequence[str]) -> str:
    """A file name: the child's overrides, their keys without groups, and the first digits of its config's hash."""
    ours = [one for one in overrides if not _NO_RESULT.match(one)]
    short = [re.sub(r"^\+*(?:[\w/@]+\.)*", "", one) for one in ours]
    kept = re.sub(r"[^\w.,=+-]+", "_", ",".join(short))[:200]
    return f"{kept}{',' if kept else ''}{config_hash(values)[:8]}"


def outcome(code: int, log: Path, run_dir: Path, *, is_stopped: bool) -> dict[str, Any]:
    """What a child's exit code means: `state`, `code`, `cause` in words, and the `last_lines` of its log."""
    lines = _last_lines(log)
    number = -code if code < 0 else code - SIGNALLED if code > SIGNALLED else 0
    if code == ExitCode.BUSY:
        state, cause = "busy", "another process, or its job, works on it"
    elif code == 0 and not (run_dir / "result.json").is_file():
        told = [line for line in lines if re.search(r"\bjob \d+ is ", line)]
        state, cause = "submitted", told[-1].removeprefix("vrft: ") if told else "its job has not ended"
    elif code == 0:
        state, cause = "completed", ""
    elif is_stopped:
        state, cause = "interrupted", "the sweep was stopped; it resumes from its last checkpoint"
    elif code == ExitCode.OUT_OF_MEMORY:
        state, cause = "oom", "out of memory"
    elif code == ExitCode.HUNG:
        state, cause = "hung", "no word for launch.watchdog_s seconds"
    elif number:
        with contextlib.suppress(ValueError):
            number = signal.Signals(number).name
        state = "killed"
        cause = f"killed by {number}" + (", as the system does when memory runs out" if number == "SIGKILL" else "")
    else:
        state = "failed"
        cause = "ended by an alarm" if code == ExitCode.STOPPED_BY_ALARM else _named_cause(lines) or f"exit code {code}"
    return {"state": state, "code": code, "cause": cause, "last_lines": [] if code == 0 else lines}


def finish(sweep_dir: Path, *, names: Sequence[str], since: float) -> int:
    """Write the sweep's report and say how the children of this call ended; the exit code: 1 if any has failed.

    names: the children that this process has run; none where a launcher runs them elsewhere: then those with a record
    written since the call began. since: that time, in seconds since the epoch.
    """
    from vrft.report.sweep_pages import write_sweep_report

    paths = {path.stem: path for path in (sweep_dir / CHILDREN).glob("*.json")}
    names = names or [name for name, path in paths.items() if path.stat().st_mtime >= since]
    elsewhere = {"state": "running", "cause": "another process runs it"}
    records = {name: read_record(sweep_dir / CHILDREN / f"{name}.json") or elsewhere for name in sorted(names)}
    if any(record["state"] == "completed" for record in records.values()):
        print(f"report: {write_sweep_report([sweep_dir])}")
    n_left_out = sum(record["state"] == "not_chosen" for record in records.values())
    missed = {name: record for name, record in records.items() if record["state"] not in ("completed", "not_chosen")}
    print(
        f"{len(records) - len(missed) - n_left_out} of {len(records) - n_left_out} children completed"
        + (f", {n_left_out} were not chosen" if n_left_out else "")
    )
    for name, record in missed.items():
        print(f"  {record['state']:11} {name}: {record['cause']}")
    if missed:
        print(f"the same command with run.dir={sweep_dir} looks after these alone", file=sys.stderr)
    return ExitCode.FAILED if any(record["state"] not in _UNDER_WAY for record in missed.values()) else ExitCode.DONE


def _run_in_own_process(job: dict[str, Any], log: Path) -> tuple[int, list[int]]:
    """The exit code of the child, and the signals that came meanwhile, which are passed on to it."""
    received: list[int] = []
    with open_to_append(log) as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "vrft.run.sweep"],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=health.end_with_parent,
        )

        def pass_on(number: int, _frame: Any) -> None:
            received.append(number)
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

        with health.handling(pass_on):
            with contextlib.suppress(BrokenPipeError):
                child.communicate(json.dumps(job).encode())
            return child.wait(), received


def _last_lines(log: Path) -> list[str]:
    lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace")[-20_000:])
    told = [_BAR.sub("", line).rstrip() for line in lines]
    return [line for line in told if line][-N_LAST_LINES:]


def _named_cause(lines: Sequence[str]) -> str:
    """The last line by vrft itself, else by Python, that says why it ended; of a list of faults with the first."""
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index]
        if re.match(r"vrft( \w+)?: ", line) and "run.resume=true" not in line:
            faults = [fault.strip() for fault in lines[index + 1 :] if fault.startswith("  - ")]
            return " ".join([line.partition(": ")[2], *faults[:1]])
    return next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)), "")


@careful_terminal
def main() -> int:
    """The child: reads its job from standard input, checks the config and runs it; returns the run's exit code."""
    from vrft.config.freeze import freeze_values
    from vrft.run.experiment import run_experiment
    from vrft.run.processes import find_device
    from vrft.run.slurm import device_of_job

    job = json.load(sys.stdin)
    try:
        device = device_of_job(job["values"]["launch"]) or find_device()
        frozen = freeze_values(job["values"], device=device, overrides=job["overrides"])
        return run_experiment(frozen, choices=job["choices"], overrides=job["overrides"])
    except OccupiedError as error:
        print(f"vrft: {error}", file=sys.stderr)
        return ExitCode.BUSY
    except (UserError, OSError) as error:
        print(f"vrft: {error}", file=sys.stderr)
        return ExitCode.USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
