"""Trainings of three steps on two processes, by DDP and by stages of DeepSpeed; each also resumed from its step 2.

    python tests/e2e/zero_stages.py FOLDER zero2 zero3+lora …

`STAGE` trains all weights, `STAGE+SETTING` some (see `SETTINGS`). Run directories: FOLDER/SETTING/STAGE and
FOLDER/SETTING/STAGE_resumed, beside FOLDER/SETTING/none, which is DDP. Workers are forked from one process that has
imported everything, DeepSpeed too.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from small_models import FAMILIES, save_model
from torture.harness import finish, prepare, set_resume, start

import vrft.train.grpo  # noqa: F401 (imported before processes are forked)
from vrft.cli.hydra_app import SweepFiles
from vrft.config.freeze import freeze
from vrft.config.package_files import config_folder
from vrft.run.directory import provenance
from vrft.run.resume import config_hash
from vrft.run.rows import build_rows

N_STEPS, GOES_ON_FROM = 3, 2
RUN = (
    "experiment=digits_riddles debug=smoke evaluate.before=false evaluate.after=false evaluate.checkpoint=last "
    f"trainer.eval_steps=null trainer.max_steps={N_STEPS} trainer.save_steps=1 memory.max_completion_length=24 "
    "dataset.n_test=4 dataset.n_validation=4 launch=torchrun launch.nproc_per_node=2 launch.device=cpu "
    "trainer.args.lr_scheduler_type=constant trainer.args.warmup_steps=0 "
    "+trainer.args.adam_epsilon=1e-5"  # at 1e-8 a gradient that is nothing but rounding moves a weight by a whole step
).split()
SETTINGS = {
    "all": [],
    "lora": ["model/peft=lora"],
    "lora_but_vision": ["model/peft=lora_all", "model.freeze=[vision]"],
    "qlora": ["model/peft=qlora"],
    "vision": ["model.freeze=[projector,language]"],
    "projector": ["model.freeze=[vision,language]"],
    "language": ["model.freeze=[vision,projector]"],
    **{family: ["model.path={folder}/" + family, f"model.family={family}"] for family in FAMILIES},
}


def write_run(folder: Path, *overrides: str) -> Path:
    """A run directory as `vrft train` leaves it to the worker; its rows are those of the first one."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = freeze(compose("train", [*RUN, f"run.dir={folder}", *overrides]))
    rows = folder.parents[1] / "data"
    if not rows.is_dir():
        build_rows(config, rows)
    shutil.copytree(rows, folder / "data")
    (folder / "config.yaml").write_text(yaml.safe_dump(config.plain()), encoding="utf-8")
    digest = config_hash(config.plain())
    record = provenance(config.model, seed=config.run.seed, choices={}, overrides=[], config_hash=digest, data_hash="-")
    (folder / "provenance.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def train(run_dir: Path) -> None:
    """Run the worker's processes to their end."""
    codes = finish(start(run_dir))
    logs = "".join(path.read_text(encoding="utf-8") for path in run_dir.glob("worker_*.log"))
    assert codes == [0, 0], f"{run_dir}: {codes}\n{logs}"


def go_on(alone: Path, resumed: Path) -> None:
    """Train the last steps again from the checkpoint of `GOES_ON_FROM`, as if killed in the step after it."""
    prepare(alone, resumed)
    for name in (f"checkpoints/checkpoint-{GOES_ON_FROM}", "rollouts"):
        shutil.copytree(alone / name, resumed / name)
    shutil.copy(alone / "metrics.jsonl", resumed)
    set_resume(alone, resumed, resume=True)
    train(resumed)


def main() -> None:
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    Plugins.instance().register(SweepFiles)
    for case in cases:
        stage, _, setting = case.partition("+")
        setting = setting or "all"
        if setting in FAMILIES and not (folder / setting).is_dir():
            save_model(folder / setting, setting)
        overrides = [override.format(folder=folder) for override in SETTINGS[setting]]
        for one in dict.fromkeys(("none", stage)):
            run_dir = folder / setting / one
            if not run_dir.is_dir():
                began = time.perf_counter()
                train(write_run(run_dir, *overrides, f"deepspeed={one}"))
                if one != "none":
                    go_on(run_dir, run_dir.with_name(f"{one}_resumed"))
                print(f"{setting}/{one}: {time.perf_counter() - began:.1f} s", flush=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU seconds of all workers: {used.ru_utime + used.ru_stime:.0f}; DeepSpeed {deepspeed.__version__}")


if __name__ == "__main__":
    main()
