"""Write and print the report of a run, of several runs, or of a sweep."""

from __future__ import annotations

from pathlib import Path

from vrft.errors import raise_all
from vrft.report.sweep import CHILDREN


def write_reports(run_dirs: list[Path], *, out_dir: Path | None = None) -> None:
    """Write `report.html` of the first run, with the other runs in its table, and print the table.

    Several runs also give `comparison.html`, .md and .csv in `out_dir` (the first run's folder unless given). Folders
    of sweeps, and `figures.csv` files, give `sweep.html` instead (see `vrft.report.sweep_pages`). Raises `UserError` if
    a directory has no finished run.
    """
    from vrft.report.sweep_pages import write_sweep_report

    if any((source / CHILDREN).is_dir() or source.suffix == ".csv" for source in run_dirs):
        print(f"report: {write_sweep_report(run_dirs, out_dir)}")
        return
    unfinished = [folder for folder in run_dirs if not (folder / "result.json").is_file()]
    raise_all(
        [f"{folder} has no result.json" for folder in unfinished], heading="A report needs finished runs (runs=…):"
    )
    from vrft.report.page import methods_of, panels, text_table, write_comparison, write_report
    from vrft.report.run_files import RunFiles

    page = write_report(run_dirs[0], run_dirs[1:])
    if len(run_dirs) > 1:
        page = write_comparison(run_dirs, out_dir or run_dirs[0])
    else:
        if shown := panels(methods_of([RunFiles(run_dirs[0])])):
            print(text_table(shown))
    print(f"report: {page}")
