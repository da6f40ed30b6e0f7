"""A generation's rows dealt out to the steps that it serves, the completions of a prompt together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from vrft.models.shared_prefix import Prompts


def micro_batches(batch: dict[str, Any], n_steps: int) -> list[dict[str, Any]]:
    """TRL's batch of a generation, shuffled and split into as many as it serves.

    Groups stand in the order in which TRL's shuffle of rows brings up their first; it draws the same numbers.
    """
    prompts = Prompts.of(batch["prompt_ids"], batch["prompt_mask"], batch, batch.get("num_images"))
    rank = torch.randperm(len(prompts.ids)).argsort().tolist()
    groups = sorted(prompts.groups(), key=lambda rows: min(rank[row] for row in rows))
    order = [row for rows in groups for row in rows]
    batch = {name: _in_order(values, order) for name, values in split_pixel_values_by_grid(batch).items()}
    return [unsplit_pixel_values_by_grid(step) for step in split_tensor_dict(batch, n_steps)]


def in_pieces(batch: dict[str, Any], n_pieces: int) -> list[dict[str, Any]]:
    """A micro-batch as several smaller ones, its rows in their order."""
    batch = {"completion_ids": batch["completion_ids"], **batch}  # the rows are counted by the first field
    pieces = split_tensor_dict(split_pixel_values_by_grid(batch), n_pieces)
    return [unsplit_pixel_values_by_grid(piece) for piece in pieces]


def _in_order(values: Any, order: Sequence[int]) -> Any:
    """A batch's field with its rows in another order; a number stays what it is."""
    if isinstance(values, Tensor):
        return values if values.ndim == 0 else values[order]
    return values and [values[row] for row in order]
