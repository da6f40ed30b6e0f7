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

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from vrft.models.attention import SHAREABLE_ATTENTION, Suffixes

if TYPE_CHECKING:
    pass


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
