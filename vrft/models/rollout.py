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
from transformers import Cache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from vrft.models.shared_prefix import register_attention

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


_ROOM = 64  # tokens for which a row's cache is made longer at a time


class GroupCache:
    """Keys and values of prompts, each kept once, and of what their rows have written, by layer.

    rows: (N, W) which row stands where; -1 where none does.
    """

    def __init__(self, prefill: Cache, prompt_mask: Tensor) -> None:
        """prefill: the model's cache of the prompts. prompt_mask: (N, P), False where padded."""
        self.prompt = [(layer.keys, layer.values) for layer in prefill.layers]  # (N, K, P, D)
        self.own: list[tuple[Tensor, Tensor] | None] = [None] * len(prefill.layers)  # (N, K, W, T, D)
        self.bias = torch.zeros(prompt_mask.shape, device=prompt_mask.device).masked_fill(~prompt_mask, -torch.inf)
        self.prompts = torch.arange(len(prompt_mask), device=prompt_mask.device)
        self.rows = torch.empty((len(prompt_mask), 0), dtype=torch.long, device=prompt_mask.device)
        self.n_written = 0

    def arrange(self, live: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Keep these rows alone, in rising order, and their prompts; returns where in `rows` each stands."""
        number, n_rows = prompts.unique(return_inverse=True, return_counts=True)[1:]
        order = number.argsort(stable=True)
        column = torch.empty_like(number)
        column[order] = torch.arange(len(live), device=live.device) - (n_rows.cumsum(0) - n_rows)[number[order]]
        rows = torch.full((len(n_rows), int(n_rows.max())), -1, device=live.device)
        rows[number, column] = live
        self.n_written += 1
        if not torch.equal(rows, self.rows):
            self._move(rows, torch.isin(self.prompts, prompts).nonzero()[:, 0])
        return number, column

    def _move(self, rows: Tensor, kept: Tensor) -> None:
        """kept: which of the prompts stay."""
        if len(kept) < len(self.prompts):
            self.prompt = [tuple(part[kept] for part in layer) for layer in self.prompt]
            self.bias, self.prompts = self.bias[kept], self.prompts[kept]
        if self.own[0] is not None:
            before = (self.rows[kept][:, None] == rows[:, :, None]).int().argmax(-1)  # (N, W); any place for no row
            moved = kept[:, None], before
            self.own = [
                tuple(part.transpose(1, 2)[moved].transpose(1, 2).contiguous() for part in layer) for layer in self.own
            ]
        self.rows = rows

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Add the new tokens' key and value (N, K, W, D), and attend with query (N, H, W, D); returns (N, W, H, D)."""
        if self.n_written % _ROOM == 1:
            room = key.new_zeros((*key.shape[:3], _ROOM, key.shape[3]))
            self.own[layer] = tuple(
                torch.cat([part, room], dim=3) for part in self.own[layer] or (room[..., :0, :],) * 2
            )
        own = [part[..., : self.n_written, :] for part in self.own[layer]]
        own[0][..., -1, :], own[1][..., -1, :] = key, value
        with torch.autocast(query.device.type, enabled=False):  # it would round the scores
            return self._mix(query.float() * scaling, self.prompt[layer], own).to(value.dtype)

    def _mix(self, query: Tensor, prompt: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
        """Attention of a scaled query (N, H, W, D) to (keys, values) of its prompt and of its row; (N, W, H, D)."""
        n_keys, width = own[0].shape[1:3]
        query = query.unflatten(1, (n_keys, -1)).transpose(2, 3).contiguous()  # (N, K, W, H / K, D)
        keys, values = (part.float() for part in prompt)
        own_keys, own_values = (part.float() for part in own)
        of_prompt = query.flatten(2, 3) @ keys.mT + self.bias[:, None, None]  # (N, K, W * H / K, P)
        of_own = (query @ own_keys.mT).flatten(2, 3)  # (N, K, W * H / K, T)
        weights = torch.cat([of_prompt, of_own], dim=-1).softmax(-1)
        to_prompt, to_own = weights.split([of_prompt.shape[-1], of_own.shape[-1]], dim=-1)
        mixed = (to_prompt @ values).unflatten(2, (width, -1)) + to_own.unflatten(2, (width, -1)) @ own_values
        return mixed.transpose(1, 2).flatten(2, 3)
