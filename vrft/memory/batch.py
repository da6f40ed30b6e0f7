"""The shapes of one process's batch, and such a batch on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from vrft.models.shared_prefix import without_adapter


@dataclass(frozen=True)
class Shapes:
    """The shapes of one process's batch. All rows have the same length."""

    n_prompts: int  # distinct prompts in the micro-batch that has the most
    n_completions: int  # rows of a micro-batch
    rollout_prompts: int  # distinct prompts of a whole generation; 0 for none
    rollout_rows: int
    prompt: int  # tokens
    completion: int  # tokens
    image_grid: tuple[int, int, int]  # patches of one image in time, height and width
    images: int = 1  # of a prompt
    shares: bool = True  # True: a prompt is computed once for all its completions
    trainer: str = "grpo"  # or sft
    checkpointing: bool = False
    accumulates: bool = False  # True: gradients of earlier micro-batches are in memory
    frees_gradients: bool = False  # True: each gradient is freed as soon as it is complete (ZeRO 2 and 3)


def most_prompts(n_rows: int, group: int, *, n_steps: int = 1, n_processes: int = 1) -> tuple[int, int]:
    """The largest numbers of distinct prompts in a micro-batch, and in one process's part of a generation.

    n_rows: of a micro-batch; a generation serves `n_steps` of them. group: completions of a prompt, which are adjacent.

    Rows are dealt to processes in contiguous chunks, so a group can straddle two processes. Straddling groups may be
    reordered anywhere in the process's buffer (`vrft.train.micro_batches`), so this is an upper bound: it can be too
    high by 2.

    >>> most_prompts(3, 4, n_steps=4), most_prompts(4, 6, n_steps=3), most_prompts(8, 4, n_steps=2)
    ((2, 3), (2, 2), (2, 4))
    """
    rows = n_rows * n_steps
    of_step, of_process = 1, 1
    for start in {process * rows % group for process in range(n_processes)}:
        of_previous = min(-start % group, rows)
        cut = [size for size in (of_previous, (rows - of_previous) % group) if size]
        of_process = max(of_process, len(cut) + (rows - of_previous) // group)
        before = {0, sum(cut), *cut}  # rows of straddling groups that may precede a micro-batch
        offsets = {(step * n_rows - shift) % group for step in range(n_steps) for shift in before}
        for n_cut in range(len(cut) + 1):
            of_step = max(of_step, n_cut - (-(max(offsets) + n_rows - n_cut) // group))
    return min(of_step, of_process, n_rows), of_process


def batch_on_meta(model: PreTrainedModel, n_prompts: int, n_rows: int, shapes: Shapes) -> dict:
    """A batch as TRL prepares it, without padding: `n_rows / n_prompts` completions of each prompt."""
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
    """Token ids that differ from prompt to prompt, in at most 64 places."""
    return [words[(number >> place) & 1] if place < 64 else words[2] for place in range(n_tokens)]
