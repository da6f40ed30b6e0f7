"""One step of the true code on the meta device: what activations, logits and caches take at their peak.

Nothing is trained and no weight is read; the loss's forward and backward, a rollout's prefill and its last token run
as they would on the target, and every tensor that comes to life is counted until it is freed.
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
from vrft.memory.live import LiveBytes
from vrft.memory.meta import on_meta
from vrft.models.group_cache import GroupCache
from vrft.models.shared_prefix import without_adapter
from vrft.train.shared_prefix import SharedPrefixTrainer

_ROOM = 64  # tokens by which a shared rollout's cache grows
_SAMPLING_COPIES = 4  # of the logits in float32, while a token is drawn


def step_bytes(model: PreTrainedModel, shapes: Shapes, *, target: str, autocast: torch.dtype | None) -> Counter[str]:
    """What a forward and backward takes beside weights, by kind, in bytes, at the moment of its peak.

    Kinds: `activations` (of the language model), `vision`, `logits`, and `gradients` (of the weights).
    """
    model.train()
    with _checkpointing(model, shapes.checkpointing), on_meta(target, autocast) as live:
        live.count(model.parameters(), "weights")
        live.count(model.buffers(), "weights")
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        after = _shed if shapes.sheds_gradients else lambda weight: live.recount(weight.grad, "gradients")
        hooks = [weight.register_post_accumulate_grad_hook(after) for weight in trained]
        if shapes.accumulates and not shapes.sheds_gradients:
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
    """What a rollout takes beside weights, by kind, in bytes: as it reads the prompts, and as it writes the last token.

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
        if shapes.images and shapes.shares and shapes.rollout_rows > n_prompts:  # the batch has them for every row
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
    """The last token at which the cache of all rows' own keys grows."""
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
        cache._move(cache.rows, torch.arange(shapes.rollout_prompts))  # as when a row ends: what stays is copied
    ids = torch.zeros(cache.rows.shape, dtype=torch.long)
    ids[slots] = 1
    cache.attend = _counted(cache.attend, live, "kv_cache")
    positions = torch.full_like(ids, shapes.prompt + n_before).expand(3, -1, -1)
    policy(input_ids=ids, position_ids=positions, group_cache=cache, use_cache=False)


def _stock_token(policy, cache: DynamicCache, mask: Tensor, shapes: Shapes, live: LiveBytes) -> None:
    """The last token of every row, each with a whole cache of its own."""
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
    """The function, with what it makes counted under `kind`."""

    @functools.wraps(function)
    def counted(*args, **kwargs) -> Any:
        with live.counting(kind):
            return function(*args, **kwargs)

    return counted


def _shed(weight: Tensor) -> None:
    """DeepSpeed takes a gradient away as soon as it is whole."""
    weight.grad = None


def _without_weights(peak: Counter[str]) -> Counter[str]:
    return Counter({kind: size for kind, size in peak.items() if kind != "weights" and size > 0})


def _grpo_loss(model: PreTrainedModel, batch: dict, shapes: Shapes) -> Tensor:
    """A loss of every completion token's log probability, by the trainer's own code."""
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
    """As TRL's SFT trainer calls the model: labels on completion tokens alone."""
    labels = batch["input_ids"].clone()
    labels[:, : -shapes.completion] = -100
    inputs = {name: value for name, value in batch.items() if name != "num_images"}
    return -model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs.sum()


def _bare_trainer(trainer_class: type, model: PreTrainedModel) -> GRPOTrainer:
    """A trainer that knows what its scoring of a batch reads, and nothing else."""
    trainer = object.__new__(trainer_class)
    trainer.model = model
    trainer.accelerator = types.SimpleNamespace(
        unwrap_model=lambda one: one, autocast=contextlib.nullcontext, is_main_process=False
    )
    trainer.must_share, trainer._told = False, set()
    trainer._skipped = trainer._inputs = None
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer._image_features = _Features()
    return trainer


class _Features:
    """A frozen vision tower's features, computed once; on the meta device no image can be told from another."""

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
    """Count what the vision tower makes as `vision`, what the head makes as `logits`, and gradients as such."""
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
