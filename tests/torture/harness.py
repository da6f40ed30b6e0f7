"""Runs that are started in a breath, ended at will, resumed, and compared bit by bit with one left alone.

Workers are forked from one process that has imported everything: a start then takes a tenth of a second.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

import vrft.run.worker
from vrft.train.deepspeed_state import readable_state

N_STEPS = 10
BASE = (
    "experiment=digits_riddles debug=smoke evaluate.before=false evaluate.after=false evaluate.checkpoint=last "
    f"trainer.max_steps={N_STEPS} trainer.save_steps=2 trainer.eval_steps=4 memory.max_completion_length=12 "
    "dataset.k_shot=1 launch.device=cpu launch.threads=1"  # ten rows: two epochs
).split()
SETTINGS = {
    "default": [],
    "generation": ["+trainer.args.steps_per_generation=4"],
    "iterations": ["+trainer.args.num_iterations=2", "memory.completions_per_device=4"],  # accumulation 2
    "moving_reference": [
        "+trainer.args.sync_ref_model=true", "+trainer.args.ref_model_sync_steps=3", "trainer.args.beta=0.04"
    ],
    "lora": ["model/peft=lora", "trainer.args.beta=0.04"],
    "two_processes": ["launch=torchrun", "launch.nproc_per_node=2"],
}  # fmt: skip
_TIMES = ("step_time", "_runtime", "_per_second", "time/")


def reference(name: str, folder: Path) -> Path:
    """The run that nobody kills, by the command line; made once."""
    run_dir = folder / name / "left_alone"
    if not (run_dir / "result.json").is_file():
        shutil.rmtree(run_dir, ignore_errors=True)
        command = [sys.executable, "-m", "vrft", "train", *BASE, *SETTINGS[name], f"run.dir={run_dir}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return run_dir


def prepare(alone: Path, run_dir: Path) -> None:
    """A run directory as the parent process leaves it for the worker."""
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.copytree(alone / "data", run_dir / "data")
    shutil.copy(alone / "provenance.json", run_dir)
    set_resume(alone, run_dir, resume=False)


def set_resume(alone: Path, run_dir: Path, *, resume: bool) -> None:
    config = yaml.safe_load((alone / "config.yaml").read_text(encoding="utf-8"))
    config["run"] |= {"dir": str(run_dir), "resume": resume}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def start(run_dir: Path) -> list[ForkProcess]:
    """Fork the worker's processes."""
    shutil.rmtree(run_dir / "health", ignore_errors=True)
    n_processes = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))["launch"]["nproc_per_node"]
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    processes = [ForkProcess(target=_work, args=(run_dir, rank, n_processes, port)) for rank in range(n_processes)]
    for process in processes:
        process.start()
    return processes


def _work(run_dir: Path, rank: int, n_processes: int, port: int) -> None:
    log = os.open(run_dir / f"worker_{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if n_processes > 1:
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_processes, "LOCAL_WORLD_SIZE": n_processes}
        where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {key: str(value) for key, value in where.items()}
    sys.argv = ["vrft.run.worker", str(run_dir)]
    sys.exit(vrft.run.worker.main())


def finish(processes: Sequence[ForkProcess]) -> list[int]:
    """Wait; the exit codes, below 0 for a signal."""
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def wait_for(is_so, processes: Sequence[ForkProcess]) -> bool:
    """Poll until `is_so()`; False if a process ended before."""
    while not is_so():
        if not all(process.is_alive() for process in processes):
            return False
        time.sleep(0.0005)
    return True


def differences(alone: Path, resumed: Path, *, last: str = f"checkpoint-{N_STEPS}") -> list[str]:
    """What in a resumed run is not as in the one left alone. last: the trainer's last checkpoint."""
    found = []
    for name in (f"checkpoints/{last}", "checkpoints/best", "checkpoints/last", "rollouts"):
        files = {one: {path.relative_to(one / name).as_posix() for path in (one / name).rglob("*") if path.is_file()}
                 for one in (alone, resumed)}  # fmt: skip
        if files[alone] != files[resumed]:
            found.append(f"{name}: {sorted(files[alone] ^ files[resumed])}")
        for file in sorted(files[alone] & files[resumed]):
            pair = [_comparable(one / name / file) for one in (alone, resumed)]
            if pair[0] != pair[1]:
                found.append(f"{name}/{file}")
    logs = [_log_without_times(one / "metrics.jsonl") for one in (alone, resumed)]
    if logs[0] != logs[1]:
        found.append("metrics.jsonl")
    left = [path.name for path in (resumed / "checkpoints").glob("*") if path.name.endswith((".partial", ".previous"))]
    return found + left


def _comparable(path: Path) -> object:
    if path.name == "manifest.json":
        return None  # sizes and hashes of the others
    if path.name == "trainer_state.json":
        return _without_times(json.loads(path.read_text(encoding="utf-8")))
    if path.name == "tokenizer_config.json":  # transformers also writes whether this process was offline
        return json.loads(path.read_text(encoding="utf-8")) | {"local_files_only": None}
    if path.suffix in (".pt", ".pth"):
        known = readable_state() if "optim_states" in path.name else contextlib.nullcontext()
        with safe_globals(), known:  # numpy's random state
            return _hashable(torch.load(path, weights_only=True))
    if path.suffix == ".safetensors":
        return {name: value.numpy().tobytes() for name, value in load_file(path).items()}
    return path.read_bytes()


def _hashable(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _hashable(one) for key, one in value.items()}
    if type(value).__module__.startswith("deepspeed.") and not isinstance(value, enum.Enum | tuple):
        return _hashable(vars(value))
    return [_hashable(one) for one in value] if isinstance(value, list | tuple) else repr(value)


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_times(one) for key, one in value.items() if not any(part in key for part in _TIMES)}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def _log_without_times(path: Path) -> object:
    return [_without_times(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def duration(alone: Path) -> float:
    """Seconds from a worker's first word to its end, measured once by running it once more."""
    path = alone / "duration.json"
    if not path.is_file():
        run_dir = alone.parent / "timed"
        prepare(alone, run_dir)
        processes, begun = start(run_dir), time.monotonic()
        if any(finish(processes)) or (found := differences(alone, run_dir)):
            raise SystemExit(f"a second run of {alone.parent.name} is not the first: {found}")
        path.write_text(json.dumps(time.monotonic() - begun), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))
