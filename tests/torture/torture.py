"""Training interrupted in every way, and resumed: are the bits the same as if nothing had happened?

    python tests/torture/torture.py --out FOLDER [--parts kills damages …] [--settings default lora …] [--n 20]

    kills          SIGKILL at random instants, at least 8 of 20 of them while a checkpoint is being written
    terminations   SIGTERM to one process at 10 random instants: the code is 143, and what was done is saved
    damages        the newest checkpoint is damaged in one of eleven ways, beside an older good one
    full_disks     the disk is full during a save, five sizes; later there is room (needs root, for a small file system)

After each the run is resumed and compared with one left alone: every byte of the weights, of the optimizer's state and
of the random states, every line of the log (times aside), every completion sampled. What is done stands in FOLDER and
is not done again, so this command itself can be interrupted. (make torture OUT=FOLDER)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
from harness import N_STEPS, SETTINGS, differences, duration, finish, prepare, reference, set_resume, start, wait_for
from tqdm import tqdm

from vrft.files import DamagedFolderError, check_whole
from vrft.run.health import read_statuses

N_INSIDE = 8  # of 20 kills
MEBIBYTE = 2**20


def kill(alone: Path, run_dir: Path, number: int, *, is_inside: bool) -> dict:
    """SIGKILL to all processes at an instant drawn by chance. is_inside: while a checkpoint is being written."""
    chance = random.Random(f"{run_dir.parent.name} {number}")
    partial = run_dir / "checkpoints" / "checkpoint.partial"
    processes = start(run_dir)
    if is_inside:
        for _ in range(chance.randrange(1, N_STEPS // 2 + 1)):
            wait_for(lambda: not partial.exists(), processes)
            wait_for(partial.exists, processes)
        time.sleep(chance.uniform(0, 0.08))
    else:
        wait_for(lambda: read_statuses(run_dir), processes)
        time.sleep(chance.uniform(0, duration(alone)))
    send(processes, signal.SIGKILL)
    codes = finish(processes)
    return {"codes": codes, "in_step": _step(run_dir), "was_inside_a_save": partial.exists()}


def terminate(alone: Path, run_dir: Path, number: int) -> dict:
    """SIGTERM to the last process alone; all have to save and stop."""
    chance = random.Random(f"{run_dir.parent.name} {number}")
    processes = start(run_dir)
    is_early = number < 2  # before training too, where nothing is to be saved
    wait_for(lambda: read_statuses(run_dir) and (is_early or _step(run_dir) is not None), processes)
    time.sleep(chance.uniform(0, duration(alone) * (1.0 if is_early else 0.6)))
    was_over = (run_dir / "result.json").exists()
    send(processes[-1:], signal.SIGTERM)
    if not (in_training := _step(run_dir) is not None):
        send(processes[:-1], signal.SIGTERM)  # nothing to save yet: each process ends by itself
    codes = finish(processes)
    saved = max((int(path.name.partition("-")[2]) for path in run_dir.glob("checkpoints/checkpoint-*")), default=None)
    fault = None if was_over or set(codes) == {143} else f"codes {codes}"
    if in_training and not was_over and saved != _step(run_dir):
        fault = f"stopped in step {_step(run_dir)}, saved at {saved}"
    return {"codes": codes, "in_step": _step(run_dir), "saved_at": saved, "fault": fault}


def send(processes: Sequence[ForkProcess], number: int) -> None:
    """A signal to those that are alive."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, number)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "weights cut": (lambda f: _cut(f / "model.safetensors"), "model.safetensors has"),
    "one bit of the optimizer": (lambda f: _flip(f / "optimizer.pt"), "optimizer.pt has other bytes"),
    "no optimizer": (lambda f: (f / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "no scheduler": (lambda f: (f / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    "no random states": (lambda f: (f / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "no trainer state": (lambda f: (f / "trainer_state.json").unlink(), "trainer_state.json is missing"),
    "trainer state cut": (lambda f: _cut(f / "trainer_state.json"), "trainer_state.json has"),
    "no state of ours": (lambda f: shutil.rmtree(f / "vrft"), "rank_0.json is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "it was never completed"),
    "empty": (lambda f: (shutil.rmtree(f), f.mkdir()), "it was never completed"),
}


def damage(alone: Path, run_dir: Path, number: int) -> dict:
    """A finished run whose newest checkpoint is damaged."""
    name = list(DAMAGES)[number]
    change, message = DAMAGES[name]
    shutil.copytree(alone / "checkpoints", run_dir / "checkpoints")
    for file in ("metrics.jsonl", "rollouts"):
        (shutil.copytree if (alone / file).is_dir() else shutil.copy)(alone / file, run_dir / file)
    change(run_dir / "checkpoints" / f"checkpoint-{N_STEPS}")
    return {"damage": name, "must_say": f"checkpoint-{N_STEPS}", "and": message}


def fill_disk(alone: Path, run_dir: Path, number: int) -> dict:
    """A file system with room for a checkpoint or two and a part of the next, enlarged when it has been full."""
    whole = sum(path.stat().st_size for path in (alone / "checkpoints").rglob("*") if path.is_file()) / 4
    size = int(whole * (2.2 + 0.35 * number)) + 2 * MEBIBYTE
    kept = run_dir.with_name(run_dir.name + "_kept")
    shutil.rmtree(kept, ignore_errors=True)
    run_dir.rename(kept)
    run_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(run_dir)], check=True)
    shutil.copytree(kept, run_dir, dirs_exist_ok=True)
    shutil.rmtree(kept)
    codes = finish(start(run_dir))
    found, faults = sorted(run_dir.glob("checkpoints/checkpoint-*")), []
    for path in found:
        try:
            check_whole(path)
        except DamagedFolderError as error:
            faults.append(str(error))
    log = (run_dir / "worker_0.log").read_text(encoding="utf-8")
    if codes != [2] or "is full" not in log:
        faults.append(f"codes {codes}, not told that the disk is full: {log[-2000:]}")
    subprocess.run(["mount", "-o", f"remount,size={64 * size}", str(run_dir)], check=True)
    return {"bytes": size, "codes": codes, "whole": [path.name for path in found], "fault": "; ".join(faults) or None}


def go_on(alone: Path, run_dir: Path, record: dict) -> dict:
    """Resume, compare, and add what differs."""
    set_resume(alone, run_dir, resume=True)
    codes = finish(start(run_dir))
    found = differences(alone, run_dir) if not any(codes) else [f"the resumed run ended with {codes}"]
    log = (run_dir / "worker_0.log").read_text(encoding="utf-8")
    said = [line for line in log.splitlines() if record.get("must_say", "\0") in line and "passed over" in line]
    if "must_say" in record and not (said and record["and"] in said[0]):
        found.append(f"the damage is not named: {said}")
    return {**record, "differences": found + ([record["fault"]] if record.get("fault") else [])}


PARTS = {
    "kills": (kill, 20, tuple(SETTINGS)),
    "terminations": (terminate, 10, ("default", "two_processes")),
    "damages": (damage, len(DAMAGES), ("default",)),
    "full_disks": (fill_disk, 5, ("default",)),
}


def torture(part: str, setting: str, folder: Path, n: int) -> list[dict]:
    """All cases of one part and setting; those known are not done again."""
    act = PARTS[part][0]
    alone, home = reference(setting, folder), folder / setting / part
    home.mkdir(parents=True, exist_ok=True)
    path = home / "records.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    with tqdm(total=n, initial=len(records), desc=f"{part}, {setting}", unit="case") as bar:
        while (number := len(records)) < n:
            run_dir = home / f"{number:02d}"
            if run_dir.is_mount():
                subprocess.run(["umount", str(run_dir)], check=True)
            prepare(alone, run_dir)
            options = {"is_inside": _shall_be_inside(records, n)} if part == "kills" else {}
            records.append(go_on(alone, run_dir, act(alone, run_dir, number, **options)))
            if run_dir.is_mount():
                subprocess.run(["umount", str(run_dir)], check=True)
            if not records[-1]["differences"]:
                shutil.rmtree(run_dir)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(records[-1]) + "\n")
            bar.update()
    return records


def _shall_be_inside(records: list[dict], n: int) -> bool:
    n_wanted = round(N_INSIDE / 20 * n + 0.49)
    n_missing = n_wanted - sum(record["was_inside_a_save"] for record in records)
    return n_missing > 0 and (len(records) % 2 == 0 or n - len(records) <= n_missing)


def _step(run_dir: Path) -> int | None:
    """The last step of which the first process spoke; None before training."""
    words = read_statuses(run_dir)
    return words[0].get("step") if words else None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def table(results: dict[tuple[str, str], list[dict]]) -> str:
    """What was done, as a Markdown table."""
    lines = ["| part | setting | cases | of them inside a save | bit-identical |", "|---|---|---:|---:|---:|"]
    for (part, setting), records in results.items():
        n_inside = sum(record["was_inside_a_save"] for record in records) if part == "kills" else ""
        n_same = sum(not record["differences"] for record in records)
        overrides = f" `{' '.join(SETTINGS[setting])}`" if SETTINGS[setting] else ""
        lines.append(f"| {part} | {setting}{overrides} | {len(records)} | {n_inside} | {n_same} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--n", type=int, help="cases of each part, in place of its own number")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        (part, setting): torture(part, setting, chosen.out.resolve(), min(chosen.n or PARTS[part][1], PARTS[part][1]))
        for part in chosen.parts
        for setting in PARTS[part][2]
        if setting in chosen.settings
    }
    print(table(results))
    raise SystemExit(any(record["differences"] for records in results.values() for record in records))


if __name__ == "__main__":
    main()
