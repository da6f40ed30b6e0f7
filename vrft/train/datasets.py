"""Rows as the datasets that TRL's trainers read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import Dataset, Image, List

from vrft.rows import Row, image_paths


def training_dataset(
    rows: Sequence[Row], root: Path, *, question: Callable[[Row], str], completion: Callable[[Row], str] | None = None
) -> Dataset:
    """Columns `prompt` (one user turn), `images` (decoded when read) and `row_id`; with `completion` also that (one
    assistant turn).

    TRL puts the images in front of the question's text.
    """
    columns = {
        "prompt": [[{"role": "user", "content": question(row)}] for row in rows],
        "images": [[str(path) for path in image_paths(row, root)] for row in rows],
        "row_id": [row["row_id"] for row in rows],
    }
    if completion is not None:
        columns["completion"] = [[{"role": "assistant", "content": completion(row)}] for row in rows]
    return Dataset.from_dict(columns).cast_column("images", List(Image()))
