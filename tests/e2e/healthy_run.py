"""A training without a fault, and copies of it to spoil."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from torture.harness import prepare

import vrft.run.worker
from vrft.cli.hydra_app import SweepFiles
from vrft.config.freeze import freeze
from vrft.config.package_files import config_folder
from vrft.run.directory import provenance
from vrft.run.health import Status
from vrft.run.resume import config_hash
from vrft.run.rows import build_rows

N_STEPS, SAVED, FAULTY = 6, 3, 5  # ten rows, five a step: an epoch is two steps, and the validated ones end it
RUN = (
    "experiment=digits_riddles debug=smoke evaluate.before=false evaluate.after=false launch.device=cpu "
    f"launch.threads=1 trainer.max_steps={N_STEPS} trainer.save_steps={SAVED} trainer.eval_steps=2 "
    "trainer.prompts_per_step=5 dataset.n_test=4"
).split()


def train_in(run_dir: Path, trainer: str, *overrides: str) -> None:
    """What `vrft train trainer=…` does, in this process."""
    Plugins.instance().register(SweepFiles)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = freeze(compose("train", [*RUN, f"trainer={trainer}", f"run.dir={run_dir}", *overrides]))
    build_rows(config, run_dir / "data")
    write_config(run_dir, config.plain())
    digest = config_hash(config.plain())
    record = provenance(config.model, seed=config.run.seed, choices={}, overrides=[], config_hash=digest, data_hash="-")
    (run_dir / "provenance.json").write_text(json.dumps(record), encoding="utf-8")
    assert work(run_dir) == 0


def frozen(alone: Path, run_dir: Path, **sections: dict) -> Path:
    """The run directory as the parent leaves it to the worker. sections: settings over those of the healthy run."""
    prepare(alone, run_dir)
    config = read_config(run_dir)
    for section, settings in sections.items():
        config[section] |= settings
    write_config(run_dir, config)
    return run_dir


def torchrun(n_processes: int) -> dict:
    """The section `launch` of several processes on this machine."""
    usual = yaml.safe_load((config_folder() / "launch" / "torchrun.yaml").read_text(encoding="utf-8"))
    return usual | {"nproc_per_node": n_processes, "device": "cpu"}


def work(run_dir: Path, status: Status | None = None) -> int:
    """The worker, in this process; its exit code."""
    return vrft.run.worker._outcome(run_dir, status or Status(), is_main=True)


def read_config(run_dir: Path) -> dict:
    return yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))


def write_config(run_dir: Path, config: dict) -> None:
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def sampled_rows(run_dir: Path, step: int, rank: str = "") -> list[str]:
    """The rows that a step, counted from 1, is trained on."""
    return sorted({case["row_id"] for case in lines_of(run_dir / "rollouts" / f"step_{step - 1:06d}{rank}.jsonl")})
