"""Prompts and completions outside of a training step: questions and images in, texts out."""

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
from vrft.models.shareable import sharing_fault
from vrft.models.shared_prefix import without_adapter


def chat(question: str, n_images: int) -> list[dict]:
    """One user message, images before the text. TRL builds the same prompt from a question and its images."""
    content = [{"type": "image"}] * n_images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def render_prompt(processor: ProcessorMixin, question: str, n_images: int, response_prefix: str = "") -> str:
    """The prompt as text; the completion begins where it ends.

    response_prefix: the fixed start of the completion. Raises `UserError` if the chat template cannot be rendered from
    the messages alone.
    """
    try:
        text = processor.apply_chat_template(chat(question, n_images), add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise UserError(f"the model's chat template cannot be rendered ({type(error).__name__}: {error})") from None
    return text + response_prefix


def set_thought_opening(processor: ProcessorMixin, *, is_prefilled: bool) -> None:
    """Make the prompt end with `<think>` for `task.thinking=prefilled` (is_prefilled).

    Raises `UserError` if the chat template ends so, but the task is not prefilled: completions would then begin inside
    the thought, and the `format` term would always be 0.
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
    synced_gpus: bool = False,
) -> list[dict]:
    """One completion per question, decoded as one batch: `{"text", "n_tokens", "is_truncated"}` each.

    n_tokens includes the end token. is_truncated: True if `max_new_tokens` came before an end token.
    temperature: 0 is greedy decoding; above 0, torch's global generator draws the tokens. The checkpoint's own top-k,
        top-p and repetition penalty are not used.
    response_prefix: the fixed start of each completion; it is part of `text`, but not of `n_tokens`.
    with_logprobs: greedy decoding only. Adds `token_logprobs`, for each token except the end token: `[end of its
        characters in text, log probability]`.
    synced_gpus: as in transformers. True if the weights are sharded over processes (ZeRO-3): every process then runs
        as many steps as the longest completion of all. False: no process waits, although transformers would under
        ZeRO-3.
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
    greedy_logprobs = _GreedyLogprobs()
    options = {
        "generation_config": _generation_config(model, processor, max_new_tokens, temperature),
        "logits_processor": LogitsProcessorList([greedy_logprobs] if with_logprobs else []),
    }
    base = without_adapter(model)
    # `generate` would take what is not asked for here, such as `num_beams`, from the checkpoint.
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        # The shared loop calls `forward` as often as its own rows need: under ZeRO-3 the other processes would hang.
        if synced_gpus or sharing_fault(model, is_training=False):
            output = model.generate(**inputs, **options, synced_gpus=synced_gpus)
        else:
            output = generate_shared(model.generate, inputs, range(len(prompts)), **options)
    finally:
        base.generation_config = own
        model.train(is_training)
    completion_ids = output[:, inputs["input_ids"].shape[1] :]
    end_ids = torch.tensor(end_token_ids(model, processor), device=output.device)
    completions = [completion_of(ids, end_ids, processor, response_prefix) for ids in completion_ids]
    if with_logprobs:
        by_row = greedy_logprobs.by_row([completion["n_tokens"] for completion in completions])
        for completion, ids, logprobs in zip(completions, completion_ids, by_row, strict=True):
            n_written = completion["n_tokens"] - (not completion["is_truncated"])  # without the end token
            ends = text_ends(ids[:n_written].tolist(), processor.tokenizer, begin=len(response_prefix))
            completion["token_logprobs"] = [[end, logprob] for end, logprob in zip(ends, logprobs, strict=False)]
    return completions


def end_token_ids(model: PreTrainedModel, processor: ProcessorMixin) -> list[int]:
    """The ids of all tokens that end a completion: the tokenizer's, and those of the generation config."""
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
        top_k=50 if temperature == 0 else 0,  # greedy: unused, and any value but the default makes a warning
        top_p=1.0,
        repetition_penalty=1.0,
        suppress_tokens=[model.config.image_token_id],  # a written image token would have no image
        pad_token_id=processor.tokenizer.pad_token_id,
        eos_token_id=end_token_ids(model, processor),
        use_cache=True,
    )


class _GreedyLogprobs(LogitsProcessor):
    """Stores each step's highest log probability, that of the greedy token; the logits do not change.

    It stores one number per step and row. `output_scores` of `generate` would store (steps, rows, vocabulary).
    """

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append(scores.float().amax(-1) - scores.float().logsumexp(-1))
        return scores

    def by_row(self, n_tokens: Sequence[int]) -> list[list[float]]:
        """The log probabilities of each row's tokens, in order. n_tokens: (B,) tokens that each row wrote."""
        rows: list[list[float]] = [[] for _ in n_tokens]
        for n_written, step in enumerate(self.steps):
            # transformers' own loop keeps finished rows in the batch, `generate_shared` drops them.
            is_all = len(step) == len(rows)
            writing = [row for row, n in zip(rows, n_tokens, strict=True) if n > n_written or is_all]
            for row, logprob in zip(writing, step.tolist(), strict=True):
                row.append(logprob)
        return rows


def text_ends(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, begin: int = 0) -> list[int]:
    """The number of characters in the text after each token, plus `begin`.

    A character made of several tokens counts from its first token on.
    """
    # Decoding the whole text after each token is quadratic. A byte-level tokenizer allows decoding from the last whole
    # character on. A piece that ends inside a character decodes to U+FFFD.
    ends, first, written = [], 0, begin
    for n in range(1, len(ids) + 1):
        piece = tokenizer.decode(ids[first:n], skip_special_tokens=True)
        ends.append(written + len(piece))
        if not piece.endswith("\ufffd"):
            first, written = n, ends[-1]
    return ends


def completion_of(ids: torch.Tensor, end_ids: torch.Tensor, processor: ProcessorMixin, response_prefix: str) -> dict:
    """`{"text", "n_tokens", "is_truncated"}` of ids (C,), up to and with the first of `end_ids`."""
    ends = torch.isin(ids, end_ids).nonzero()
    n_tokens = int(ends[0]) + 1 if len(ends) else len(ids)
    text = processor.tokenizer.decode(ids[:n_tokens], skip_special_tokens=True)
    return {"text": response_prefix + text, "n_tokens": n_tokens, "is_truncated": not len(ends)}
