"""The plan's figures beside measured peaks: two steps of real training on the CPU, every live tensor counted.

OMP_NUM_THREADS=1 .venv/bin/python tests/bench/memory.py [--only WORDS] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
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
        print("| case | planned, MiB | measured | ratio | sampling: planned, MiB | measured | ratio |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for number, (name, case) in enumerate(CASES.items()):
            if asked.only not in name:
                continue
            found = compare(case, Path(folder) / str(number), small)
            pairs = [(found.planned, found.measured), (found.planned_sampling, found.measured_sampling)]
            cells = [
                f"{planned / MIB:.1f} | {measured / MIB:.1f} | {planned / measured:.3f}" if measured else " | | "
                for planned, measured in pairs
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
            figures.append({"case": name, "step": pairs[0], "sampling": pairs[1]})
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
