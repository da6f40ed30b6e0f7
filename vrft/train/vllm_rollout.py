"""GRPO whose completions vLLM writes, by TRL: the images go to it as the policy's own processor resizes them."""

from __future__ import annotations

from trl import GRPOTrainer

from vrft.models.vllm_engine import as_seen, with_one_token_an_image
from vrft.train.resume import Resumable
from vrft.train.shared_prefix import SharedPrefixTrainer


class SeenImages:
    """Mixed into TRL's trainer. TRL sends images as they are in the rows, and vLLM resizes by the checkpoint's limits:
    other pixels, and another number of image tokens than the prompt has. In the process it also sends a place for every
    patch, to which vLLM (0.30) adds its own: N patches became 2 N - 1. A server is told where the images stand."""

    def _generate_single_turn(self, prompt_ids, images, *args, **kwargs):
        seen = {}  # the completions of a prompt have one image
        for image in (image for own in images or () for image in own or ()):
            if id(image) not in seen:
                seen[id(image)] = as_seen(image, self.processing_class)
        if images is not None:
            images = [own and [seen[id(image)] for image in own] for own in images]
            if self.vllm_mode == "colocate":
                token = self.processing_class.image_token_id
                prompt_ids = [with_one_token_an_image(ids, token) for ids in prompt_ids]
        return super()._generate_single_turn(prompt_ids, images, *args, **kwargs)


class ResumableVLLM(Resumable, SeenImages, GRPOTrainer):
    """Completions by vLLM, all else TRL's own path."""


class ResumableSharingVLLM(Resumable, SeenImages, SharedPrefixTrainer):
    """Completions by vLLM; in the loss each prompt is computed once."""
