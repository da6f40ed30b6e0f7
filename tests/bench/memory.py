"""The plan's figures beside measured peaks: two steps of real training on the CPU, every live tensor counted.

OMP_NUM_THREADS=1 .venv/bin/python tests/bench/memory.py [--only WORDS] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import transformers
from memory_cases import CASES, compare, save_small_model

MIB = 2**20


def main() -> None:
    """Print one line of a Markdown table for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--out", type=Path, help="figures as JSON")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        small = save_small_model(Path(folder) / "small")
        print(
            "| case | planned, MiB | measured, MiB | plan / measured | most in | CPU s |\n|---|---:|---:|---:|---|---:|"
        )
        for number, (name, case) in enumerate(CASES.items()):
            if asked.only not in name:
                continue
            started = time.process_time()
            found = compare(case, Path(folder) / str(number), small)
            phase = max(found.plan.totals, key=found.plan.totals.get)
            seconds = time.process_time() - started
            print(
                f"| {name} | {found.planned / MIB:.1f} | {found.measured / MIB:.1f} | {1 + found.error:.3f} | {phase} "
                f"| {seconds:.0f} |",
                flush=True,
            )
            figures.append({"case": name, "planned": found.planned, "measured": found.measured})
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
