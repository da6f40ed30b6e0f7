"""Sweeps: every child in a process of its own, recorded whatever ends it, and skipped once it is complete.

A sweep's folder holds, for each child, its run directory NAME/ and beside it in `children/` what became of it:
`NAME.json` (state, exit code, cause, the config's hash) and `NAME.log` (all that it printed). Several terminals may
work on one sweep: a child that another one runs is passed over.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrft.errors import SIGNALLED, ExitCode, UserError
from vrft.files import write_text_atomically
from vrft.report.sweep import CHILDREN, rank, read_record
from vrft.run import health
from vrft.run.resume import config_hash

PENALTY = -1.0  # what a search (Optuna) is told of a child that failed: below every metric, and finite
N_LAST_LINES = 15
_BAR = re.compile(r"^.*[\d?](?:(?:it|row|step)/s|s/(?:it|row|step))[^\]]*\]?")  # of progress, at a line's beginning
_NO_RESULT = re.compile(r"[+~]*(run\.(dir|name|resume)|sweep|question|logging|launch|dataset\.n_processes)\b")  # words
_ENDED = ("completed", "failed", "killed", "hung", "oom")
_UNDER_WAY = ("submitted", "waiting", "running", "busy")  # by somebody else; nothing went wrong


def run_child(
    values: dict[str, Any], *, sweep_dir: Path, choices: dict[str, Any], overrides: Sequence[str], names: list[str]
) -> float:
    """Run one child of a sweep to its end, unless that is done or another process does it; the child's objective.

    values: the composed config, not yet checked: the child checks it, as that may import the user's own code. names:
    the children of this call; this one's name is appended. The objective is the best validation figure of the first
    primary metric; that of a failed child is `PENALTY`. Raises `SystemExit` after a signal, once the child has saved.
    """
    name = child_name(values, overrides)
    run_dir, record, log = sweep_dir / name, sweep_dir / CHILDREN / f"{name}.json", sweep_dir / CHILDREN / f"{name}.log"
    record.parent.mkdir(parents=True, exist_ok=True)
    values = {**values, "run": {**values["run"], "dir": str(run_dir)}}
    mine = trial(values)
    names.append(name)
    with _claimed(record.with_suffix(".lock")) as is_mine:
        if not is_mine:
            print(f"{name}: another process runs it")
            return PENALTY
        known, has_result = read_record(record), (run_dir / "result.json").is_file()
        if has_result and known.get("state") == "completed" and known.get("config_hash") == config_hash(values):
            record.touch()  # looked after in this call too
            print(f"{name}: completed before")
            return objective(run_dir)
        if left_out := _left_out(mine, sweep_dir):
            write_text_atomically(record, json.dumps(left_out, indent=2) + "\n")
            print(f"{name}: {left_out['state'].replace('_', ' ')} ({left_out['cause']})", flush=True)
            return PENALTY
        is_begun = run_dir.is_dir() and any(run_dir.iterdir())
        values["run"]["resume"] = values["run"]["resume"] or is_begun
        print(f"{name}: {'goes on' if is_begun else 'begins'}; its words: {log}", flush=True)
        started = time.monotonic()
        known = {"config_hash": config_hash(values), "trial": mine, "overrides": list(overrides), "last_lines": []}
        running = {"state": "running", "code": None, "cause": "it has not ended, or was killed together with its sweep"}
        write_text_atomically(record, json.dumps(running | known, indent=2) + "\n")
        job = {"values": values, "choices": choices, "overrides": list(overrides)}
        code, received = _run_in_own_process(job, log)
        found = known | outcome(code, log, run_dir, is_stopped=bool(received))
        found["seconds"] = round(time.monotonic() - started, 1)
        write_text_atomically(record, json.dumps(found, indent=2) + "\n")
    with contextlib.suppress(OSError):  # the terminal may be gone, and the signal is still to be passed on
        print(f"{name}: {found['state']}" + (f" ({found['cause']})" if found["cause"] else ""), flush=True)
    if received:
        raise SystemExit(SIGNALLED + received[0])
    return objective(run_dir) if found["state"] == "completed" else PENALTY


def _left_out(mine: dict[str, Any] | None, sweep_dir: Path) -> dict[str, Any] | None:
    """What is recorded of a child that does not run, as the seed that chooses preferred other knobs or has yet to
    choose; None: it runs. Waits for children that choose and that another process runs."""
    if mine is None or mine["is_choosing"]:
        return None

    def choosing() -> dict[str, dict[str, Any]]:
        records = {path.stem: read_record(path) for path in sorted((sweep_dir / CHILDREN).glob("*.json"))}
        trials = {name: record.get("trial") or {} for name, record in records.items()}
        return {
            name: records[name]
            for name, other in trials.items()
            if other.get("is_choosing") and other["cell"] == mine["cell"]
        }

    for name, record in choosing().items():
        if record["state"] == "running":
            with _claimed(sweep_dir / CHILDREN / f"{name}.lock", is_patient=True):
                pass
    found = choosing()
    done = [name for name, record in found.items() if record["state"] == "completed"]
    left_out = {"code": 0, "last_lines": [], "trial": mine}
    if going_on := [name for name, record in found.items() if record["state"] not in _ENDED]:
        return {"state": "waiting", "cause": f"{going_on[0]} has not ended, by which is chosen", **left_out}
    if not done:
        return None
    tried = [(-objective(sweep_dir / name), found[name]["trial"]) for name in done]
    _, best = min(tried, key=lambda one: (one[0], [rank(value) for value in one[1]["knobs"].values()]))
    if best["knobs"] == mine["knobs"]:
        return None
    chosen = ", ".join(f"{key}={value}" for key, value in best["knobs"].items())
    return {"state": "not_chosen", "cause": f"seed {best['seed']} chose {chosen} by validation", **left_out}


def child_name(values: dict[str, Any], overrides: Sequence[str]) -> str:
    """The child's words without the folders of their keys, and the first digits of its config's hash: a file name."""
    said = [one for one in overrides if not _NO_RESULT.match(one)]
    words = [re.sub(r"^\+*(?:[\w/@]+\.)*", "", one) for one in said]
    kept = re.sub(r"[^\w.,=+-]+", "_", ",".join(words))[:200]
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
        state, cause = "interrupted", "the sweep was stopped; it goes on from its last checkpoint"
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


def objective(run_dir: Path) -> float:
    """The best validation figure of the first primary metric; without validation, that of `after` on the test set."""
    result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    history = [entry["value"] for entry in result["validation"] if entry["value"] is not None]
    if history:
        return max(history)
    metrics = next(iter((result["after"] or result["before"] or {"": {}}).values()))
    value = metrics.get(result["primary_metrics"][0], {}).get("value")
    return PENALTY if value is None else value


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


@contextlib.contextmanager
def _claimed(path: Path, *, is_patient: bool = False) -> Iterator[bool]:
    """Whether this process alone works on the child while the block runs. is_patient: True waits until it does."""
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if is_patient else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        yield True


def _run_in_own_process(job: dict[str, Any], log: Path) -> tuple[int, list[int]]:
    """The exit code of the child, and the signals that came meanwhile: they are passed on to it."""
    received: list[int] = []
    with log.open("a", encoding="utf-8") as file:
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
    """The last thing that vrft itself, or Python, has said of the end; for a list of faults, its first one."""
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index]
        if re.match(r"vrft( \w+)?: ", line) and "run.resume=true" not in line:
            faults = [fault.strip() for fault in lines[index + 1 :] if fault.startswith("  - ")]
            return " ".join([line.partition(": ")[2], *faults[:1]])
    return next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)), "")


def main() -> int:
    """The child: reads its job from standard input, checks the config and runs it; returns the run's exit code."""
    from vrft.config.freeze import freeze_values
    from vrft.run.directory import OccupiedError
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


