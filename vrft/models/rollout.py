"""Completions token by token: each prompt computed and kept once for all its rows, finished rows out of the batch.

A step feeds one token for every row that still writes, as a rectangle (N prompts, W rows of a prompt). A row attends to
the keys of its prompt, which lie there once, and to its own; both by one softmax. Prompts whose rows have all ended
leave the cache, and W is that of the prompt with the most rows left.

Sampled tokens are those of transformers' `generate` under the same seed, in float32 and but for ties closer than its
rounding: noise is drawn for the whole batch at every step, also for rows that have left.

N: prompts, P: their tokens, B: rows, V: vocabulary, H: heads, K: those of keys, D: their width, T: tokens written.
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

_KNOWN_SETTINGS = {
    *("max_new_tokens", "max_length", "min_new_tokens", "min_length", "eos_token_id", "pad_token_id", "bos_token_id"),
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "suppress_tokens", "bad_words_ids"),
    *("use_cache", "disable_compile", "transformers_version"),
}


@torch.no_grad()
def generate_shared(
    generate: Callable[..., Tensor],
    inputs: Mapping[str, Any],
    prompt_of_row: Sequence[int],
    *,
    generation_config: GenerationConfig,
    logits_processor: LogitsProcessorList | None = None,
) -> Tensor:
    """Prompt and completion of every row, (B, P + tokens of the longest), padded on the right as `generate` does.

    generate: the model's own. inputs: what the processor returns for the N distinct prompts, padded on the left; each
    ends in a text token.
    prompt_of_row: (B,) which of them each row answers.
    """
    register_attention()
    config = copy.deepcopy(generation_config)
    # Whatever the checkpoint's own settings say; no token depends on it.
    config.update(use_cache=True, cache_implementation="dynamic")
    return generate(
        **inputs,
        generation_config=config,
        logits_processor=logits_processor,
        custom_generate=_decode,
        prompt_of_row=torch.as_tensor(prompt_of_row, device=inputs["input_ids"].device),
    )


def sampling_fault(config: GenerationConfig) -> str | None:
    """Why completions cannot be sampled so here, or None: some settings keep a state for every row of a batch."""
    other = {
        name
        for name, value in config.to_diff_dict().items()
        if name not in _KNOWN_SETTINGS and (name, value) != ("repetition_penalty", 1.0) and value is not None
    }
    return f"the sampling setting {', '.join(sorted(other))} is left to transformers" if other else None


def _decode(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    prompt_of_row: Tensor,
    **inputs,
) -> Tensor:
    """The decoding loop behind `model.generate`, which has prepared everything else. input_ids: (N, P)."""
    n_prompt, device = input_ids.shape[1], input_ids.device
    prompt_mask = inputs["attention_mask"]
    prompt_mask = torch.ones_like(input_ids) if prompt_mask is None else prompt_mask  # dropped where nothing is padded
    first_position = inputs["position_ids"][1, :, -1] + 1  # the last prompt token is text: alike in all three axes
    prefill = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **inputs)
    forward = model.forward  # a call of the model itself is one that all processes under ZeRO-3 have to make together
    logits = forward(**prefill, return_dict=True).logits[prompt_of_row, -1]  # (B, V)
    cache = GroupCache(inputs["past_key_values"], prompt_mask.bool())
    n_new = generation_config.max_length - n_prompt
    pad = generation_config.pad_token_id
    sequences = torch.cat([input_ids[prompt_of_row], input_ids.new_full((len(prompt_of_row), n_new), pad)], dim=1)
    live = torch.arange(len(prompt_of_row), device=device)
    for n_written in range(1, n_new + 1):
        length = n_prompt + n_written
        scores = logits_processor(sequences[live, : length - 1], logits.to(torch.float32, copy=True))
        tokens = _choose(scores, live, len(prompt_of_row), generation_config.do_sample)
        sequences[live, length - 1] = tokens
        is_finished = stopping_criteria(sequences[live, :length], scores)
        live, tokens = live[~is_finished], tokens[~is_finished]
        if len(live) == 0:
            break
        prompts = prompt_of_row[live]
        slots = cache.arrange(live, prompts)
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
    """The next token of each live row; draws what `torch.multinomial` draws for all `n_rows` rows. scores: (live, V)"""
    if not do_sample:
        return scores.argmax(-1)
    noise = scores.new_empty((n_rows, scores.shape[-1])).exponential_()
    return (scores.softmax(-1) / noise[live]).argmax(-1)
