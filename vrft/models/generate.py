"""Questions and images in, completions out: the one way in which vrft prompts a model outside of a training step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jinja2 import TemplateError
from PIL.Image import Image
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from vrft.errors import UserError
from vrft.models.rollout import generate_shared
from vrft.models.shared_prefix import model_fault, without_adapter


def chat(question: str, n_images: int) -> list[dict]:
    """One user turn, images in front of the text: the prompt that TRL builds from a question and its images."""
    content = [{"type": "image"}] * n_images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def render_prompt(processor: ProcessorMixin, question: str, n_images: int, response_prefix: str = "") -> str:
    """The prompt as text, ending where the model begins to write (after `response_prefix`).

    Raises `UserError` where the model's chat template cannot be rendered, or reaches for more than the messages.
    """
    try:
        text = processor.apply_chat_template(chat(question, n_images), add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise UserError(f"the model's chat template cannot be rendered ({type(error).__name__}: {error})") from None
    return text + response_prefix


def set_thought_opening(processor: ProcessorMixin, *, is_prefilled: bool) -> None:
    """Let the prompt end with `<think>` if a task wants it (`task.thinking=prefilled`).

    Raises `UserError` if the chat template already ends so and the task does not know: completions would then begin
    inside a thought, and no format would be paid.
    """
    is_opened = render_prompt(processor, "?", 1).rstrip().endswith("<think>")
    if is_opened and not is_prefilled:
        raise UserError(
            "the model's chat template ends every prompt with <think>, so completions begin inside the thought; "
            "choose task.thinking=prefilled"
        )
    if is_prefilled and not is_opened:
        processor.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"


@torch.no_grad()
def generate_texts(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Sequence[str],
    images: Sequence[Sequence[Image]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    response_prefix: str = "",
    with_logprobs: bool = False,
    in_step: bool = False,
) -> list[dict]:
    """One completion a question, as one batch: `{"text", "n_tokens", "is_truncated"}` each.

    temperature: 0 decodes greedily; above, tokens are drawn with torch's global generator.
    response_prefix: text that stands already written at the start of each completion; it is part of `text`, not of
    `n_tokens`. n_tokens counts the end token; is_truncated is True if `max_new_tokens` came first. The checkpoint's
    own top-k, top-p and repetition penalty are not used.
    with_logprobs: for greedy decoding, also `token_logprobs`: for each token but the end token `[where its characters
    end in text, its log probability]`.
    in_step: True where the weights lie apart on several processes (ZeRO-3): all of them then write a token at a time,
    to the end of the longest. Else nobody waits, also where transformers would.
    """
    prompts = [
        render_prompt(processor, question, len(row_images), response_prefix)
        for question, row_images in zip(questions, images, strict=True)
    ]
    flat_images = [image for row_images in images for image in row_images] or None
    inputs = processor(text=prompts, images=flat_images, padding=True, padding_side="left", return_tensors="pt")
    inputs = inputs.to(model.device)
    is_training = model.training
    model.eval()
    highest = _HighestLogprob()
    options = {
        "generation_config": _generation_config(model, processor, max_new_tokens, temperature),
        "logits_processor": LogitsProcessorList([highest] if with_logprobs else []),
    }
    if in_step or model_fault(without_adapter(model)):
        output = model.generate(**inputs, **options, synced_gpus=in_step)
    else:
        output = generate_shared(model.generate, inputs, range(len(prompts)), **options)
    model.train(is_training)
    completion_ids = output[:, inputs["input_ids"].shape[1] :]
    end_ids = torch.tensor(end_token_ids(model, processor), device=output.device)
    completions = [completion_of(ids, end_ids, processor, response_prefix) for ids in completion_ids]
    if with_logprobs:
        by_row = highest.by_row([completion["n_tokens"] for completion in completions])
        for completion, ids, logprobs in zip(completions, completion_ids, by_row, strict=True):
            n_written = completion["n_tokens"] - (not completion["is_truncated"])
            ends = text_ends(ids[:n_written].tolist(), processor.tokenizer, begin=len(response_prefix))
            completion["token_logprobs"] = [[end, logprob] for end, logprob in zip(ends, logprobs, strict=False)]
    return completions


def end_token_ids(model: PreTrainedModel, processor: ProcessorMixin) -> list[int]:
    """Every token that ends a completion: the tokenizer's end token and those that the checkpoint names."""
    declared = model.generation_config.eos_token_id or []
    declared = [declared] if isinstance(declared, int) else declared
    return sorted({processor.tokenizer.eos_token_id, *declared})


def _generation_config(
    model: PreTrainedModel, processor: ProcessorMixin, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    sampling = (
        {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False, "temperature": 1.0}
    )
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        **sampling,
        top_k=50 if temperature == 0 else 0,  # unused when greedy; its default value keeps transformers from warning
        top_p=1.0,
        repetition_penalty=1.0,
        suppress_tokens=[model.config.image_token_id],
        pad_token_id=processor.tokenizer.pad_token_id,
        eos_token_id=end_token_ids(model, processor),
        use_cache=True,
    )


class _HighestLogprob(LogitsProcessor):
    """Leaves the logits as they are, and keeps each step's highest log probability: that of the greedy token.

    A step keeps one number for each row that still writes; `generate` itself would keep (steps, rows, vocabulary).
    """

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append(scores.float().amax(-1) - scores.float().logsumexp(-1))
        return scores

    def by_row(self, n_tokens: Sequence[int]) -> list[list[float]]:
        """By row, of each step in turn; row i wrote `n_tokens[i]` tokens."""
        rows: list[list[float]] = [[] for _ in n_tokens]
        for n_written, step in enumerate(self.steps):
            is_all = len(step) == len(rows)  # transformers' own loop goes on with rows that have ended
            writing = [row for row, n in zip(rows, n_tokens, strict=True) if n > n_written or is_all]
            for row, logprob in zip(writing, step.tolist(), strict=True):
                row.append(logprob)
        return rows


def text_ends(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, begin: int = 0) -> list[int]:
    """How many characters stand written after each token, from `begin` on; a character of several tokens counts from
    the first.

    Pieces are decoded from the last whole character on, as a byte-level tokenizer's text is that of its pieces.
    """
    ends, first, written = [], 0, begin
    for n in range(1, len(ids) + 1):
        piece = tokenizer.decode(ids[first:n], skip_special_tokens=True)
        ends.append(written + len(piece))
        if not piece.endswith("\ufffd"):
            first, written = n, ends[-1]
    return ends


def completion_of(ids: torch.Tensor, end_ids: torch.Tensor, processor: ProcessorMixin, response_prefix: str) -> dict:
    """What was written up to the first of `end_ids`, (C,) tokens: `{"text", "n_tokens", "is_truncated"}`."""
    ends = torch.isin(ids, end_ids).nonzero()
    n_tokens = int(ends[0]) + 1 if len(ends) else len(ids)
    text = processor.tokenizer.decode(ids[:n_tokens], skip_special_tokens=True)
    return {"text": response_prefix + text, "n_tokens": n_tokens, "is_truncated": not len(ends)}
