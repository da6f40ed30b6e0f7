"""Rows that `vrft build` wrote, or a run in its `data`, read unchanged and compared with their manifest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrft.data.images import ImageReader, locate
from vrft.data.options import DatasetOptions, Folder, SolutionFrame, read_options
from vrft.data.read_ahead import read_ahead, usable_cores
from vrft.data.splits import MANIFEST_FILE, Checked, read_manifest, write_manifest
from vrft.errors import UserError, raise_all
from vrft.files import read_rows
from vrft.tasks import MixedTask, Task
from vrft.tasks.rows import Row


class Options(DatasetOptions):
    """path: the output folder of `vrft build`.

    image_root: where images lie now that lay outside of that folder: an image is the file below it that the longest end
        of its path names; null: where they lay.
    frame: the frame of the boxes in `problem` and its answer.
    """

    path: str
    image_root: Folder | None = None
    frame: SolutionFrame | None = None


def build(options: dict, *, task: Task | MixedTask, out_dir: Path, seed: int) -> dict[str, list[Row]]:
    """The rows of every split, as built; their manifest is written to `out_dir` too. `seed` and `task` are not used.

    options: those of `Options`. Raises `UserError` if a row or the pixels of an image have changed since the build, or
    an image is missing. An image is decoded again only if its file is another than the build has read (by path, size
    and time of change).
    """
    chosen = read_options(options, Options)
    folder = Path(chosen.path)
    root = None if chosen.image_root is None else Path(chosen.image_root).resolve()
    manifest, faults = read_manifest(folder), []
    splits = {split: _rows(folder, split, listed, faults) for split, listed in manifest["splits"].items()}
    images = ImageReader(root=Path("/"), out_dir=Path(out_dir), known=folder)
    located = _located(splits, folder, root, faults)
    found: dict[str, list[Checked]] = {split: [] for split in splits}
    for split, item, paths in read_ahead(located, images, values=lambda one: one[2], n_processes=usable_cores()):
        for path, content in zip(paths, item.contents, strict=True):
            try:
                fault = (
                    None
                    if images.read(path).content == content
                    else f"image {path!r} shows other pixels than the manifest says"
                )
            except ValueError as error:
                fault = str(error)
            if fault:
                faults.append(
                    f"{split}, row {item.row['row_id']}: {fault}; put the old file back, or build the rows again"
                )
        found[split].append(Checked(item.row | {"images": paths}, item.contents))
    raise_all(faults, heading=f"{folder} has changed since vrft build wrote it:")
    options, notes = (one if isinstance(one := manifest.get(key), dict) else {} for key in ("options", "notes"))
    if options.get("frame") != chosen.frame and any("problem" in item.row for part in found.values() for item in part):
        print(
            f"warning: the rows of {folder} bring their own question (`problem`) and were built with dataset.frame="
            f"{options.get('frame') or 'null'}; give the same here",
            file=sys.stderr,
        )
    counts = {"seed": manifest.get("seed"), "n_skipped": manifest.get("n_skipped")}
    write_manifest(Path(out_dir), found, options=options, notes=notes, **counts)
    return {split: [item.row for item in part] for split, part in found.items()}


def _rows(folder: Path, split: str, listed: list[dict[str, Any]], faults: list[str]) -> list[Checked]:
    """The rows of a split with the contents of their images; each that differs from the manifest adds to `faults`."""
    path = folder / f"{split}.jsonl"
    if listed and not path.is_file():
        raise UserError(f"{path} is missing, and {MANIFEST_FILE} beside lists {len(listed)} rows; build them again")
    rows = read_rows(path) if listed else []
    if [row.get("row_id") for row in rows] != [entry["row_id"] for entry in listed]:
        faults.append(f"{path.name}: its {len(rows)} rows are not the {len(listed)} of the manifest; build it again")
        return []
    checked = [Checked(row, entry["images"]) for row, entry in zip(rows, listed, strict=True)]
    faults += [
        f"{split}, row {item.row['row_id']}: changed since the build; undo the change, or build the rows again"
        for item, entry in zip(checked, listed, strict=True)
        if item.fingerprint != entry["row"] or not _names_images(item)
    ]
    return [item for item in checked if _names_images(item)]


def _names_images(item: Checked) -> bool:
    """True if the row names as many images as the manifest has contents."""
    paths = item.row.get("images")
    is_list = isinstance(paths, list) and all(isinstance(path, str) for path in paths)
    return is_list and len(paths) == len(item.contents)


def _located(
    splits: dict[str, list[Checked]], folder: Path, root: Path | None, faults: list[str]
) -> Iterator[tuple[str, Checked, list[str]]]:
    """Yield `(split, row, files of its images)`; each row with an image that is not there adds to `faults`."""
    for split, checked in splits.items():
        for item in checked:
            try:
                paths = [str(_file_of(path, folder.resolve(), root)) for path in item.row["images"]]
            except ValueError as error:
                faults.append(f"{split}, row {item.row['row_id']}: {error}")
            else:
                yield split, item, paths


def _file_of(path: str, folder: Path, root: Path | None) -> Path:
    """The file of an image path. Raises ValueError if it is missing, or a relative one leaves `folder`.

    What an absolute path may show is settled by the manifest: only pixels that whoever built the rows had.
    """
    if not Path(path).is_absolute():
        return locate(path, folder, remedy="build the rows again")
    if root is None:
        if not Path(path).is_file():
            raise ValueError(
                f"image {path!r} is missing; put it back, or say where the images lie now: dataset.image_root=FOLDER"
            )
        return Path(path).resolve()
    parts = Path(path).parts[1:]
    ends = (str(Path(*parts[start:])) for start in range(len(parts)))
    end = next((end for end in ends if (root / end).is_file()), None)
    if end is None:
        raise ValueError(f"image {path!r} is missing: no file below dataset.image_root={root} has the end of its path")
    return locate(end, root)
