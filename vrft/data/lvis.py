"""Rows from LVIS annotation files, v0.5 and v1: COCO's form, with images that say what was looked for in them."""

from __future__ import annotations

from pathlib import Path

from vrft.data import coco
from vrft.rows import Row
from vrft.tasks import Task


def build(options: dict, *, task: Task, out_dir: Path, seed: int) -> dict[str, list[Row]]:
    """As `coco.build`, with `federated` true."""
    return coco.build({**options, "federated": True}, task=task, out_dir=out_dir, seed=seed)
