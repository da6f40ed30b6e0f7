"""Attention for packed rows (scoring) and for the group cache (sampling), as attention functions of transformers.

A packed row holds groups. A group is one prompt followed by G suffixes, one per completion; see `shared_prefix`. Each
query sees the keys of its prompt and the earlier keys of its own suffix, and nothing else.

G: suffixes, C: tokens of the longest suffix, L: tokens of the row, T: queries, H: heads, D: head width.
"""

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
    """Where one group lies in a packed row.

    start, n_prefix: the prompt without its last token is row[:, start : start + n_prefix].
    place: (G, C) index in the row of each suffix token; padding repeats the index of the last token.
    is_token: (G, C) False for padding.
    """

    start: int
    n_prefix: int
    place: Tensor
    is_token: Tensor


def register_attention() -> None:
    """Replace transformers' attention functions by ones that also read packed rows. Other calls behave as before."""
    # A mask of (L, L) would do the same, but flash attention takes none, and sdpa would lose its fast kernel.
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
    """The output (1, L, H, D) of attention; `base`, transformers' function `name`, computes what is not shared.

    query: (1, H, L, D); key, value: (1, key heads, L, D). With a group cache the shapes are (N, H, W, D): N prompts,
    and the newest token of each of their W rows. The vision tower goes to `base`: its attention is not causal.
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

    outputs = []
    for start, n_prefix, place, is_token in packed_groups:
        prefix = [part[:, :, start : start + n_prefix] for part in (query, key, value)]
        # Padding repeats a suffix's last token. It comes after every real token, so no real query sees it.
        suffix = [part[0][:, place].transpose(0, 1) for part in (query, key, value)]  # (G, H, C, D)
        # `expand` copies nothing, but `cat` does: the prompt's keys and values exist G times here.
        with_prompt = [
            torch.cat([of_prompt.expand(len(place), -1, -1, -1), own], dim=2)
            for of_prompt, own in zip(prefix[1:], suffix[1:], strict=True)
        ]
        # [is_token] drops padding and restores the row's order: prompt, then one suffix after the other.
        outputs += [causal(*prefix)[0], causal(suffix[0], *with_prompt)[is_token]]
    return torch.cat(outputs)[None], None


def _causal_sdpa(query: Tensor, key: Tensor, value: Tensor, options: Mapping) -> Tensor:
    """Causal attention where the queries are the last of the keys: query i sees all but the last T - 1 - i keys."""
    # `is_causal` alone aligns the mask to the top left: each query would see only the first keys of its prompt.
    n_queries, n_keys = query.shape[2], key.shape[2]
    if n_queries == n_keys:
        bias = {"is_causal": True}
    elif query.is_cuda:  # selects the flash kernel; a CPU has none, and FlopCounterMode cannot count this bias there
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
