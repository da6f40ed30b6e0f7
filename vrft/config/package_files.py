"""Where the files of the package are."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
TINY_MODEL = PACKAGE / "tiny_qwen2_vl"


def config_folder(name: str = "conf") -> Path:
    """The folder `conf` or `sweeps`: inside the package in a wheel, else at the top of the repository."""
    beside = PACKAGE / name
    return beside if beside.is_dir() else PACKAGE.parent / name
