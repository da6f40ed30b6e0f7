"""What a worker sets up around itself before its job: the environment that libraries read, and their chatter."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import transformers
import yaml


def set_environment(run_dir: Path) -> None:
    """What libraries read from the environment, set before they look."""
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # also where a library asks for a whole pickle, as DeepSpeed does
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run_dir / "tensorboard")
    if config["derived"]["device"] == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"


def silence_libraries() -> None:
    """Leave the terminal to vrft's own bars; warnings about renames inside transformers and trl are not for its
    users."""
    import datasets

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
