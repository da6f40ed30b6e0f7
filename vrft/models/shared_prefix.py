"""Shared prompts: which rows have the same prompt, and the packed row in which a model scores them.

TRL computes the prompt, image included, once for each of its G completions. Here one group is one row: the prompt
without its last token, then one suffix per completion. Each suffix starts with the prompt's last token, because that
token predicts the first token of every completion. So each completion token has exactly one position that predicts it:

    TRL, G rows      [ the prompt ? | c1 c2 c3 ]        packed    [ the prompt | ? c1 c2 | ? d1 | ? e1 e2 ]
                     [ the prompt ? | d1 d2    ]        predicts                 c1 c2 c3  d1 d2  e1 e2 e3
                     [ the prompt ? | e1 e2 e3 ]

    which keys a query sees      prompt  c   d   e
               queries: prompt      ◣                     one causal attention
                             c      ■    ◣                G in parallel: all keys of the prompt, then the suffix's own,
                             d      ■        ◣            causal from the bottom right; no suffix sees another
                             e      ■            ◣

Position ids of a suffix are those of TRL's row: they start at the last prompt token's position. A row holds several
groups in a sequence, so that neither prompts nor completions are padded. Log probabilities, loss and gradients equal
TRL's to float32 rounding. One forward stays one forward, which gradient checkpointing, DDP and ZeRO-3 need.

B: rows (completions), P: prompt tokens, C: completion tokens, L: tokens of the packed row, N: prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from vrft.models.attention import Suffixes


@dataclass(frozen=True)
class PackedRow:
    """All groups of a batch as one row.

    input_ids: (1, L). position_ids: (3, 1, L). labels: (1, L) the token that each position predicts; -100 in prompts.
    place: (B, C) index in the row of the position that predicts each completion token; -1 where none is scored.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    place: Tensor
    groups: list[Suffixes]

    def unpack(self, values: Tensor) -> Tensor:
        """Values by completion token (B, C), from values by position of the row (1, L); 0 where none is scored."""
        return torch.where(self.place >= 0, values[0][self.place.clamp(min=0)], 0.0)


@dataclass(frozen=True)
class Prompts:
    """The prompts of B rows, padded on the left.

    ids, mask: (B, P). token_types: (B, P), 1 for image tokens. pixels: of each row, the patches of its images. grids:
    of each row, (images, 3) the number of patches in time, height and width. The last three are None without images.
    """

    ids: Tensor
    mask: Tensor
    token_types: Tensor | None = None
    pixels: Sequence[Tensor] | None = None
    grids: Sequence[Tensor] | None = None

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor, fields: Mapping[str, Tensor], n_images: Sequence[int] | None) -> Prompts:
        """fields: the processor's `mm_token_type_ids`, `pixel_values`, `image_grid_thw`. n_images: (B,), by row."""
        if fields.get("pixel_values") is None:
            return cls(ids, mask)
        grids = fields["image_grid_thw"].split(list(n_images))
        pixels = fields["pixel_values"].split([int(grid.prod(-1).sum()) for grid in grids])
        return cls(ids, mask, fields["mm_token_type_ids"][:, : ids.shape[1]], pixels, grids)

    def groups(self) -> list[list[int]]:
        """Row indices, grouped by prompt (same tokens, mask and patches), in the order of first appearance."""
        # Tokens alone are not enough: the same question about two images of one size has the same tokens.
        groups: list[list[int]] = []
        by_tokens: dict[tuple, list[list[int]]] = defaultdict(list)
        for row, key in enumerate(map(tuple, torch.where(self.mask.bool(), self.ids, -1).tolist())):
            group = next((group for group in by_tokens[key] if self._same_images(group[0], row)), None)
            if group is None:
                groups.append([row])
                by_tokens[key].append(groups[-1])
            else:
                group.append(row)
        return groups

    def _same_images(self, one: int, other: int) -> bool:
        return self.pixels is None or (
            torch.equal(self.grids[one], self.grids[other]) and torch.equal(self.pixels[one], self.pixels[other])
        )

    def inputs(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The model's inputs for these rows."""
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
    """The transformers model without PEFT's wrapper; the adapter's layers stay active."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def rotary_positions(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Position ids of prompts, (3, N, P) in time, height and width, computed by the model's own function."""
    if "image_grid_thw" not in inputs:
        return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    return model.base_model.get_rope_index(**{name: inputs[name] for name in names})[0]


def pack(
    input_ids: Tensor, attention_mask: Tensor, n_completion: int, groups: Sequence[Sequence[int]], positions: Tensor
) -> PackedRow:
    """The groups as one row.

    input_ids, attention_mask: (B, P + n_completion), prompts padded on the left, completions on the right.
    groups: N lists of the rows to score, one list per prompt. positions: (3, N, P) position ids of the prompts.
    """
    n_prompt = input_ids.shape[1] - n_completion
    # A completion that is masked out keeps one token: an empty suffix has no query.
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
        # A suffix reads one token earlier than it predicts: the prompt's last token, then all but its own last one.
        read = torch.cat([prompt[-1:].expand(len(rows), 1), completions[:, :-1]], dim=1)
        # (G, C) index in the row: after the prompt and the suffixes before. Padding repeats the last token's index.
        place = start + n_prefix + length.cumsum(0) - length + torch.minimum(offset, length - 1)
        ids += [prompt[:-1], read[is_token]]
        labels += [torch.full_like(prompt[:-1], -100), completions[is_token]]
        # All suffixes restart at the position of the prompt's last token, as if each stood alone behind the prompt.
        rotary += [position[:, :-1], position[:, -1:] + offset[is_token]]
        place_of_row[rows, : offset.shape[1]] = torch.where(is_token, place, -1)
        suffixes.append(Suffixes(start, n_prefix, place, is_token))
        start += n_prefix + int(length.sum())
    return PackedRow(
        torch.cat(ids)[None], torch.cat(rotary, dim=1)[:, None], torch.cat(labels)[None], place_of_row, suffixes
    )


def in_chunks(groups: Sequence[Sequence[int]], n_rows: int) -> Iterator[list[Sequence[int]]]:
    """Yield lists of groups with at most `n_rows` rows together. Only a group with more rows is split.

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
