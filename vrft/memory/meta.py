"""Run a model's true code on torch's meta device: floats have shapes but no memory, integers are real.

Token ids, positions, masks and grids determine shapes, so they keep their values; they are small. An operation that
mixes them with floats returns a meta tensor. Attention is replaced by what the target's fused kernels keep: torch's own
path for the meta device would build the full matrix of queries and keys.

The patches below name private functions of torch and TRL. tests/unit/memory/test_plan.py fails where one is renamed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map

import vrft.models.attention
from vrft.memory.live_bytes import LiveBytes, tensors_in

_aten = torch.ops.aten
_INDEXING = {_aten.index.Tensor, _aten._unsafe_index.Tensor, _aten.index_put.default, _aten.index_put_.default}
_INDEXING |= {_aten._index_put_impl_.default}
_WHOLE = (torch.int64, torch.int32, torch.bool, torch.uint8)
_sdpa = functional.scaled_dot_product_attention


class MetaRun(LiveBytes):
    """Counts the bytes of a run on the meta device, and adds the operations that the device lacks."""

    def __init__(self) -> None:
        super().__init__(device="meta")

    def call(self, func, args: tuple, kwargs: dict) -> Any:
        """Run one operation: for real if all its tensors are real, else on the meta device."""
        tensors = tensors_in([*args, *kwargs.values()])
        is_meta = any(tensor.is_meta for tensor in tensors)
        to_meta = str(kwargs.get("device")) == "meta"
        if to_meta and not is_meta and _makes_whole_numbers(func, args, kwargs, tensors):
            return func(*args, **kwargs | {"device": "cpu"})
        if func is _aten.equal.default and is_meta:
            return args[0].shape == args[1].shape
        if func is _aten.masked_scatter_backward.default:
            return torch.empty(args[2], dtype=args[0].dtype, device="meta")
        if not is_meta:
            return func(*args, **kwargs)
        if func in _INDEXING:
            args = (args[0], _without_masks(args[1]), *args[2:])
            args = tree_map(_on_meta, args)
        elif not all(tensor.is_meta for tensor in tensors):
            args, kwargs = tree_map(_on_meta, (args, kwargs))
        return func(*args, **kwargs)


def _makes_whole_numbers(func, args: tuple, kwargs: dict, tensors: list[Tensor]) -> bool:
    """True if the result has integers, which stay real."""
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return dtype in _WHOLE
    if tensors:
        return tensors[0].dtype in _WHOLE
    return func.name().startswith("aten::arange") and all(isinstance(arg, int) for arg in args)


def _without_masks(indices: list) -> list:
    """Boolean masks as the indices that they select: how many these are decides the shape of the result."""
    numbers = []
    for index in indices:
        is_mask = index is not None and index.dtype == torch.bool and not index.is_meta
        numbers += list(index.nonzero().unbind(1)) if is_mask else [index]
    return numbers


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor) and not value.is_meta:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return value


class _Attention(torch.autograd.Function):
    """What a fused kernel saves for backward and returns; no tensor has the size queries × keys."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        mixed = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, mixed, sums)
        return mixed

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        query, key, value, *_ = ctx.saved_tensors
        return *(torch.empty_like(part) for part in (query, key, value)), None


def _attention_on(target: str) -> Callable:
    """A replacement for scaled_dot_product_attention, as its kernels on `target` use memory."""

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options) -> Tensor:
        if not query.is_meta:
            return _sdpa(query, key, value, attn_mask=attn_mask, **options)
        is_plain_causal = (
            target == "cuda" and attn_mask is not None and attn_mask.ndim == 2
        )  # which a kernel applies by itself
        bias = None if attn_mask is None or is_plain_causal else query.new_empty(attn_mask.shape)
        return _Attention.apply(query, key, value, bias)

    return attend


def _cast_to(dtype: torch.dtype, function: Callable) -> Callable:
    """The function with its float arguments cast first, as autocast would: the meta device has no autocast."""

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return lambda *args, **kwargs: function(*map(cast, args), **{name: cast(one) for name, one in kwargs.items()})


def _always(answer: Any) -> Callable:
    return lambda *_, **__: answer


def _of_meta(known: Callable, answer: Any) -> Callable:
    """A function of a device type that also accepts the meta device."""
    return lambda *device: answer if device == ("meta",) else known(*device)


def _autocast_elsewhere(known: Callable) -> Callable:
    """torch.autocast, which refuses the meta device."""
    return lambda device_type, *args, **kwargs: (
        contextlib.nullcontext() if device_type == "meta" else known(device_type, *args, **kwargs)
    )


@contextlib.contextmanager
def on_meta(target: str, autocast: torch.dtype | None = None) -> Iterator[MetaRun]:
    """Within, code runs on the meta device as it would on `target` (`cuda` or `cpu`); yields the count of its bytes."""
    import torch.utils.checkpoint
    import trl.kernels.chunked_logprob as head
    import trl.trainer.utils as trl_utils

    with contextlib.ExitStack() as held:
        held.enter_context(mock.patch.object(torch.utils.checkpoint, "_infer_device_type", _always("cpu")))
        for name, answer in (("is_autocast_enabled", autocast is not None), ("get_autocast_dtype", autocast)):
            held.enter_context(mock.patch.object(torch, name, _of_meta(getattr(torch, name), answer)))
        held.enter_context(mock.patch.object(torch, "autocast", _autocast_elsewhere(torch.autocast)))
        if target == "cuda":  # by Triton, in place
            held.enter_context(mock.patch.object(trl_utils, "_use_triton", _always(True)))
            for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
                held.enter_context(mock.patch.object(head, name, _always(None)))
        for owner in (functional, vrft.models.attention):
            held.enter_context(mock.patch.object(owner, "scaled_dot_product_attention", _attention_on(target)))
        if autocast is not None:
            casts = {"linear": autocast, "conv3d": autocast, "layer_norm": torch.float32}
            for name, dtype in casts.items():
                held.enter_context(mock.patch.object(functional, name, _cast_to(dtype, getattr(functional, name))))
        yield held.enter_context(MetaRun())
