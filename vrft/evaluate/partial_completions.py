"""Saves completed batches during an evaluation, so that a killed evaluation can resume.

Each process appends to its own file, one line per batch. Batches are made before they are assigned to processes, so a
resumed evaluation writes the same bytes, also with another number of processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vrft.errors import UserError
from vrft.files import append_lines, remove


class OtherEvaluationError(UserError):
    """The saved batches are of another model, data set or config. names: the entries of the fingerprint that differ."""

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = list(names)


class KeptBatches:
    """The completed batches of an evaluation, saved in a folder. done: `{batch index: completions}`.

    fingerprint: hashes of what the completions depend on, by name (config, data, model). Batches with another
    fingerprint are refused.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, str | None]) -> None:
        """Read the batches of all processes. Raises `OtherEvaluationError`, or `UserError` for a damaged file."""
        self.folder, self.fingerprint = Path(folder), dict(fingerprint)
        self.done: dict[int, list[dict]] = {}
        for path in sorted(self.folder.glob("rank_*.jsonl")):
            for number, line in enumerate(_whole_lines(path), 1):
                try:
                    entry = json.loads(line)
                    saved, index, completions = entry["fingerprint"], entry["batch"], entry["completions"]
                except (ValueError, KeyError, TypeError):
                    raise UserError(
                        f"{path}, line {number} is damaged; delete the file to generate its batches again"
                    ) from None
                self._check(saved)
                self.done[index] = completions

    def add(self, index: int, completions: Sequence[dict], *, rank: int) -> None:
        """Save one batch. It is on the disk when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank_{rank:03d}.jsonl"
        if path.is_file() and (size := sum(map(len, _whole_lines(path)))) < path.stat().st_size:
            os.truncate(path, size)  # remove a line that a kill has cut
        entry = {"fingerprint": self.fingerprint, "batch": index, "completions": list(completions)}
        append_lines(path, [entry])

    def remove(self) -> None:
        """Delete the saved batches, after the final file is written."""
        remove(self.folder)

    def _check(self, saved: Mapping) -> None:
        other = [
            f"{name}: {saved.get(name)} then, {value} now"
            for name, value in self.fingerprint.items()
            if saved.get(name) != value
        ]
        if other:
            raise OtherEvaluationError(
                f"{self.folder} was created with another {', '.join(line.partition(':')[0] for line in other)} "
                f"({'; '.join(other)}), so it cannot be resumed; delete it, or use what it was created with",
                [line.partition(":")[0] for line in other],
            )


def _whole_lines(path: Path) -> list[bytes]:
    """The lines with a line end. A last line without it was cut by a kill."""
    *whole, _ = path.read_bytes().split(b"\n")
    return [line + b"\n" for line in whole]
