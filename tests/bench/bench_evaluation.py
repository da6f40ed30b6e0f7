"""Evaluating the embedded model on 400 scenes: batches of like size against one question at a time, in one process.

    OMP_NUM_THREADS=1 python tests/bench/bench_evaluation.py

Prints CPU time, decode calls (forward passes of the language model while generating) and whether the texts are equal.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from vrft.configure import TINY_MODEL
from vrft.data import load_builder
from vrft.evaluate.generate import generate_completions
from vrft.models.families import FAMILIES, frame_for
from vrft.models.load import load_model, load_processor
from vrft.tasks import load_task

LIMITS = {"min_pixels": 3136, "max_pixels": 401_408}
N_ROWS, BATCH = 400, 64


def measured(rows, root: Path, model, processor, task, *, batch_size: int) -> tuple[float, int, list[str]]:
    """CPU seconds, decode calls and texts of one evaluation."""
    n_calls = 0

    def count(*_) -> None:
        nonlocal n_calls
        n_calls += 1

    hook = model.model.language_model.register_forward_hook(count)
    started = time.process_time()
    completions = generate_completions(
        rows, root=root, task=task, model=model, processor=processor, max_new_tokens=40, batch_size=batch_size,
        frame_for_row=lambda row: frame_for(FAMILIES["tiny"], row["image_wh"], **LIMITS),
    )  # fmt: skip
    seconds = time.process_time() - started
    hook.remove()
    return seconds, n_calls, [completion["text"] for completion in completions]


def main() -> None:
    task = load_task("reasoning_grounding")
    processor, model = load_processor(str(TINY_MODEL), **LIMITS), load_model(str(TINY_MODEL))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        options = {"domain": "clean", "k_shot": 1, "n_validation": 8, "n_test": N_ROWS}
        rows = load_builder("digits")(options, task=task, out_dir=root, seed=0)["test"]
        measured(rows[:8], root, model, processor, task, batch_size=8)  # warm
        many = measured(rows, root, model, processor, task, batch_size=BATCH)
        single = measured(rows, root, model, processor, task, batch_size=1)
    print(f"{'':24}{'CPU s':>8}{'decode calls':>14}")
    for name, (seconds, n_calls, _) in {f"batches of {BATCH}": many, "one at a time": single}.items():
        print(f"{name:24}{seconds:8.1f}{n_calls:14}")
    n_equal = sum(a == b for a, b in zip(many[2], single[2], strict=True))
    print(f"{single[0] / many[0]:.1f} times less CPU time, {single[1] / many[1]:.1f} times fewer decode calls; "
          f"{n_equal} of {len(rows)} texts equal")  # fmt: skip


if __name__ == "__main__":
    main()
