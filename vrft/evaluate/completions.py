"""Generates the completions of a set of rows in batches, with the same result on one process or many."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from vrft.data.images import load_image
from vrft.evaluate.partial_completions import KeptBatches
from vrft.models.generate import generate_texts
from vrft.models.vllm import VLLMEngine
from vrft.tasks.base import Task
from vrft.tasks.boxes import Frame
from vrft.tasks.rows import Row, image_paths
from vrft.terminal import progress_bar


@dataclass(frozen=True)
class Sampling:
    """How completions are generated. Sample 0 of each row is greedy; `n_samples` more are drawn at `temperature`.

    max_new_tokens: limit of one completion. batch_size: rows per batch.
    with_logprobs: True adds `token_logprobs` to sample 0 (see `generate_texts`).
    seed: each drawn sample of each batch gets its own seed, derived from this one.
    """

    max_new_tokens: int
    batch_size: int
    with_logprobs: bool = False
    n_samples: int = 0
    temperature: float = 1.0
    seed: int = 0


def generate_completions(
    rows: Sequence[Row],
    *,
    root: Path,
    task: Task,
    frame_for_row: Callable[[Row], Frame],
    model: PreTrainedModel | VLLMEngine,
    processor: ProcessorMixin,
    sampling: Sampling,
    rank: int = 0,
    world_size: int = 1,
    progress: str | None = None,
    kept: KeptBatches | None = None,
    synced_gpus: bool = False,
    on_batch: Callable[[list[str]], None] | None = None,
) -> list[dict]:
    """This rank's completions, `{"row_id", "sample", "text", "n_tokens", "is_truncated"}`, in the order of the rows.

    Batches are made before they are assigned to ranks, so all ranks together return what one process returns.
    root: the folder of relative image paths. progress: the label of a progress bar; None: no bar.
    kept: saves each batch when it is completed. Batches that it has already are not generated again; rank 0 returns
        them with its own.
    synced_gpus: True if the weights are partitioned over the ranks (ZeRO-3, not gathered). Then all ranks must make
        every call together.
    on_batch: called with the `row_id`s of each batch before it is generated.
    """
    frames = [frame_for_row(row) for row in rows]
    questions = [task.question(row, frame) for row, frame in zip(rows, frames, strict=True)]
    sizes = [_prompt_size(question, frame) for question, frame in zip(questions, frames, strict=True)]
    batches = make_batches(sizes, sampling.batch_size)
    done = kept.done if kept else {}
    mine, dummies = _assign(len(batches), done, rank=rank, world_size=world_size, synced_gpus=synced_gpus)
    completed = dict(done) if rank == 0 else {}

    def generate(index: int) -> list[dict]:
        batch = [rows[row] for row in batches[index]]
        if on_batch:
            on_batch([row["row_id"] for row in batch])
        prompts = [questions[row] for row in batches[index]], [load_images(row, root) for row in batch]
        samples = _generate_batch(model, processor, *prompts, sampling, index=index, synced_gpus=synced_gpus)
        return [
            {"row_id": row["row_id"], "sample": number, **output}
            for number, outputs in enumerate(samples)
            for row, output in zip(batch, outputs, strict=True)
        ]

    n_done, n_mine = (sum(len(batches[index]) for index in part) for part in (completed, mine))
    is_shown = progress is not None
    with progress_bar(total=n_done + n_mine, initial=n_done, desc=progress or "", unit="row", is_shown=is_shown) as bar:
        for index in mine:
            completed[index] = generate(index)
            if kept:
                kept.add(index, completed[index], rank=rank)
            bar.update(len(batches[index]))
        for index in dummies:
            generate(index)
    return _in_row_order(completed, batches)


def _assign(
    n_batches: int, done: Collection[int], *, rank: int, world_size: int, synced_gpus: bool
) -> tuple[list[int], list[int]]:
    """The batches of this rank that are not done, and dummy batches, whose completions are dropped.

    With `synced_gpus` a rank that has fewer batches than another gets dummies: ZeRO-3 needs equally many calls.
    """
    left = [index for index in range(n_batches) if index not in done]
    mine = left[rank::world_size]
    n_dummies = -(-len(left) // world_size) - len(mine) if synced_gpus else 0
    return mine, left[:1] * n_dummies


def _generate_batch(
    model: PreTrainedModel | VLLMEngine,
    processor: ProcessorMixin,
    questions: Sequence[str],
    images: Sequence[Sequence[Image.Image]],
    sampling: Sampling,
    *,
    index: int,
    synced_gpus: bool,
) -> list[list[dict]]:
    """The greedy outputs, then those of each drawn sample: 1 + `n_samples` lists, each with one output per question.

    index: the number of the batch, which is part of its seeds.
    """
    is_engine = isinstance(model, VLLMEngine)
    answer = model.generate_texts if is_engine else functools.partial(generate_texts, model, synced_gpus=synced_gpus)
    answer = functools.partial(answer, processor, questions, images, max_new_tokens=sampling.max_new_tokens)
    samples = [answer(with_logprobs=sampling.with_logprobs)]
    for number in range(1, sampling.n_samples + 1):
        with _seeded(model, (sampling.seed, index, number)):
            samples.append(answer(temperature=sampling.temperature))
    return samples


def _in_row_order(completed: Mapping[int, Sequence[dict]], batches: Sequence[Sequence[int]]) -> list[dict]:
    """The completions of all completed batches, in the order of the rows and of their samples."""
    of_row: dict[int, list[dict]] = {}
    for index, completions in completed.items():
        for position, completion in enumerate(completions):
            of_row.setdefault(batches[index][position % len(batches[index])], []).append(completion)
    return [completion for row in sorted(of_row) for completion in of_row[row]]


@contextmanager
def _seeded(model: PreTrainedModel | VLLMEngine, numbers: tuple[int, ...]) -> Iterator[None]:
    """Set torch's seed from several numbers, the same in every process. At the end the old state is restored."""
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big"))
        yield


def make_batches(sizes: Sequence, batch_size: int) -> list[list[int]]:
    """Indices of all prompts in batches of at most `batch_size`, the largest first: an out-of-memory error comes early.

    Prompts of similar size share a batch, which keeps padding small. Equal sizes keep their order.

    >>> make_batches([5, 9, 7], 2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def load_images(row: Row, root: Path) -> list[Image.Image]:
    """The row's images in RGB. Raises `UserError` naming row and file if one cannot be read."""
    return [load_image(path, what=f"row {row['row_id']!r}") for path in image_paths(row, root)]


def _prompt_size(question: str, frame: Frame) -> tuple[int, int]:
    """Sort key for the length of a prompt: the image's area as the model sees it, then the question's characters."""
    width, height = frame.seen_wh
    return width * height, len(question)