def trial(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Which `cell` (a hash) a child's composed config belongs to, with which `knobs` and `seed`, and `is_choosing`:
    True if that is the seed to choose on. None in a sweep without one.

    Raises `UserError` where a knob is no key of the config.

    >>> def child(lr, seed):
    ...     question = {"choose": ["trainer.learning_rate"], "choose_seed": 0}
    ...     rest = {"model": {"path": None}, "question": question}
    ...     return trial({"trainer": {"learning_rate": lr, "max_steps": 9}, "run": {"seed": seed}, **rest})
    >>> child(1e-4, 0)["cell"] == child(3e-4, 1)["cell"], child(3e-4, 1)["knobs"], child(3e-4, 1)["seed"]
    (True, {'trainer.learning_rate': 0.0003}, 1)
    >>> child(1e-4, 0)["is_choosing"], child(1e-4, 1)["is_choosing"]
    (True, False)
    """
    question = values.get("question") or {}
    if question.get("choose_seed") is None:
        return None
    alike = copy.deepcopy(dict(values))
    knobs = {key: _take(alike, key) for key in question.get("choose") or []}
    seed = _take(alike, "run.seed")
    return {"cell": config_hash(alike), "knobs": knobs, "seed": seed, "is_choosing": seed == question["choose_seed"]}


def _take(config: dict[str, Any], key: str) -> Any:
    *folders, name = key.split(".")
    section: Any = config
    for folder in folders:
        section = section.get(folder) if isinstance(section, dict) else None
    if not isinstance(section, dict) or name not in section or isinstance(section[name], dict):
        raise UserError(f"question.choose has {key!r}, which is no value of the config; choose_seed needs such keys")
    return section.pop(name)


if __name__ == "__main__":
    sys.exit(main())
