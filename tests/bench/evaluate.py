"""Evaluating the embedded model: what batches, sorting by size and compaction save, against one question at a time.

    OMP_NUM_THREADS=1 python tests/bench/evaluate.py

The loop of the original research code asks one question after another with transformers' `generate`. Here are 400
scenes with one to six digits, so that answers differ in length, and of three image sizes. Prints CPU time, decode calls
(forward passes of the language model), the rows that they were fed, and how many texts are those of the loop.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

from PIL import Image

from vrft.config.package_files import TINY_MODEL
from vrft.data import load_builder
from vrft.evaluate.completions import Sampling, generate_completions, make_batches
from vrft.models.families import FAMILIES, frame_for
from vrft.models.load import load_model, load_processor
from vrft.tasks import load_task

LIMITS = {"min_pixels": 3136, "max_pixels": 401_408}
N_ROWS, BATCH = 400, 64
SCALES = (1, 2, 3)


def in_order(sizes, batch_size: int) -> list[list[int]]:
    """Batches in the order of the rows."""
    return [list(range(start, min(start + batch_size, len(sizes)))) for start in range(0, len(sizes), batch_size)]


def stock_generate(generate, inputs, prompt_of_row, **options):
    """transformers' own loop, in which rows that have ended are computed until the last one ends."""
    return generate(**inputs, **options)


WAYS = {  # name: batch size, how rows are batched, whether ended rows leave
    "one at a time (the original's loop)": (1, in_order, False),
    f"batches of {BATCH}, in the rows' order": (BATCH, in_order, False),
    f"batches of {BATCH}, sorted by size": (BATCH, make_batches, False),
    f"batches of {BATCH}, sorted, ended rows leave (vrft)": (BATCH, make_batches, True),
}


@contextmanager
def counted(model):
    """`[decode calls, rows fed, prompt tokens fed]` of the language model meanwhile."""
    counts = [0, 0, 0]

    def count(_, args, kwargs) -> None:
        n_rows, n_tokens = kwargs["inputs_embeds"].shape[:2]
        counts[0] += n_tokens == 1
        counts[1] += n_rows * (n_tokens == 1)
        counts[2] += n_rows * n_tokens * (n_tokens > 1)

    hook = model.model.language_model.register_forward_pre_hook(count, with_kwargs=True)
    yield counts
    hook.remove()


def scenes(root: Path) -> list[dict]:
    """Detection rows of the embedded digits, enlarged by 1, 2 or 3."""
    task = load_task("detection")
    options = {"domain": "clean", "k_shot": 1, "n_validation": 8, "n_test": N_ROWS}
    rows = load_builder("digits")(options, task=task, out_dir=root, seed=0)["test"]
    for number, row in enumerate(rows):
        path = root / row["images"][0]
        with Image.open(path) as image:
            larger = image.resize([SCALES[number % 3] * side for side in image.size])
        larger.save(path)
        row["image_wh"] = list(larger.size)
    return rows


def main() -> None:
    processor, model = load_processor(str(TINY_MODEL), **LIMITS), load_model(str(TINY_MODEL))
    texts: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = scenes(Path(folder))
        print(f"{'':52}{'CPU s':>7}{'calls':>8}{'rows fed':>10}{'prompt tokens':>15}{'same texts':>12}")
        for name, (batch_size, batches, is_compacted) in WAYS.items():
            with (
                patch("vrft.evaluate.completions.make_batches", batches),
                nullcontext() if is_compacted else patch("vrft.models.generate.generate_shared", stock_generate),
                counted(model) as counts,
            ):
                started = time.process_time()
                completions = generate_completions(
                    rows,
                    root=Path(folder),
                    task=load_task("detection"),
                    frame_for_row=lambda row: frame_for(FAMILIES["tiny"], row["image_wh"], **LIMITS),
                    model=model,
                    processor=processor,
                    sampling=Sampling(max_new_tokens=96, batch_size=batch_size),
                )
                seconds = time.process_time() - started
            texts[name] = [completion["text"] for completion in completions]
            n_same = sum(map(str.__eq__, texts[name], next(iter(texts.values()))))
            print(f"{name:52}{seconds:7.1f}{counts[0]:8}{counts[1]:10}{counts[2]:15}{n_same:9}/{len(rows)}", flush=True)


if __name__ == "__main__":
    main()
