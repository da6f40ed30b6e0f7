"""A generation's rows split into micro-batches, with the completions of a prompt together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from vrft.models.shared_prefix import Prompts


def micro_batches(batch: dict[str, Any], n_steps: int) -> list[dict[str, Any]]:
    """TRL's batch of a generation, shuffled and split into `n_steps` micro-batches.

    Groups are ordered by the first of their rows in TRL's shuffle of all rows. The shuffle draws the same random
    numbers as TRL's, so that all later draws stay the same.
    """
    prompts = Prompts.of(batch["prompt_ids"], batch["prompt_mask"], batch, batch.get("num_images"))
    rank = torch.randperm(len(prompts.ids)).argsort().tolist()
    groups = sorted(prompts.groups(), key=lambda rows: min(rank[row] for row in rows))
    order = [row for rows in groups for row in rows]
    batch = {name: _in_order(values, order) for name, values in split_pixel_values_by_grid(batch).items()}
    return [unsplit_pixel_values_by_grid(step) for step in split_tensor_dict(batch, n_steps)]


def in_pieces(batch: dict[str, Any], n_pieces: int) -> list[dict[str, Any]]:
    """A micro-batch split into `n_pieces` smaller ones; the rows keep their order."""
    batch = {"completion_ids": batch["completion_ids"], **batch}  # TRL counts the rows by the first field
    pieces = split_tensor_dict(split_pixel_values_by_grid(batch), n_pieces)
    return [unsplit_pixel_values_by_grid(piece) for piece in pieces]


def _in_order(values: Any, order: Sequence[int]) -> Any:
    """A batch's field with its rows in another order; a scalar is returned as it is."""
    if isinstance(values, Tensor):
        return values if values.ndim == 0 else values[order]
    return values and [values[row] for row in order]
