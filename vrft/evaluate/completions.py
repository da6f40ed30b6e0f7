"""Completions of a set of rows: greedy, batched, the same on one process or many."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from vrft.data.images import load_image
from vrft.evaluate.resume import KeptBatches
from vrft.models.generate import generate_texts
from vrft.models.vllm import VLLMEngine
from vrft.tasks.base import Task
from vrft.tasks.boxes import Frame
from vrft.tasks.rows import Row, image_paths


def generate_completions(
    rows: Sequence[Row],
    *,
    root: Path,
    task: Task,
    frame_for_row: Callable[[Row], Frame],
    model: PreTrainedModel | VLLMEngine,
    processor: ProcessorMixin,
    max_new_tokens: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    progress: str | None = None,
    kept: KeptBatches | None = None,
    with_logprobs: bool = False,
    n_samples: int = 0,
    temperature: float = 1.0,
    seed: int = 0,
    synced_gpus: bool = False,
    on_batch: Callable[[list[str]], None] | None = None,
) -> list[dict]:
    """This rank's completions, `{"row_id", "sample", "text", "n_tokens", "is_truncated"}`, in the order of the rows.

    Batches are made before they are dealt to the ranks, so the ranks' completions together are those of one process.
    Sample 0 is greedy; `n_samples` further ones are drawn at `temperature`, each batch by its own seed.
    with_logprobs: sample 0 also has `token_logprobs` (see `generate_texts`).
    root: the folder that relative image paths start from. progress: the label of a progress bar; None shows none.
    kept: where batches are kept as they are done; those that it holds already are not generated again, and rank 0
        returns them with its own.
    synced_gpus: True where the weights lie apart on the ranks (ZeRO-3, not gathered), which then have to make every
        call together: a rank that has fewer batches than another does some again, and forgets what comes out.
    on_batch: called with the `row_id`s of each batch before it is generated.
    """
    frames = [frame_for_row(row) for row in rows]
    questions = [task.question(row, frame) for row, frame in zip(rows, frames, strict=True)]
    batches = make_batches([_prompt_size(q, f) for q, f in zip(questions, frames, strict=True)], batch_size)
    is_engine = isinstance(model, VLLMEngine)
    answer = model.generate_texts if is_engine else functools.partial(generate_texts, model, synced_gpus=synced_gpus)
    done = kept.done if kept else {}
    completions: dict[int, list[dict]] = {}
    if rank == 0:
        for index, made in done.items():
            _add(completions, batches[index], made)
    left = [index for index in range(len(batches)) if index not in done]
    mine = left[rank::world_size]
    n_spare = -(-len(left) // world_size) - len(mine) if synced_gpus else 0
    n_rows = sum(len(batches[index]) for index in mine)
    with tqdm(total=len(completions) + n_rows, initial=len(completions), desc=progress, disable=progress is None,
              unit="row") as bar:  # fmt: skip
        for turn, index in enumerate(mine + left[:1] * n_spare):
            if on_batch:
                on_batch([rows[row]["row_id"] for row in batches[index]])
            asked = (
                processor,
                [questions[row] for row in batches[index]],
                [load_images(rows[row], root) for row in batches[index]],
            )
            outputs = [answer(*asked, max_new_tokens=max_new_tokens, with_logprobs=with_logprobs)]
            for sample in range(1, n_samples + 1):
                with _seeded(model, (seed, index, sample)):
                    outputs.append(answer(*asked, max_new_tokens=max_new_tokens, temperature=temperature))
            if turn >= len(mine):
                continue
            made = [
                {"row_id": rows[row]["row_id"], "sample": sample, **output}
                for sample, of_sample in enumerate(outputs)
                for row, output in zip(batches[index], of_sample, strict=True)
            ]
            if kept:
                kept.add(index, made, rank=rank)
            _add(completions, batches[index], made)
            bar.update(len(batches[index]))
    return [completion for row in sorted(completions) for completion in completions[row]]


def _add(completions: dict[int, list[dict]], batch: Sequence[int], made: Sequence[dict]) -> None:
    """Add the completions of a batch, sample after sample, to those of each row."""
    for position, completion in enumerate(made):
        completions.setdefault(batch[position % len(batch)], []).append(completion)


@contextmanager
def _seeded(model: PreTrainedModel | VLLMEngine, numbers: tuple[int, ...]) -> Iterator[None]:
    """Draw by a seed made of several numbers, the same in every process; afterwards as before."""
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big"))
        yield


def make_batches(sizes: Sequence, batch_size: int) -> list[list[int]]:
    """Indices of all prompts in batches of at most `batch_size`, the largest first: a lack of memory shows at once.

    Prompts of like size share a batch, so that little is padded; equal sizes keep their order.

    >>> make_batches([5, 9, 7], 2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def load_images(row: Row, root: Path) -> list[Image.Image]:
    """The row's images in RGB. Raises `UserError` naming row and file if one cannot be read."""
    return [load_image(path, what=f"row {row['row_id']!r}") for path in image_paths(row, root)]


def _prompt_size(question: str, frame: Frame) -> tuple[int, int]:
    """What a prompt's length grows with: the image's area as the model sees it, then the question's characters."""
    width, height = frame.seen_wh
    return width * height, len(question)
