"""Folders that are whole or not there: written aside, completed by a manifest, flushed, renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from vrft.errors import UserError

MANIFEST = "manifest.json"


class DamagedFolderError(UserError):
    """A folder differs from what its manifest says."""


def publish(staging: Path, folder: Path, *, previous: Path | None = None) -> None:
    """Write the manifest of all files in `staging`, flush it all to the disk and rename it to `folder`.

    What stands in `folder` by then becomes `previous`, if that is given and does not exist, or is removed. After a
    power cut `folder` is there with every byte, or not at all.
    """
    files = {
        path.relative_to(staging).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(staging.rglob("*"))
        if path.is_file()
    }
    text = json.dumps({"files": files, "sha256": _sha256_of_entries(files)}, indent=1) + "\n"
    (staging / MANIFEST).write_text(text, encoding="utf-8")
    for path in [*staging.rglob("*"), staging]:
        _flush(path)
    if folder.exists() and previous and not previous.exists():
        folder.rename(previous)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    _flush(folder.parent)


def check_whole(folder: Path) -> None:
    """Raise `DamagedFolderError` that names everything in which a published folder differs from its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, is_intact = manifest["files"], manifest["sha256"] == _sha256_of_entries(manifest["files"])
        is_intact &= all({"bytes", "sha256"} <= entry.keys() for entry in files.values())
    except FileNotFoundError:
        raise DamagedFolderError(f"{folder} has no {MANIFEST}: it was never completed") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        files, is_intact = {}, False
    if not is_intact:
        raise DamagedFolderError(f"{folder}: {MANIFEST} is damaged")
    faults = [f"{name} {fault}" for name, entry in files.items() if (fault := _fault(folder / name, entry))]
    if faults:
        raise DamagedFolderError(f"{folder}: {'; '.join(faults)}")


def _fault(path: Path, entry: dict) -> str | None:
    """What is wrong with one file, or None."""
    try:
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"has {size:,} bytes in place of {entry['bytes']:,}"
        return None if _sha256(path) == entry["sha256"] else "has other bytes than were written"
    except OSError as error:  # a bad sector
        return f"cannot be read ({error.strerror})"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_entries(files: dict) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
