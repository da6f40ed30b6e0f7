"""The features of a frozen vision tower, computed once for rollout, reference model and policy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def is_vision_frozen(model: PreTrainedModel) -> bool:
    """True if no weight of the vision tower and its projector is trained."""
    return not any(weight.requires_grad for weight in model.base_model.visual.parameters())


class ImageFeatures:
    """The features of each distinct image since the last `clear`. Valid while the tower's weights do not change."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.images: list[tuple[Tensor, Tensor]] = []  # patches (n, values), grid (3,): patches in time, height, width
        self.features: list[tuple[Tensor, ...]] = []  # of each image: (tokens, D), and one more per deepstack layer

    def replace_pixels(self, model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
        """The model's inputs with image features in place of `pixel_values`."""
        if "pixel_values" not in inputs:
            return inputs
        grids = inputs["image_grid_thw"]
        patches = inputs["pixel_values"].split(grids.prod(-1).tolist())
        indices = [self._index(*image) for image in zip(patches, grids, strict=True)]
        if unseen := self.images[len(self.features) :]:
            self._encode(model, *zip(*unseen, strict=True))
        pooled, *deepstack = zip(*(self.features[index] for index in indices), strict=True)
        output = SimpleNamespace(pooler_output=pooled, deepstack_features=deepstack)
        return {name: value for name, value in inputs.items() if name != "pixel_values"} | {
            "mm_encoder_outputs": {"image": output}
        }

    def _index(self, patches: Tensor, grid: Tensor) -> int:
        """The index of an image, by its pixels: the same image arrives in different tensors."""
        for index, image in enumerate(self.images):
            if torch.equal(image[1], grid) and torch.equal(image[0], patches):
                return index
        self.images.append((patches, grid))
        return len(self.images) - 1

    @torch.no_grad()
    def _encode(self, model: PreTrainedModel, patches: tuple[Tensor, ...], grids: tuple[Tensor, ...]) -> None:
        encoded = model.base_model.get_image_features(torch.cat(patches), torch.stack(grids), return_dict=True)
        layers = [encoded.pooler_output, *(getattr(encoded, "deepstack_features", None) or ())]
        self.features += zip(*layers, strict=True)
