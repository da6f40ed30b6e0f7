"""`vrft train`: one whole experiment. Evaluate the base, train, evaluate again, report."""

from __future__ import annotations

from typing import Any

from vrft.config.schema import Config
from vrft.errors import UserError
from vrft.run.experiment import run_experiment


def run(config: Config, *, choices: dict[str, Any], overrides: list[str]) -> int:
    """Run the frozen config in its run directory and return the exit code. choices, overrides: Hydra's resolved choice
    of each group and the user's overrides, for the record."""
    if config.launch.name == "torchrun" and config.launch.nnodes > 1:
        _need_one_run_dir(overrides)
    return run_experiment(config, choices=choices, overrides=overrides)


def _need_one_run_dir(overrides: list[str]) -> None:
    """Raise `UserError` if each of several machines would create a run directory of its own."""
    if not any(override.startswith("run.dir=") for override in overrides):
        raise UserError(
            "run.dir has the time of day in it, which differs between machines; give all launch.nnodes machines the "
            "same one, on a file system that they share: run.dir=runs/NAME"
        )
