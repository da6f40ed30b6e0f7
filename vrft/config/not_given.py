"""What is taken where the command line names no model or no rows; each is said on standard error."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vrft.config.schema import Config
from vrft.files import parse_yaml


def with_rows_of_run(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the nested config of an evaluation. If neither an override nor a config file of one's own names a data
    set or an experiment, it has the rows of the run that saved `model.path`.

    Nothing else is taken from the run's folder, which may be somebody else's: no code is named by it, and no path but
    its own `data`.
    """
    path, named = values["model"]["path"], {"dataset", "experiment"}
    is_default = values["dataset"].get("builder") == "digits"  # a file of --config-dir may name another
    said = (override.lstrip("+~").partition("=")[0].partition(".")[0] for override in overrides)
    if path is None or not is_default or not named.isdisjoint(said):
        return dict(values)
    run_dir = Path(path).parent.parent
    dataset = _rows_of(run_dir) if Path(path).parent.name == "checkpoints" else None
    if dataset:
        print(f"note: no dataset= is given, so the rows of {run_dir} are judged", file=sys.stderr)
    else:
        print("warning: no dataset= is given, so the embedded digits are judged; choose your rows", file=sys.stderr)
    return dict(values) | ({"dataset": dataset} if dataset else {})


def _rows_of(run_dir: Path) -> dict[str, Any] | None:
    """The section `dataset` of a run's rows: its `data`, or the embedded digits with its options; None if unknown."""
    try:
        saved = parse_yaml((run_dir / "config.yaml").read_text(encoding="utf-8"))["dataset"]
        saved = {key: value for key, value in saved.items() if not isinstance(value, dict | list)}
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError, RecursionError):
        saved = {}
    if saved.get("builder") == "digits":
        return saved
    if (run_dir / "data" / "manifest.json").is_file():
        return {"builder": "built", "path": str(run_dir / "data"), "image_root": None, "frame": saved.get("frame")}
    return None


def warn_of_toy_model(config: Config, overrides: Sequence[str]) -> None:
    """Print a warning if the embedded model is to read rows of the user's own, and neither an override nor a path names
    a model."""
    is_named = config.model.path is not None or any(
        override.lstrip("+~").startswith(("model=", "model.")) for override in overrides
    )
    if config.model.family == "tiny" and config.dataset.get("builder") != "digits" and not is_named:
        print(
            "warning: no model= is given, so the embedded toy model is taken, which reads questions about pictures of "
            "digits and nothing else; choose one, such as model=qwen2_5_vl_3b, or say model=tiny if it is meant",
            file=sys.stderr,
        )
