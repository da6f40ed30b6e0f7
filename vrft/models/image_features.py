"""What a frozen vision tower makes of images, computed once for all who ask: rollout, reference and policy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def is_vision_frozen(model: PreTrainedModel) -> bool:
    """True if no weight of the vision tower, its projector included, is trained."""
    return not any(weight.requires_grad for weight in model.base_model.visual.parameters())


class ImageFeatures:
    """The features of each distinct image seen since `clear`; valid as long as the tower's weights are."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.images: list[tuple[Tensor, Tensor]] = []  # patches, and how many in time, height and width
        self.features: list[tuple[Tensor, ...]] = []  # by image: one (tokens, D), then one for each deepstack layer

    def stand_in(self, model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
        """A model's inputs with the images' features in place of their pixels."""
        if "pixel_values" not in inputs:
            return inputs
        grids = inputs["image_grid_thw"]
        patches = inputs["pixel_values"].split(grids.prod(-1).tolist())
        numbers = [self._number(*image) for image in zip(patches, grids, strict=True)]
        if unseen := self.images[len(self.features) :]:
            self._encode(model, *zip(*unseen, strict=True))
        pooled, *deepstack = zip(*(self.features[number] for number in numbers), strict=True)
        output = SimpleNamespace(pooler_output=pooled, deepstack_features=deepstack)
        return {name: value for name, value in inputs.items() if name != "pixel_values"} | {
            "mm_encoder_outputs": {"image": output}
        }

    def _number(self, patches: Tensor, grid: Tensor) -> int:
        for number, image in enumerate(self.images):
            if torch.equal(image[1], grid) and torch.equal(image[0], patches):
                return number
        self.images.append((patches, grid))
        return len(self.images) - 1

    @torch.no_grad()
    def _encode(self, model: PreTrainedModel, patches: tuple[Tensor, ...], grids: tuple[Tensor, ...]) -> None:
        encoded = model.base_model.get_image_features(torch.cat(patches), torch.stack(grids), return_dict=True)
        layers = [encoded.pooler_output, *(getattr(encoded, "deepstack_features", None) or ())]
        self.features += zip(*layers, strict=True)
