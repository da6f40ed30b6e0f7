"""Rows that `vrft build` wrote, read unchanged and compared with their manifest."""

from __future__ import annotations

import json
from pathlib import Path

from vrft.data.options import DatasetOptions, read_options
from vrft.data.splits import MANIFEST_FILE, Checked
from vrft.errors import UserError, raise_all
from vrft.files import read_rows
from vrft.tasks import MixedTask, Task
from vrft.tasks.rows import Row, image_paths


class Options(DatasetOptions):
    """path: the output folder of `vrft build`."""

    path: str


def build(options: dict, *, task: Task | MixedTask, out_dir: Path, seed: int) -> dict[str, list[Row]]:
    """The rows of every split, as built. `seed` and `out_dir` are not used.

    options: those of `Options`. Raises `UserError` if rows have changed since the build, or images are missing.
    """
    folder = Path(read_options(options, Options).path)
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(f"dataset.path is {folder}, which has no {MANIFEST_FILE}; the folder of a vrft build is needed")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    splits, faults = {}, []
    for split, listed in manifest["splits"].items():
        rows = read_rows(folder / f"{split}.jsonl") if listed else []
        ids = [row["row_id"] for row in rows]
        if ids != [entry["row_id"] for entry in listed]:
            faults.append(
                f"{split}.jsonl: its {len(ids)} rows are not the {len(listed)} of the manifest; build it again"
            )
        else:
            faults += [
                f"{split}, row {row['row_id']}: changed since the build; undo the change, or build the rows again"
                for row, entry in zip(rows, listed, strict=True)
                if Checked(row, entry["images"]).fingerprint != entry["row"]
            ]
        splits[split] = [row | {"images": [str(image.resolve()) for image in image_paths(row, folder)]} for row in rows]
        faults += [
            f"{split}, row {row['row_id']}: the image {image} is missing; put it back, or build the rows again"
            for row in splits[split]
            for image in row["images"]
            if not Path(image).is_file()
        ]
    raise_all(faults, heading=f"{folder} has changed since vrft build wrote it:")
    return splits
