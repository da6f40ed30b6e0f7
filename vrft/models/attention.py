"""TODO"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from vrft.models.group_cache import GroupCache

SHAREABLE_ATTENTION = ("sdpa", "flash_attention_2")


class Suffixes(NamedTuple):
    """One group inside of a packed row.

    start, n_prefix: where the prompt without its last token lies, (1, start : start + n_prefix) of the row. place:
    (G, C) where each suffix's tokens lie in the row; past a suffix's end its last token again. is_token: (G, C) False
    past a suffix's end.
    """

    start: int
    n_prefix: int
    place: Tensor
    is_token: Tensor


def register_attention() -> None:
    """Teach transformers' attention functions to read a packed row; calls without one are passed on untouched."""
    for name in SHAREABLE_ATTENTION:
        known = ALL_ATTENTION_FUNCTIONS[name]
        if getattr(known, "func", None) is not attend:
            AttentionInterface.register(name, functools.partial(attend, base=known, name=name))


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    base: Callable,
    name: str,
    packed_groups: Sequence[Suffixes] | None = None,
    group_cache: GroupCache | None = None,
    **options,
) -> tuple[Tensor, None]:
    """transformers' attention function `name`, which is `base`, that also reads packed rows and a cache by group.

    query: (1, H, L, D); key, value: (1, H of keys, L, D); returns (1, L, H, D). A cache by group takes N prompts in
    place of the 1, and the newest tokens of their W rows in place of L. The vision tower is left to `base`, as its
    attention is not causal.
    """
    if group_cache is not None:
        return group_cache.attend(module.layer_idx, query, key, value, options["scaling"]), None
    if packed_groups is None or options.get("is_causal") is False:
        return base(module, query, key, value, attention_mask, **options)

    def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(…, H, T, D) -> (…, T, H, D)"""
        if name == "sdpa":
            return _causal_sdpa(query, key, value, options).transpose(1, 2)
        return base(module, query, key, value, None, **options)[0]

    mixed = []
    for start, n_prefix, place, is_token in packed_groups:
        prefix = [part[:, :, start : start + n_prefix] for part in (query, key, value)]
        suffix = [part[0][:, place].transpose(0, 1) for part in (query, key, value)]  # (G, H, C, D)
        with_prompt = [
            torch.cat([of_prompt.expand(len(place), -1, -1, -1), own], dim=2)
            for of_prompt, own in zip(prefix[1:], suffix[1:], strict=True)
        ]
        mixed += [causal(*prefix)[0], causal(suffix[0], *with_prompt)[is_token]]
    return torch.cat(mixed)[None], None


def _causal_sdpa(query: Tensor, key: Tensor, value: Tensor, options: Mapping) -> Tensor:
    """Attention of queries that stand at the end of the keys."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    if n_queries == n_keys:
        bias = {"is_causal": True}
    elif query.is_cuda:  # flash attention by its own kernel; elsewhere torch would make a mask of it after all
        bias = {"attn_mask": causal_lower_right(n_queries, n_keys)}
    else:
        ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device)
        bias = {"attn_mask": ones.tril(n_keys - n_queries)}
    return scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=options.get("dropout", 0.0),
        scale=options.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
        **bias,
    )
