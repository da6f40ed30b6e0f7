"""What one process computes on, as sizes and as a batch for the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from vrft.models.shared_prefix import without_adapter


@dataclass(frozen=True)
class Shapes:
    """What one process computes on.

    n_prompts: distinct prompts of the micro-batch that has most. n_completions: its rows. rollout_prompts,
    rollout_rows: of a whole generation, or 0. prompt, completion: tokens, all rows alike. images: of a prompt;
    image_grid: patches of one in time, height and width. shares: whether a prompt is computed once for its completions.
    trainer: `grpo` or `sft`. accumulates: True where gradients of earlier micro-batches are there. sheds_gradients:
    True where each is taken away as soon as it is whole (ZeRO 2 and 3).
    """

    n_prompts: int
    n_completions: int
    rollout_prompts: int
    rollout_rows: int
    prompt: int
    completion: int
    image_grid: tuple[int, int, int]
    images: int = 1
    shares: bool = True
    trainer: str = "grpo"
    checkpointing: bool = False
    accumulates: bool = False
    sheds_gradients: bool = False


def most_prompts(n_rows: int, group: int, *, n_steps: int = 1, n_processes: int = 1) -> tuple[int, int]:
    """The most distinct prompts among a micro-batch's rows, and among a process's rows of a whole generation.

    n_rows: of a micro-batch, of which a generation serves `n_steps`. group: completions of a prompt, which lie side by
    side. Processes take such stretches in turn, so a prompt may be shared by two; `vrft.train.micro_batches` puts the
    groups of a process in another order, so that those which it has not whole may lie anywhere (then one or two too
    many may be counted).

    >>> most_prompts(3, 4, n_steps=4), most_prompts(4, 6, n_steps=3), most_prompts(8, 4, n_steps=2)
    ((2, 3), (2, 2), (2, 4))
    """
    rows = n_rows * n_steps
    of_step, of_process = 1, 1
    for start in {process * rows % group for process in range(n_processes)}:
        begun_before = min(-start % group, rows)
        cut = [size for size in (begun_before, (rows - begun_before) % group) if size]
        of_process = max(of_process, len(cut) + (rows - begun_before) // group)
        before = {0, sum(cut), *cut}  # rows of cut groups that may stand before a micro-batch
        offsets = {(step * n_rows - shift) % group for step in range(n_steps) for shift in before}
        for n_cut in range(len(cut) + 1):
            of_step = max(of_step, n_cut - (-(max(offsets) + n_rows - n_cut) // group))
    return min(of_step, of_process, n_rows), of_process


def batch_on_meta(model: PreTrainedModel, n_prompts: int, n_rows: int, shapes: Shapes) -> dict:
    """Rows as TRL prepares them: nothing is padded, `n_rows / n_prompts` completions of each prompt."""
    config = without_adapter(model).config
    merge = config.vision_config.spatial_merge_size
    n_patches = shapes.image_grid[0] * shapes.image_grid[1] * shapes.image_grid[2]
    n_image_tokens = n_patches // merge**2
    image = [config.vision_start_token_id, *[config.image_token_id] * n_image_tokens, config.vision_end_token_id]
    prompt_of_row = [row * n_prompts // n_rows for row in range(n_rows)]
    words = [n for n in range(2, 10_000) if n not in image][:8]
    n_text = shapes.prompt - shapes.images * len(image)
    if n_text < 2:
        raise ValueError(f"a prompt of {shapes.prompt} tokens has no room for {shapes.images} images of {len(image)}")
    prompts = [image * shapes.images + _text(number, n_text, words) for number in prompt_of_row]
    ids = torch.tensor([prompt + [words[0]] * shapes.completion for prompt in prompts])
    vision = config.vision_config
    channels = getattr(vision, "in_channels", getattr(vision, "in_chans", 3)) * vision.temporal_patch_size
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["mm_token_type_ids"] = (ids == config.image_token_id).long()
    if shapes.images:
        pixels = torch.empty((n_rows * shapes.images * n_patches, channels * vision.patch_size**2), device="meta")
        batch |= {"pixel_values": pixels}
        batch |= {"image_grid_thw": torch.tensor([shapes.image_grid] * (n_rows * shapes.images))}
        batch |= {"num_images": [shapes.images] * n_rows}
    return batch


def _text(number: int, n_tokens: int, words: list[int]) -> list[int]:
    """Text that differs from prompt to prompt, in at most 64 places."""
    return [words[(number >> place) & 1] if place < 64 else words[2] for place in range(n_tokens)]
