"""One step of the true code on the meta device: the peak memory of activations, logits and caches.

Nothing is trained and no weight is read. The loss's forward and backward run as they would on the target, and so do a
rollout's prefill and its last token. Every tensor is counted from its creation until it is freed.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from trl import GRPOTrainer

from vrft.memory.batch import Shapes, batch_on_meta
from vrft.memory.live_bytes import LiveBytes
from vrft.memory.meta import on_meta
from vrft.models.group_cache import GroupCache
from vrft.models.shared_prefix import without_adapter
from vrft.train.shared_prefix import Sharing
from vrft.train.trl_overrides import SharedPrefixTrainer

_ROOM = 64  # tokens by which a shared rollout's cache grows
_SAMPLING_COPIES = 4  # of the logits in float32, while a token is drawn


def step_bytes(model: PreTrainedModel, shapes: Shapes, *, target: str, autocast: torch.dtype | None) -> Counter[str]:
    """Bytes beside the weights at the peak of a forward and backward, by kind.

    Kinds: `activations` (of the language model), `vision`, `logits`, and `gradients` (of the weights).
    """
    model.train()
    with _checkpointing(model, shapes.checkpointing), on_meta(target, autocast) as live:
        live.count(model.parameters(), "weights")
        live.count(model.buffers(), "weights")
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        after = _free if shapes.frees_gradients else lambda weight: live.recount(weight.grad, "gradients")
        hooks = [weight.register_post_accumulate_grad_hook(after) for weight in trained]
        if shapes.accumulates and not shapes.frees_gradients:
            with live.counting("gradients"):
                for weight in trained:
                    weight.grad = torch.empty_like(weight)
        batch = batch_on_meta(model, shapes.n_prompts, shapes.n_completions, shapes)
        live.reset_peak()
        with _kinds(model, live):
            loss = _sft_loss(model, batch, shapes) if shapes.trainer == "sft" else _grpo_loss(model, batch, shapes)
            loss.backward()
        del loss, batch
        for hook in hooks:
            hook.remove()
        for weight in trained:
            weight.grad = None
    return _without_weights(live.peak)


@torch.no_grad()
def rollout_bytes(
    model: PreTrainedModel, shapes: Shapes, *, target: str, autocast: torch.dtype | None
) -> tuple[Counter[str], Counter[str]]:
    """Bytes of a rollout beside the weights, by kind: at the peak of the prefill, and of the last token.

    Kinds: those of `step_bytes`, and `kv_cache`.
    """
    model.eval()
    policy = without_adapter(model)
    n_prompts = shapes.rollout_prompts if shapes.shares else shapes.rollout_rows
    with on_meta(target, autocast) as live, _kinds(model, live):
        live.count(model.parameters(), "weights")
        batch = batch_on_meta(model, n_prompts, n_prompts, replace(shapes, completion=0))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
        if shapes.images:
            inputs |= {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
        held = []
        if (
            shapes.images and shapes.shares and shapes.rollout_rows > n_prompts
        ):  # TRL's batch repeats them for every row
            with live.counting("images"):
                held = [batch["pixel_values"].repeat(-(-shapes.rollout_rows // n_prompts), 1)]
        live.reset_peak()
        cache = DynamicCache(config=policy.config.get_text_config())
        cache.update = _counted(cache.update, live, "kv_cache")
        out = policy(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1]
        del out
        prefill = Counter(live.peak)
        live.reset_peak()
        if shapes.shares:
            _shared_token(policy, cache, inputs["attention_mask"], shapes, live)
        else:
            _stock_token(policy, cache, inputs["attention_mask"], shapes, live)
        with live.counting("logits"):
            copies = [logits.new_empty((shapes.rollout_rows, logits.shape[-1]), dtype=torch.float32)
                      for _ in range(_SAMPLING_COPIES)]  # fmt: skip
        del copies, held
    return _without_weights(prefill), _without_weights(live.peak)


def _shared_token(policy, prefill: DynamicCache, mask: Tensor, shapes: Shapes, live: LiveBytes) -> None:
    """Run the last token at which the cache of the rows' own keys grows."""
    cache = GroupCache(prefill, mask.bool())
    prompt_of_row = torch.arange(shapes.rollout_rows) * shapes.rollout_prompts // shapes.rollout_rows
    n_before = (shapes.completion - 1) // _ROOM * _ROOM
    cache.n_written = n_before
    slots = cache.arrange(torch.arange(shapes.rollout_rows), prompt_of_row)
    width = cache.rows.shape[1]
    with live.counting("kv_cache"):
        cache.own = [
            tuple(part.new_empty((part.shape[0], part.shape[1], width, n_before, part.shape[3])) for part in layer)
            for layer in cache.prompt
        ]
        cache._move(
            cache.rows, torch.arange(shapes.rollout_prompts)
        )  # as when a row ends: the rows that stay are copied
    ids = torch.zeros(cache.rows.shape, dtype=torch.long)
    ids[slots] = 1
    cache.attend = _counted(cache.attend, live, "kv_cache")
    positions = torch.full_like(ids, shapes.prompt + n_before).expand(3, -1, -1)
    policy(input_ids=ids, position_ids=positions, group_cache=cache, use_cache=False)


