"""What a worker sets up around itself before its job: the environment that libraries read, and their chatter."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

import transformers
import yaml


def set_environment(run_dir: Path) -> None:
    """What libraries read from the environment, set before they look."""
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    logging = config["logging"]
    if "wandb" in logging["report_to"]:
        os.environ |= {"WANDB_PROJECT": logging["project"], "WANDB_MODE": logging["mode"], "WANDB_DIR": str(run_dir)}
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run_dir / "tensorboard")
    if config["derived"]["device"] == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"


def exit_on_interrupt() -> None:
    """Make Ctrl-C end this process at once, with code 130.

    A KeyboardInterrupt that Python raises inside some library's `__del__` is swallowed, and the run goes on (seen in
    `regex`). Nothing is half written: checkpoints of ours and `result.json` are renamed into place when complete.
    """
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))


def silence_libraries() -> None:
    """Leave the terminal to vrft's own bars; warnings about renames inside transformers and trl are not for its
    users."""
    import datasets

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
