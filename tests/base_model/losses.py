"""The tiny model's three pre-training losses, and a fast forward pass for batches of equal-sized images.

Next-token prediction alone does not bind names to places in a model this small within minutes, so two guiding losses
say where to look: the image tokens must name the digit on them, and chosen attention heads must look at the named
digit. Legend: `B` examples, `T` tokens, `H` heads, 16 cells = image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from base_model.examples import BACKGROUND, N_CELLS, Batch
from torch import nn
from torch.nn import functional
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

CELL_WEIGHT, ATTENTION_WEIGHT = 0.5, 0.3
LEAST_MASS = 1e-4


@dataclass(frozen=True)
class Losses:
    """The terms, unweighted, and their weighted sum."""

    text: torch.Tensor
    cells: torch.Tensor
    attention: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        return self.text + CELL_WEIGHT * self.cells + ATTENTION_WEIGHT * self.attention


class FastForward:
    """The model's forward pass for images of one size: patches embedded by one product, attention over the batch.

    The stock classes embed each patch by a convolution and loop over images in Python. Same result to float32 rounding
    (`tests/base_model/test_tiny.py`).
    """

    def __init__(self, model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor) -> None:
        self.model, self.visual = model, model.model.visual
        settings = processor.image_processor
        self.patch, self.merge = settings.patch_size, settings.merge_size
        self.mean = torch.tensor(settings.image_mean) * 255
        self.std = torch.tensor(settings.image_std) * 255

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features (B, 16, width) of pixels (B, H, W, 3) uint8."""
        patches, grid = self._patches(pixels)
        embed = self.visual.patch_embed.proj.weight.flatten(1)
        hidden = functional.linear(patches, embed)
        cos, sin = self.visual.rotary_pos_emb(hidden, self._positions(*grid))
        for block in self.visual.blocks:
            hidden = hidden + self._attend(block.attn, block.norm1(hidden), cos, sin)
            hidden = hidden + block.mlp(block.norm2(hidden))
        n_images, n_patches, _ = hidden.shape
        return self.visual.merger(hidden).view(n_images, n_patches // self.merge**2, -1)

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return last hidden states (B, T, width), image features (B, 16, width), attentions (B, H, T, T) by layer."""
        features = self.image_features(batch.pixels)
        embeds = self.model.model.language_model.embed_tokens(batch.ids)
        start = batch.image_start
        embeds = torch.cat([embeds[:, :start], features, embeds[:, start + N_CELLS :]], dim=1)
        output = self.model.model.language_model(
            inputs_embeds=embeds, position_ids=self._text_positions(batch), use_cache=False, output_attentions=True
        )
        return output.last_hidden_state, features, output.attentions

    def _patches(self, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return normalised patches (B, n, 3 * 2 * patch * patch) in the order of the image processor, and the grid."""
        normal = ((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2)
        n_images, channels, height, width = normal.shape
        rows, columns = height // self.patch, width // self.patch
        blocks = normal.reshape(
            n_images,
            channels,
            rows // self.merge,
            self.merge,
            self.patch,
            columns // self.merge,
            self.merge,
            self.patch,
        ).permute(0, 2, 5, 3, 6, 1, 4, 7)
        both_frames = blocks.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
        return both_frames.reshape(n_images, rows * columns, -1), (rows, columns)

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)
        blocks = grid.reshape(rows // self.merge, self.merge, columns // self.merge, self.merge, 2)
        return blocks.transpose(1, 2).reshape(-1, 2)

    @staticmethod
    def _attend(attention: nn.Module, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        n_images, n_patches, width = hidden.shape
        qkv = attention.qkv(hidden).view(n_images, n_patches, 3, attention.num_heads, -1)
        query, key, value = qkv.unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        mixed = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
        return attention.proj(mixed.transpose(1, 2).reshape(n_images, n_patches, width))

    def _text_positions(self, batch: Batch) -> torch.Tensor:
        """Return M-RoPE positions (3, B, T), equal for all examples, as the image stands at the same place in each."""
        side = int(N_CELLS**0.5)
        start, length = batch.image_start, batch.ids.shape[1]
        before = torch.arange(start).expand(3, -1)
        time, row, column = torch.zeros(N_CELLS, dtype=torch.long), *np.divmod(np.arange(N_CELLS), side)
        image = start + torch.stack([time, torch.from_numpy(row), torch.from_numpy(column)])
        after = (start + side + torch.arange(length - start - N_CELLS)).expand(3, -1)
        return torch.cat([before, image, after], dim=1)[:, None].expand(-1, len(batch.ids), -1)


def pretraining_losses(forward: FastForward, batch: Batch, *, name_ids: list[int], background: torch.Tensor) -> Losses:
    """Return the losses of a batch. name_ids: tokens of the digits' names; background: logit of an empty cell."""
    hidden, features, attentions = forward(batch)
    return Losses(
        text=_text_loss(forward.model, hidden, batch),
        cells=_cell_loss(forward.model, features, batch, name_ids, background),
        attention=_attention_loss(attentions, batch),
    )


def _text_loss(model: Qwen2VLForConditionalGeneration, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the weighted cross-entropy of the completions, a mean over examples."""
    predicts = batch.weights > 0
    logits = model.lm_head(hidden[predicts])
    losses = functional.cross_entropy(logits, batch.ids.roll(-1, dims=1)[predicts], reduction="none")
    return (losses * batch.weights[predicts]).sum() / len(batch.ids)


def _cell_loss(
    model: Qwen2VLForConditionalGeneration,
    features: torch.Tensor,
    batch: Batch,
    name_ids: list[int],
    background: torch.Tensor,
) -> torch.Tensor:
    """Return the cross-entropy of naming the digit on each image token, by likeness to the names' embeddings."""
    names = model.model.language_model.embed_tokens.weight[name_ids]
    logits = features @ names.T
    logits = torch.cat([logits, background.expand(*logits.shape[:2], 1)], dim=-1)
    return functional.cross_entropy(logits.reshape(-1, BACKGROUND + 1), batch.cell_classes.reshape(-1))


def _attention_loss(attentions: tuple[torch.Tensor, ...], batch: Batch) -> torch.Tensor:
    """Return the sum of -log(attention mass where it belongs), each a mean over the positions it concerns.

    Layer 2, heads 1-2: from a digit's name to its cells. Layer 3, heads 1-2: from a position that predicts a
    coordinate to the cells of its box. Layers 2 and 3, heads 3-4: from there to the asked digit's name.
    """
    second, third = attentions[1], attentions[2]
    image = slice(batch.image_start, batch.image_start + N_CELLS)
    return (
        _missing_mass(second[:, :2, :, image], batch.token_cells)
        + _missing_mass(third[:, :2, :, image], batch.target_cells)
        + _missing_mass(second[:, 2:], batch.target_names)
        + _missing_mass(third[:, 2:], batch.target_names)
    )


def _missing_mass(attention: torch.Tensor, belongs: torch.Tensor) -> torch.Tensor:
    """Return the mean of -log(mass) over positions with a goal; attention (B, 2, T, K), belongs (B, T, K) bool."""
    example, position = belongs.any(dim=-1).nonzero(as_tuple=True)
    if len(example) == 0:
        return attention.new_zeros(())
    mass = (attention[example, :, position] * belongs[example, position, None]).sum(dim=-1)
    return -torch.log(mass + LEAST_MASS).mean()
