"""Masks from boxes, by a promptable segmentation model of `transformers`, such as SAM (Kirillov et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from transformers import AutoModelForMaskGeneration, AutoProcessor

from vrft.errors import UserError, first_line
from vrft.models.load import require_all_weights


def load_mask_model(path: str, *, device: str = "cpu") -> Callable[[Image, Sequence[float]], np.ndarray]:
    """A function of an RGB image and a box, xyxy in its pixels, that returns the mask, (height, width) of bool.

    path: a folder or a hub name. The model gives one mask per box (no `multimask_output`). Raises `UserError` if the
    model cannot be loaded, or weights are missing.
    """
    careful = {"trust_remote_code": False, "use_safetensors": True, "ignore_mismatched_sizes": True}
    try:
        model, found = AutoModelForMaskGeneration.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, **careful
        )
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(
            f"mask_model={path} cannot be loaded ({first_line(error)}); a folder or a hub name of a "
            "model of masks from boxes with its processor is needed, such as facebook/sam-vit-huge"
        ) from None
    require_all_weights(f"mask_model={path}", **found | {"unexpected_keys": ()})  # SAM 2's file tracks in videos too
    model = model.to(device).eval()

    @torch.no_grad()
    def mask(image: Image, xyxy: Sequence[float]) -> np.ndarray:
        inputs = processor(images=image, input_boxes=[[[float(value) for value in xyxy]]], return_tensors="pt")
        masks = model(**inputs.to(device), multimask_output=False).pred_masks.float().cpu()
        sizes = [inputs[name].cpu() for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        return processor.post_process_masks(masks, *sizes)[0][0, 0].numpy()

    return mask