def _stock_token(policy, cache: DynamicCache, mask: Tensor, shapes: Shapes, live: LiveBytes) -> None:
    """Run the last token of every row, each row with a full cache of its own."""
    n_before = max(shapes.completion - 1, 0)
    with live.counting("kv_cache"):
        for layer in cache.layers:
            layer.keys, layer.values = (
                torch.cat([part, part.new_empty((*part.shape[:2], n_before, part.shape[3]))], dim=2)
                for part in (layer.keys, layer.values)
            )
    rows = len(mask)
    mask = torch.cat([mask, mask.new_ones((rows, n_before + 1))], dim=1)
    ids = torch.ones((rows, 1), dtype=torch.long)
    positions = torch.full((4, rows, 1), shapes.prompt + n_before)
    policy(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)


def _counted(function: Callable, live: LiveBytes, kind: str) -> Callable:
    """The function; the tensors that it creates are counted under `kind`."""

    @functools.wraps(function)
    def counted(*args, **kwargs) -> Any:
        with live.counting(kind):
            return function(*args, **kwargs)

    return counted


def _free(weight: Tensor) -> None:
    """Drop a gradient as soon as it is complete, as DeepSpeed does."""
    weight.grad = None


def _without_weights(peak: Counter[str]) -> Counter[str]:
    return Counter({kind: size for kind, size in peak.items() if kind != "weights" and size > 0})


def _grpo_loss(model: PreTrainedModel, batch: dict, shapes: Shapes) -> Tensor:
    """The sum of all completion tokens' log probabilities, by the trainer's own code."""
    trainer_class = SharedPrefixTrainer if shapes.shares else GRPOTrainer
    trainer = _bare_trainer(trainer_class, model)
    logps, *_ = trainer_class._get_per_token_logps_and_entropies(
        trainer,
        model,
        batch["input_ids"],
        batch["attention_mask"],
        shapes.completion,
        compute_entropy=True,
        **{name: batch.get(name) for name in ("num_images", "pixel_values", "image_grid_thw", "mm_token_type_ids")},
    )
    return logps.sum()


def _sft_loss(model: PreTrainedModel, batch: dict, shapes: Shapes) -> Tensor:
    """The loss as TRL's SFT trainer computes it: labels on completion tokens only."""
    labels = batch["input_ids"].clone()
    labels[:, : -shapes.completion] = -100
    inputs = {name: value for name, value in batch.items() if name != "num_images"}
    return -model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs.sum()


def _bare_trainer(trainer_class: type, model: PreTrainedModel) -> GRPOTrainer:
    """A trainer with the attributes that scoring a batch reads, and no others: its constructor would load data."""
    trainer = object.__new__(trainer_class)
    trainer.model = model
    trainer.accelerator = types.SimpleNamespace(
        unwrap_model=lambda one: one, autocast=contextlib.nullcontext, is_main_process=False
    )
    trainer.sharing = Sharing(must_share=False, is_main_process=False)
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer.sharing.image_features = _Features()
    return trainer


class _Features:
    """A frozen vision tower's features, computed once; on the meta device all images look the same."""

    def replace_pixels(self, policy: PreTrainedModel, inputs: dict) -> dict:
        if "pixel_values" not in inputs:
            return inputs
        with torch.no_grad():
            output = policy.base_model.get_image_features(
                inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
            )
        return {name: value for name, value in inputs.items() if name != "pixel_values"} | {
            "mm_encoder_outputs": {"image": output}
        }


@contextlib.contextmanager
def _kinds(model: PreTrainedModel, live: LiveBytes) -> Iterator[None]:
    """Count the tensors of the vision tower as `vision` and those of the language model's head as `logits`."""
    import trl.kernels.chunked_logprob as head

    policy = without_adapter(model)
    before: list[str] = []

    def enter(module, *_) -> None:
        before.append(live.kind)
        live.kind = "vision"

    def leave(*_) -> None:
        live.kind = before.pop()

    visual = policy.base_model.visual
    handles = [visual.register_forward_pre_hook(enter), visual.register_forward_hook(leave)]
    function = head.ChunkedLogProbFunction
    own = function.forward, function.backward

    function.forward, function.backward = (staticmethod(_counted(method, live, "logits")) for method in own)
    try:
        yield
    finally:
        function.forward, function.backward = (staticmethod(method) for method in own)
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _checkpointing(model: PreTrainedModel, is_on: bool) -> Iterator[None]:
    """Gradient checkpointing as the trainer turns it on."""
    policy = without_adapter(model)
    if not is_on:
        yield
        return
    policy.activation_checkpointing_enable()
    if model is not policy:
        model.enable_input_require_grads()
    try:
        yield
    finally:
        policy.activation_checkpointing_disable()
        if model is not policy:
            policy.disable_input_require_grads()
