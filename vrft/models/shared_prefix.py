"""A prompt computed once for all its completions: which rows share one, and the packed row that a model scores.

Stock scoring computes the prompt, image included, once for each of its G completions. Here a group is one row: the
prompt without its last token, then for each completion a suffix that begins with that token. Every completion token
thus has a position of its own that predicts it, and no log probability is computed twice:

    stock, G rows    [ the prompt ? | c1 c2 c3 ]        packed    [ the prompt | ? c1 c2 | ? d1 | ? e1 e2 ]
                     [ the prompt ? | d1 d2    ]        predicts                 c1 c2 c3  d1 d2  e1 e2 e3
                     [ the prompt ? | e1 e2 e3 ]

    who looks at whom      keys: prompt  c   d   e
               queries: prompt      ◣                     one causal attention
                             c      ■    ◣                G in parallel: keys of the prompt, then the own suffix,
                             d      ■        ◣            causal from the bottom right; no suffix sees another
                             e      ■            ◣

A suffix takes the positions that its row would have: the last prompt token's, then onwards. Several groups stand one
behind the other in one row, so that neither prompts nor completions are padded. The result equals TRL's to float32
rounding, gradients included, and one forward remains one forward: for gradient checkpointing, DDP and ZeRO-3.

B: rows (completions), P: prompt tokens, C: completion tokens, L: tokens of the packed row, H: heads, D: their width.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from vrft.models.rollout import GroupCache

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


@dataclass(frozen=True)
class PackedRow:
    """All groups of a batch as one row.

    input_ids (1, L); position_ids (3, 1, L); labels (1, L), the token that each position predicts, -100 in prompts;
    place (B, C), which position predicts the completion's token, -1 where none is scored.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    place: Tensor
    groups: list[Suffixes]

    def unpack(self, values: Tensor) -> Tensor:
        """(1, L) by position of the row -> (B, C) by completion token, 0 where none is scored."""
        return torch.where(self.place >= 0, values[0][self.place.clamp(min=0)], 0.0)


