"""A processor that renders, tokenizes and preprocesses each distinct prompt of a batch once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin, Qwen2_5_VLProcessor, Qwen2VLProcessor, Qwen3VLProcessor
from transformers.utils.chat_template_utils import _get_template_variables

KNOWN_PROCESSORS = (Qwen2VLProcessor, Qwen2_5_VLProcessor, Qwen3VLProcessor)
_ARGUMENTS = ("tools", "chat_template", "add_generation_prompt", "continue_final_message")  # that TRL passes


class PromptOnce:
    """Replaces `processor` while TRL prepares one batch, for which it renders each prompt G times, and twice.

    Two images are the same if they are one object, as in the rows that `training_dataset` repeats. Equal images in two
    objects are processed twice, which is slower and never wrong. All other calls go to the processor itself.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor
        self.rendered: dict[str, str] = {}
        self.encoded: dict[tuple, tuple[BatchFeature, Sequence]] = {}  # the images are kept, so that no `id` is reused

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)

    def apply_chat_template(
        self, conversation: list, *, tokenize: bool = False, return_dict: bool = False, **options
    ) -> str | list[str] | BatchFeature:
        """As the processor's own, for one conversation or several; with `tokenize`, the result of calling it."""
        conversations = conversation if isinstance(conversation[0], list) else [conversation]
        # TRL passes these arguments at one of its two calls and leaves them out at the other.
        options = {name: value for name, value in options.items() if value or name not in _ARGUMENTS}
        if not self._knows(conversations, options) or (tokenize and not return_dict):
            return self.processor.apply_chat_template(
                conversation, tokenize=tokenize, return_dict=return_dict, **options
            )
        texts = [self._render(one, options) for one in conversations]
        if tokenize:
            return self(text=texts, images=[_images(one) for one in conversations])
        return texts if conversations is conversation else texts[0]

    def __call__(
        self, images=None, text: Sequence[str] | None = None, *, padding=False, return_tensors=None, **options
    ) -> BatchFeature:
        """As the processor's own: per-token fields as lists, or with `padding` as tensors (B, P) padded on the left."""
        if images is None or text is None or options:
            return self.processor(images=images, text=text, padding=padding, return_tensors=return_tensors, **options)
        rows = [self._encode(one, tuple(own or ())) for one, own in zip(text, images, strict=True)]
        fields = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row[name] for row in rows if name in row]
            if name in ("pixel_values", "image_grid_thw"):
                fields[name] = torch.cat(values)
            elif padding:
                value = self.processor.tokenizer.pad_token_id if name == "input_ids" else 0
                width = max(row.shape[1] for row in values)
                padded = [torch.nn.functional.pad(row, (width - row.shape[1], 0), value=value) for row in values]
                fields[name] = torch.cat(padded)
            else:
                fields[name] = [row[0].tolist() for row in values]
        return BatchFeature(fields)

    def _knows(self, conversations: list[list[dict]], options: dict) -> bool:
        """True for text and images, and options that the template reads; others would go to the processor."""
        template = options.get("chat_template", self.processor.chat_template)
        parts = [part for conversation in conversations for turn in conversation for part in _parts(turn)]
        return (
            isinstance(template, str)
            and options.keys() <= _get_template_variables(template) | set(_ARGUMENTS)
            and "tools" not in options
            and all(part["type"] in ("text", "image") for part in parts)
        )

    def _render(self, conversation: list[dict], options: dict) -> str:
        key = json.dumps([conversation, options], default=lambda other: type(other).__name__)
        if key not in self.rendered:
            self.rendered[key] = self.processor.apply_chat_template(conversation, tokenize=False, **options)
        return self.rendered[key]

    def _encode(self, text: str, images: tuple) -> BatchFeature:
        key = text, *map(id, images)
        if key not in self.encoded:
            fields = self.processor(text=[text], images=[list(images)] if images else None, return_tensors="pt")
            self.encoded[key] = fields, images
        return self.encoded[key][0]


def _images(conversation: list[dict]) -> list:
    return [part["image"] for turn in conversation for part in _parts(turn) if part["type"] == "image"]


def _parts(turn: dict) -> list[dict]:
    return turn["content"] if isinstance(turn["content"], list) else []
