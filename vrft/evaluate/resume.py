"""Completions kept batch by batch while they are generated, so that a killed evaluation resumes where it stopped.

Every process appends to a file of its own, one line a batch; batches are fixed before they are dealt out, so a resumed
evaluation, also on another number of processes, ends with the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from vrft.errors import UserError


class OtherEvaluationError(UserError):
    """The kept batches are of another model, other data or another config. names: what of the fingerprint differs."""

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = list(names)


class KeptBatches:
    """The batches that are done, in a folder.

    fingerprint: what the completions depend on, by name (config, data, model); batches kept under another are refused.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, str | None]) -> None:
        """Read what all processes have kept. Raises `OtherEvaluationError`, or `UserError` for a damaged file."""
        self.folder, self.fingerprint = Path(folder), dict(fingerprint)
        self.done: dict[int, list[dict]] = {}
        for path in sorted(self.folder.glob("rank_*.jsonl")):
            for number, line in enumerate(_whole_lines(path), 1):
                try:
                    entry = json.loads(line)
                    begun, index, completions = entry["fingerprint"], entry["batch"], entry["completions"]
                except (ValueError, KeyError, TypeError):
                    raise UserError(
                        f"{path}, line {number} is damaged; delete the file to generate its part anew"
                    ) from None
                self._check(begun)
                self.done[index] = completions

    def add(self, index: int, completions: Sequence[dict], *, rank: int) -> None:
        """Keep one batch, on the disk before this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank_{rank:03d}.jsonl"
        if path.is_file() and (size := sum(map(len, _whole_lines(path)))) < path.stat().st_size:
            os.truncate(path, size)  # a line that was being written when the process was killed
        entry = {"fingerprint": self.fingerprint, "batch": index, "completions": list(completions)}
        with path.open("ab") as file:
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Delete what was kept, once it stands in its final file."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check(self, begun: Mapping) -> None:
        other = [
            f"{name}: {begun.get(name)} then, {value} now"
            for name, value in self.fingerprint.items()
            if begun.get(name) != value
        ]
        if other:
            raise OtherEvaluationError(
                f"{self.folder} was started with another {', '.join(line.partition(':')[0] for line in other)} "
                f"({'; '.join(other)}), so its completions cannot be reused; delete it, or go back to what it "
                "was started with",
                [line.partition(":")[0] for line in other],
            )


def _whole_lines(path: Path) -> list[bytes]:
    """The lines that end with a line end."""
    *whole, _ = path.read_bytes().split(b"\n")
    return [line + b"\n" for line in whole]