@dataclass(frozen=True)
class Prompts:
    """The prompts of B rows, padded on the left.

    ids, mask: (B, P). token_types: (B, P), 1 for image tokens. pixels, grids: by row, the patches of its images, and
    (images, 3) how many there are in time, height and width. The last three are None for prompts without images.
    """

    ids: Tensor
    mask: Tensor
    token_types: Tensor | None = None
    pixels: Sequence[Tensor] | None = None
    grids: Sequence[Tensor] | None = None

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor, fields: Mapping[str, Tensor], n_images: Sequence[int] | None) -> Prompts:
        """fields: as the processor returns them (`mm_token_type_ids`, `pixel_values`, `image_grid_thw`). n_images: by
        row."""
        if fields.get("pixel_values") is None:
            return cls(ids, mask)
        grids = fields["image_grid_thw"].split(list(n_images))
        pixels = fields["pixel_values"].split([int(grid.prod(-1).sum()) for grid in grids])
        return cls(ids, mask, fields["mm_token_type_ids"][:, : ids.shape[1]], pixels, grids)

    def groups(self) -> list[list[int]]:
        """The rows that have the very same prompt, in order of first appearance: same tokens, mask and patches.

        Rows that ask the same about different images are different prompts.
        """
        groups: list[list[int]] = []
        alike: dict[tuple, list[list[int]]] = defaultdict(list)
        for row, key in enumerate(map(tuple, torch.where(self.mask.bool(), self.ids, -1).tolist())):
            group = next((group for group in alike[key] if self._same_images(group[0], row)), None)
            if group is None:
                groups.append([row])
                alike[key].append(groups[-1])
            else:
                group.append(row)
        return groups

    def _same_images(self, one: int, other: int) -> bool:
        return self.pixels is None or (
            torch.equal(self.grids[one], self.grids[other]) and torch.equal(self.pixels[one], self.pixels[other])
        )

    def inputs(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """What a model takes for these rows."""
        fields = {"input_ids": self.ids[rows], "attention_mask": self.mask[rows]}
        if self.pixels is None or not any(len(self.pixels[row]) for row in rows):
            return fields
        return fields | {
            "mm_token_type_ids": self.token_types[rows],
            "pixel_values": torch.cat([self.pixels[row] for row in rows]),
            "image_grid_thw": torch.cat([self.grids[row] for row in rows]),
        }

    def fault(self) -> str | None:
        """Why these prompts cannot be shared, or None."""
        if (self.mask.sum(1) < 2).any():
            return "a prompt has fewer than 2 tokens"
        if self.token_types is not None and self.token_types[:, -1].any():
            return "a prompt ends in an image"
        return None


def without_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model itself, with the adapter's layers in place if it has one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def model_fault(model: PreTrainedModel) -> str | None:
    """Why no prompt of this model can be shared, or None."""
    attention = model.config.get_text_config()._attn_implementation
    if attention not in SHAREABLE_ATTENTION:
        return f"model.attention={attention}; {' or '.join(SHAREABLE_ATTENTION)} is needed"
    if "sliding_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ()):
        return "the model has layers of sliding attention"
    if not hasattr(model.base_model, "get_rope_index"):
        return f"a {model.config.model_type} is not of the Qwen-VL families"
    return None


def rotary_positions(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Positions in time, height and width of prompts, (3, N, P), as the model itself would give them."""
    if "image_grid_thw" not in inputs:
        return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    return model.base_model.get_rope_index(**{name: inputs[name] for name in names})[0]


def pack(
    input_ids: Tensor, attention_mask: Tensor, n_completion: int, groups: Sequence[Sequence[int]], positions: Tensor
) -> PackedRow:
    """The groups as one row.

    input_ids, attention_mask: (B, P + n_completion), prompts padded on the left, completions on the right. groups: the
    rows to score, by prompt; of a completion that is masked out the first token is scored. positions: (3, N, P) of each
    group's prompt.
    """
    n_prompt = input_ids.shape[1] - n_completion
    lengths = attention_mask[:, n_prompt:].sum(1).clamp(min=1)
    step = torch.arange(n_completion, device=input_ids.device)
    ids, labels, rotary, suffixes, start = [], [], [], [], 0
    place_of_row = torch.full((len(input_ids), n_completion), -1, device=input_ids.device)
    for number, rows in enumerate(groups):
        is_prompt = attention_mask[rows[0], :n_prompt].bool()
        prompt, position = input_ids[rows[0], :n_prompt][is_prompt], positions[:, number][:, is_prompt]
        length, n_prefix = lengths[rows, None], len(prompt) - 1
        offset = step[: int(length.max())].expand(len(rows), -1)
        is_token = offset < length
        completions = input_ids[rows, n_prompt : n_prompt + offset.shape[1]]
        read = torch.cat([prompt[-1:].expand(len(rows), 1), completions[:, :-1]], dim=1)
        place = start + n_prefix + length.cumsum(0) - length + torch.minimum(offset, length - 1)
        ids += [prompt[:-1], read[is_token]]
        labels += [torch.full_like(prompt[:-1], -100), completions[is_token]]
        rotary += [position[:, :-1], position[:, -1:] + offset[is_token]]
        place_of_row[rows, : offset.shape[1]] = torch.where(is_token, place, -1)
        suffixes.append(Suffixes(start, n_prefix, place, is_token))
        start += n_prefix + int(length.sum())
    return PackedRow(
        torch.cat(ids)[None], torch.cat(rotary, dim=1)[:, None], torch.cat(labels)[None], place_of_row, suffixes
    )


def in_chunks(groups: Sequence[Sequence[int]], n_rows: int) -> Iterator[list[Sequence[int]]]:
    """Whole groups, as many as fit into `n_rows` rows; larger groups in parts.

    >>> list(in_chunks([[0, 1], [2], [3, 4, 5]], 3)), list(in_chunks([[0, 1, 2]], 2))
    ([[[0, 1], [2]], [[3, 4, 5]]], [[[0, 1]], [[2]]])
    """
    chunk: list[Sequence[int]] = []
    for rows in groups:
        for part in (rows[start : start + n_rows] for start in range(0, len(rows), n_rows)):
            if sum(map(len, chunk)) + len(part) > n_rows:
                yield chunk
                chunk = []
            chunk.append(part)
    if chunk:
        yield chunk


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
