"""`vrft report`: the page of a finished run again, or one table of several runs or of a sweep."""

from __future__ import annotations

from pathlib import Path

from vrft.config.verb_schema import ReportConfig
from vrft.errors import UserError
from vrft.report.write import write_reports


def run(config: ReportConfig) -> None:
    """Write and print the report of the run directories that the config names."""
    runs = [config.runs] if isinstance(config.runs, str) else config.runs
    if not runs:
        raise UserError("runs is empty; name the directories of finished runs: runs=[runs/A,runs/B]")
    write_reports([Path(folder) for folder in runs], out_dir=config.out and Path(config.out))
