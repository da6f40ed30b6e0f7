"""Sampling in which each prompt is computed and cached once for all its rows, and finished rows leave the batch.

A step feeds one token of every unfinished row, as a rectangle (N prompts, W rows of a prompt). A row attends to the
keys of its prompt, which are stored once, and to its own keys, in one softmax; see `group_cache`.

The same seed gives the same tokens as transformers' `generate` in float32, except for ties closer than its rounding.
For this, noise is drawn for the whole batch at every step, finished rows included.

N: prompts, P: prompt tokens, B: rows, V: vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from vrft.models.attention import register_attention
from vrft.models.group_cache import GroupCache


@torch.no_grad()
def generate_shared(
    generate: Callable[..., Tensor],
    inputs: Mapping[str, Any],
    prompt_of_row: Sequence[int],
    *,
    generation_config: GenerationConfig,
    logits_processor: LogitsProcessorList | None = None,
) -> Tensor:
    """Prompt and completion of every row, (B, P + tokens of the longest completion), padded as `generate` does.

    generate: the model's `generate`. inputs: the processor's output for the N distinct prompts, padded on the left;
    each ends with a text token. prompt_of_row: (B,) the index of each row's prompt.
    """
    register_attention()
    config = copy.deepcopy(generation_config)
    # These do not change a token. A checkpoint's own settings may ask for a cache that the loop cannot use.
    config.update(use_cache=True, cache_implementation="dynamic")
    return generate(
        **inputs,
        generation_config=config,
        logits_processor=logits_processor,
        custom_generate=_decode,
        prompt_of_row=torch.as_tensor(prompt_of_row, device=inputs["input_ids"].device),
    )


def _decode(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    prompt_of_row: Tensor,
    **inputs,
) -> Tensor:
    """The decoding loop; `model.generate` has prepared its arguments. input_ids: (N, P)."""
    n_prompt, device = input_ids.shape[1], input_ids.device
    prompt_mask = inputs["attention_mask"]
    prompt_mask = torch.ones_like(input_ids) if prompt_mask is None else prompt_mask  # None if nothing is padded
    # The last prompt token is text, so its position is the same on all three axes (time, height, width). It is not the
    # number of tokens before it: an image takes fewer positions than tokens.
    first_position = inputs["position_ids"][1, :, -1] + 1
    prefill = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **inputs)
    # Not `model(...)`: under ZeRO-3 its hooks are collective, and each process has its own number of steps here.
    forward = model.forward
    logits = forward(**prefill, return_dict=True).logits[prompt_of_row, -1]  # (B, V)
    cache = GroupCache(inputs["past_key_values"], prompt_mask.bool())
    n_new = generation_config.max_length - n_prompt
    pad = generation_config.pad_token_id
    sequences = torch.cat([input_ids[prompt_of_row], input_ids.new_full((len(prompt_of_row), n_new), pad)], dim=1)
    live = torch.arange(len(prompt_of_row), device=device)
    for n_written in range(1, n_new + 1):
        length = n_prompt + n_written
        # A copy: logits processors write in place.
        scores = logits_processor(sequences[live, : length - 1], logits.to(torch.float32, copy=True))
        tokens = _choose(scores, live, len(prompt_of_row), generation_config.do_sample)
        sequences[live, length - 1] = tokens
        is_finished = stopping_criteria(sequences[live, :length], scores)
        live, tokens = live[~is_finished], tokens[~is_finished]
        if len(live) == 0:
            break
        prompts = prompt_of_row[live]
        slots = cache.arrange(live, prompts)
        # Empty slots are fed the pad token; their logits are not read.
        fed = torch.full(cache.rows.shape, pad, device=device)
        positions = torch.zeros_like(fed)
        fed[slots], positions[slots] = tokens, first_position[prompts] + n_written - 1
        logits = forward(
            input_ids=fed,
            position_ids=positions.expand(3, -1, -1),
            group_cache=cache,
            use_cache=False,
            return_dict=True,
        ).logits[slots]
    return sequences[:, :length]


def _choose(scores: Tensor, live: Tensor, n_rows: int, do_sample: bool) -> Tensor:
    """The next token of each live row, (live,). scores: (live, V). live: batch indices."""
    if not do_sample:
        return scores.argmax(-1)
    # `torch.multinomial` draws exponential noise for the whole batch and takes the argmax of p / noise. Noise for live
    # rows alone would shift the generator's state, so the tokens would depend on which rows have ended.
    noise = scores.new_empty((n_rows, scores.shape[-1])).exponential_()
    return (scores.softmax(-1) / noise[live]).argmax(-1)
