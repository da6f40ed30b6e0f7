"""The key-value cache of sampling: the keys of each prompt once, and the keys of each row's own tokens.

A step is a rectangle: N prompts, W rows of each. Rows leave the cache when their completion ends. A prompt leaves when
all its rows have ended. W is the largest number of unfinished rows of one prompt.

N: prompts, W: rows of a prompt, P: prompt tokens, T: tokens written, H: heads, K: key heads, D: head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache

_ROOM = 64  # tokens by which a row's cache grows at a time: growing by one copies the whole cache at every step


class GroupCache:
    """Keys and values by layer: of the prompts, stored once each, and of the tokens that their rows have written.

    rows: (N, W) the batch index of the row in each slot; -1 for an empty slot.
    """

    def __init__(self, prefill: Cache, prompt_mask: Tensor) -> None:
        """prefill: the model's cache after the prompts. prompt_mask: (N, P), False for padding."""
        self.prompt = [(layer.keys, layer.values) for layer in prefill.layers]  # (N, K, P, D)
        self.own: list[tuple[Tensor, Tensor] | None] = [None] * len(prefill.layers)  # (N, K, W, T, D)
        self.bias = torch.zeros(prompt_mask.shape, device=prompt_mask.device).masked_fill(~prompt_mask, -torch.inf)
        self.prompts = torch.arange(len(prompt_mask), device=prompt_mask.device)
        self.rows = torch.empty((len(prompt_mask), 0), dtype=torch.long, device=prompt_mask.device)
        self.n_written = 0

    def arrange(self, live: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Keep only these rows and their prompts; returns each row's slot, as indices into `rows`: two of (live,).

        live: batch indices of the unfinished rows, rising. prompts: (live,) the prompt of each.
        """
        number, n_rows = prompts.unique(return_inverse=True, return_counts=True)[1:]
        order = number.argsort(stable=True)
        # A row's column is its rank among the rows of its prompt.
        column = torch.empty_like(number)
        column[order] = torch.arange(len(live), device=live.device) - (n_rows.cumsum(0) - n_rows)[number[order]]
        rows = torch.full((len(n_rows), int(n_rows.max())), -1, device=live.device)
        rows[number, column] = live
        self.n_written += 1
        if not torch.equal(rows, self.rows):
            self._move(rows, torch.isin(self.prompts, prompts).nonzero()[:, 0])
        return number, column

    def _move(self, rows: Tensor, kept: Tensor) -> None:
        """Copy the cache into the new slots. rows: (N, W) as in the class. kept: indices of the prompts that stay."""
        if len(kept) < len(self.prompts):
            self.prompt = [tuple(part[kept] for part in layer) for layer in self.prompt]
            self.bias, self.prompts = self.bias[kept], self.prompts[kept]
        if self.own[0] is not None:
            # (N, W) the old column of each row. An empty slot gets any column: its result is never read.
            before = (self.rows[kept][:, None] == rows[:, :, None]).int().argmax(-1)
            moved = kept[:, None], before
            self.own = [
                tuple(part.transpose(1, 2)[moved].transpose(1, 2).contiguous() for part in layer) for layer in self.own
            ]
        self.rows = rows

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The output (N, W, H, D) for query (N, H, W, D); stores the new tokens' key and value, (N, K, W, D), first."""
        if self.n_written % _ROOM == 1:
            room = key.new_zeros((*key.shape[:3], _ROOM, key.shape[3]))
            self.own[layer] = tuple(
                torch.cat([part, room], dim=3) for part in self.own[layer] or (room[..., :0, :],) * 2
            )
        own = [part[..., : self.n_written, :] for part in self.own[layer]]
        own[0][..., -1, :], own[1][..., -1, :] = key, value
        # Under autocast the scores would be rounded to bfloat16, and sampled tokens would differ from transformers'.
        with torch.autocast(query.device.type, enabled=False):
            return self._attention(query.float() * scaling, self.prompt[layer], own).to(value.dtype)

    def _attention(self, query: Tensor, prompt: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
        """Attention (N, W, H, D) of a scaled query (N, H, W, D). prompt, own: (keys, values) of prompts and of rows."""
        # One softmax over both score blocks. The prompt's keys are never repeated for its W rows: the rows are folded
        # into the query's dimension, so that one matrix product serves all of them. An attention mask over the
        # concatenated keys of all rows would cost W times as many scores.
        n_keys, width = own[0].shape[1:3]
        query = query.unflatten(1, (n_keys, -1)).transpose(2, 3).contiguous()  # (N, K, W, H / K, D)
        keys, values = (part.float() for part in prompt)
        own_keys, own_values = (part.float() for part in own)
        of_prompt = query.flatten(2, 3) @ keys.mT + self.bias[:, None, None]  # (N, K, W * H / K, P)
        of_own = (query @ own_keys.mT).flatten(2, 3)  # (N, K, W * H / K, T)
        weights = torch.cat([of_prompt, of_own], dim=-1).softmax(-1)
        to_prompt, to_own = weights.split([of_prompt.shape[-1], of_own.shape[-1]], dim=-1)
        output = (to_prompt @ values).unflatten(2, (width, -1)) + to_own.unflatten(2, (width, -1)) @ own_values
        return output.transpose(1, 2).flatten(2, 3)
