"""Rows as the dataset that TRL's trainers read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from datasets import Dataset

from vrft.data.images import decode_upright, image_bytes
from vrft.tasks.rows import Row, image_paths


def training_dataset(
    rows: Sequence[Row], root: Path, *, question: Callable[[Row], str], completion: Callable[[Row], str] | None = None
) -> Dataset:
    """Columns `prompt` (one user turn), `images` and `row_id`; with `completion` also that (one assistant turn).

    TRL puts the images in front of the question's text. A file is decoded once for all rows that are read together:
    they share one image object.
    """
    columns = {
        "prompt": [[{"role": "user", "content": question(row)}] for row in rows],
        "images": [[str(path) for path in image_paths(row, root)] for row in rows],
        "row_id": [row["row_id"] for row in rows],
    }
    if completion is not None:
        columns["completion"] = [[{"role": "assistant", "content": completion(row)}] for row in rows]
    return Dataset.from_dict(columns).with_transform(_with_images)


def _with_images(batch: dict[str, list]) -> dict[str, list]:
    """Columns of rows with image files -> the same with their images, upright."""
    if "images" not in batch:  # other columns are asked for
        return batch
    decoded = {path: decode_upright(image_bytes(Path(path)))[0] for path in set(chain(*batch["images"]))}
    return batch | {"images": [[decoded[path] for path in paths] for paths in batch["images"]]}
