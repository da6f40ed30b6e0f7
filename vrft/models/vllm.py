"""Completions by vLLM, with the prompts and results of `generate`.

vLLM resizes images by the checkpoint's own pixel limits, which often differ from the config's. So images are resized
before they go to vLLM. It then finds nothing to resize, and the model sees the same pixels as in transformers.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from transformers import GenerationConfig, ProcessorMixin
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from vrft.errors import UserError, first_line
from vrft.models.generate import completion_of, render_prompt, text_ends

_NEVER = -100.0  # logit bias of a token that must not be sampled


def as_seen(image: Image, processor: ProcessorMixin) -> Image:
    """The image at the size that the model sees, resized by the processor's own function."""
    resizer = processor.image_processor
    pixels = resizer.resize(
        pil_to_tensor(image.convert("RGB"))[None],
        size=SizeDict(**dict(resizer.size)),
        resample=resizer.resample,
        factor=resizer.patch_size * resizer.merge_size,
    )
    return to_pil_image(pixels[0])


def collapse_image_tokens(prompt_ids: Sequence[int], image_token_id: int) -> list[int]:
    """The ids with each run of image tokens reduced to one token. vLLM expands it to the number of patches itself.

    >>> collapse_image_tokens([1, 9, 9, 9, 2, 9, 9], 9)
    [1, 9, 2, 9]
    """
    kept = zip(prompt_ids, [None, *prompt_ids[:-1]], strict=True)
    return [token for token, before in kept if token != image_token_id or before != image_token_id]


def needs_no_resize(seen_wh: Sequence[int], processor: ProcessorMixin) -> bool:
    """True if the checkpoint's own processor does not resize an image of this (width, height)."""
    resizer = processor.image_processor
    width, height = seen_wh
    limits = {"min_pixels": resizer.size["shortest_edge"], "max_pixels": resizer.size["longest_edge"]}
    return smart_resize(height, width, factor=resizer.patch_size * resizer.merge_size, **limits) == (height, width)


class VLLMEngine:
    """A checkpoint loaded in vLLM; its `generate_texts` is `vrft.models.generate.generate_texts` by vLLM."""

    device = torch.device("cpu")  # where the prompts are prepared; vLLM moves them to its own device

    def __init__(
        self,
        path: str,
        *,
        dtype: str,
        image_token_id: int,
        max_model_len: int,
        gpu_memory_utilization: float,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """max_model_len: tokens of prompt and completion. Raises `UserError` if vLLM cannot load the checkpoint."""
        from vllm import LLM

        for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}.items():
            os.environ.setdefault(name, str(value))
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
        self.end_ids = _end_ids(path, revision)
        self.image_token_id = image_token_id
        try:
            self.llm = LLM(
                model=path,
                revision=revision,
                trust_remote_code=trust_remote_code,
                dtype=dtype,
                max_model_len=max_model_len,
                gpu_memory_utilization=gpu_memory_utilization,
                distributed_executor_backend="external_launcher",  # in this process: torchrun has started one per GPU
                generation_config="vllm",  # ignore the checkpoint's own top-k and repetition penalty
            )
        except (ValueError, RuntimeError, OSError) as error:
            if "out of memory" in str(error):
                raise
            raise UserError(f"vLLM cannot load model.path={path}: {first_line(error)}") from None

    def generate_texts(
        self,
        processor: ProcessorMixin,
        questions: Sequence[str],
        images: Sequence[Sequence[Image]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        response_prefix: str = "",
        with_logprobs: bool = False,
    ) -> list[dict[str, Any]]:
        """One completion per question. Above temperature 0 each question has its own seed, derived from torch's."""
        from vllm import SamplingParams

        prompts, sampling_params = [], []
        for number, (question, row_images) in enumerate(zip(questions, images, strict=True)):
            prompt = {"prompt": render_prompt(processor, question, len(row_images), response_prefix)}
            if row_images:
                prompt["multi_modal_data"] = {"image": [as_seen(image, processor) for image in row_images]}
            prompts.append(prompt)
            sampling_params.append(
                SamplingParams(
                    temperature=temperature,
                    top_p=1.0,
                    repetition_penalty=1.0,
                    max_tokens=max_new_tokens,
                    seed=(torch.initial_seed() + number) % 2**32 if temperature else None,
                    stop_token_ids=self._ends(processor),
                    logit_bias={self.image_token_id: _NEVER},
                    logprobs=0 if with_logprobs else None,
                )
            )
        outputs = self.llm.generate(prompts, sampling_params, use_tqdm=False)
        ends = torch.tensor(self._ends(processor))
        completions = []
        for output in (one.outputs[0] for one in outputs):
            ids = torch.tensor(output.token_ids)
            completion = completion_of(ids, ends, processor, response_prefix)
            if with_logprobs:
                completion["token_logprobs"] = _token_logprobs(output, completion, processor, len(response_prefix))
            completions.append(completion)
        return completions

    def _ends(self, processor: ProcessorMixin) -> list[int]:
        return sorted({processor.tokenizer.eos_token_id, *self.end_ids})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end_ids(path: str, revision: str | None) -> list[int]:
    """The end tokens in the checkpoint's generation config; empty if it has none."""
    try:
        ends = GenerationConfig.from_pretrained(path, revision=revision).eos_token_id
    except OSError:
        return []
    return [ends] if isinstance(ends, int) else list(ends or [])


def _token_logprobs(output: Any, completion: dict, processor: ProcessorMixin, begin: int) -> list[list]:
    """As in `generate_texts`: for each token except the end token `[end of its characters, log probability]`."""
    n_written = completion["n_tokens"] - (not completion["is_truncated"])
    ids = list(output.token_ids)[:n_written]
    logprobs = [at[token].logprob for at, token in zip(output.logprobs, ids, strict=False)]
    return [list(pair) for pair in zip(text_ends(ids, processor.tokenizer, begin=begin), logprobs, strict=True)]
