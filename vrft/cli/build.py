"""`vrft build`: annotations in, checked rows out."""

from __future__ import annotations

from pathlib import Path

from vrft.config.verb_schema import BuildConfig
from vrft.data.splits import MANIFEST_FILE, is_finished
from vrft.errors import UserError
from vrft.report.contact_sheet import summary
from vrft.run.directory import fresh_run_dir
from vrft.run.rows import build_rows


def run(config: BuildConfig) -> None:
    """The verb `build`: write the rows of every split to `out`, where `dataset=built dataset.path=OUT` finds them."""
    out = Path(config.out)
    if is_finished(out):
        raise UserError(f"out is {out}, which holds finished rows ({MANIFEST_FILE}); choose another, or delete it")
    with fresh_run_dir(out, is_resuming=config.run.resume, key="out"):
        splits = build_rows(config, out)
    print("\n".join(summary(splits)))
    print(f"rows: {out}")
