"""TODO"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache

_ROOM = 64  # tokens for which a row's cache is made longer at a time


class GroupCache:
    """Keys and values of prompts, each kept once, and of what their rows have written, by layer.

    rows: (N, W) which row stands where; -1 where none does.
    """

    def __init__(self, prefill: Cache, prompt_mask: Tensor) -> None:
        """prefill: the model's cache of the prompts. prompt_mask: (N, P), False where padded."""
        self.prompt = [(layer.keys, layer.values) for layer in prefill.layers]  # (N, K, P, D)
        self.own: list[tuple[Tensor, Tensor] | None] = [None] * len(prefill.layers)  # (N, K, W, T, D)
        self.bias = torch.zeros(prompt_mask.shape, device=prompt_mask.device).masked_fill(~prompt_mask, -torch.inf)
        self.prompts = torch.arange(len(prompt_mask), device=prompt_mask.device)
        self.rows = torch.empty((len(prompt_mask), 0), dtype=torch.long, device=prompt_mask.device)
        self.n_written = 0

    def arrange(self, live: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Keep these rows alone, in rising order, and their prompts; returns where in `rows` each stands."""
        number, n_rows = prompts.unique(return_inverse=True, return_counts=True)[1:]
        order = number.argsort(stable=True)
        column = torch.empty_like(number)
        column[order] = torch.arange(len(live), device=live.device) - (n_rows.cumsum(0) - n_rows)[number[order]]
        rows = torch.full((len(n_rows), int(n_rows.max())), -1, device=live.device)
        rows[number, column] = live
        self.n_written += 1
        if not torch.equal(rows, self.rows):
            self._move(rows, torch.isin(self.prompts, prompts).nonzero()[:, 0])
        return number, column

    def _move(self, rows: Tensor, kept: Tensor) -> None:
        """kept: which of the prompts stay."""
        if len(kept) < len(self.prompts):
            self.prompt = [tuple(part[kept] for part in layer) for layer in self.prompt]
            self.bias, self.prompts = self.bias[kept], self.prompts[kept]
        if self.own[0] is not None:
            before = (self.rows[kept][:, None] == rows[:, :, None]).int().argmax(-1)  # (N, W); any place for no row
            moved = kept[:, None], before
            self.own = [
                tuple(part.transpose(1, 2)[moved].transpose(1, 2).contiguous() for part in layer) for layer in self.own
            ]
        self.rows = rows

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Add the new tokens' key and value (N, K, W, D), and attend with query (N, H, W, D); returns (N, W, H, D)."""
        if self.n_written % _ROOM == 1:
            room = key.new_zeros((*key.shape[:3], _ROOM, key.shape[3]))
            self.own[layer] = tuple(
                torch.cat([part, room], dim=3) for part in self.own[layer] or (room[..., :0, :],) * 2
            )
        own = [part[..., : self.n_written, :] for part in self.own[layer]]
        own[0][..., -1, :], own[1][..., -1, :] = key, value
        with torch.autocast(query.device.type, enabled=False):  # it would round the scores
            return self._mix(query.float() * scaling, self.prompt[layer], own).to(value.dtype)

    def _mix(self, query: Tensor, prompt: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
        """Attention of a scaled query (N, H, W, D) to (keys, values) of its prompt and of its row; (N, W, H, D)."""
        n_keys, width = own[0].shape[1:3]
        query = query.unflatten(1, (n_keys, -1)).transpose(2, 3).contiguous()  # (N, K, W, H / K, D)
        keys, values = (part.float() for part in prompt)
        own_keys, own_values = (part.float() for part in own)
        of_prompt = query.flatten(2, 3) @ keys.mT + self.bias[:, None, None]  # (N, K, W * H / K, P)
        of_own = (query @ own_keys.mT).flatten(2, 3)  # (N, K, W * H / K, T)
        weights = torch.cat([of_prompt, of_own], dim=-1).softmax(-1)
        to_prompt, to_own = weights.split([of_prompt.shape[-1], of_own.shape[-1]], dim=-1)
        mixed = (to_prompt @ values).unflatten(2, (width, -1)) + to_own.unflatten(2, (width, -1)) @ own_values
        return mixed.transpose(1, 2).flatten(2, 3)
