"""The true code of a model run on torch's meta device: floats have shapes and no memory, whole numbers are real.

Token ids, positions, masks and grids decide about shapes, so they are real and small; whatever meets a float becomes
one without a value. Attention is not what torch would run on the meta device but what it runs on the target.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from vrft.memory.live import LiveBytes

_aten = torch.ops.aten
_INDEXING = {_aten.index.Tensor, _aten._unsafe_index.Tensor, _aten.index_put.default, _aten.index_put_.default}
_INDEXING |= {_aten._index_put_impl_.default}
_WHOLE = (torch.int64, torch.int32, torch.bool, torch.uint8)
_MATRIX = (torch.nn.functional.linear, torch.matmul, torch.bmm, torch.Tensor.matmul, torch.nn.functional.conv3d)


class MetaRun(LiveBytes):
    """Counts the bytes of a run on the meta device, and does what that device leaves out."""

    def __init__(self) -> None:
        super().__init__(device="meta")

    def call(self, func, args: tuple, kwargs: dict) -> Any:
        """One operation: real where all of its tensors are, else on the meta device."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
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
        args, kwargs = tree_map(_on_meta, (args, kwargs))
        return func(*args, **kwargs)


def _makes_whole_numbers(func, args: tuple, kwargs: dict, tensors: list[Tensor]) -> bool:
    """True if the result is of whole numbers, which stay real."""
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return dtype in _WHOLE
    if tensors:
        return tensors[0].dtype in _WHOLE
    return func.name().startswith("aten::arange") and all(isinstance(arg, int) for arg in args)


def _without_masks(indices: list) -> list:
    """Masks of real values as the numbers of what they let through: their count decides the result's shape."""
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
    """What a fused kernel keeps and returns; nothing of the size of queries × keys."""

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


class OnTarget(TorchFunctionMode):
    """Attention as the target's fused kernels do it, and autocast, which the meta device does not know.

    autocast: the dtype of products, or None.
    """

    def __init__(self, target: str, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.target, self.autocast = target, autocast

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention and args[0].is_meta:
            return self._attention(*args, **kwargs)
        if self.autocast is not None and func in _MATRIX:
            args, kwargs = tree_map(lambda one: _cast(one, self.autocast), (args, kwargs))
        elif self.autocast is not None and func is torch.nn.functional.layer_norm:
            args, kwargs = tree_map(lambda one: _cast(one, torch.float32), (args, kwargs))
        return func(*args, **kwargs)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask=None, **_) -> Tensor:
        bias = None
        if attn_mask is not None and (attn_mask.ndim > 2 or self.target == "cpu"):  # a flat one is causal: by a kernel
            bias = query.new_empty(attn_mask.shape)
        return _Attention.apply(query, key, value, bias)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() and value.is_meta else value


@contextlib.contextmanager
def on_meta(target: str, autocast: torch.dtype | None = None) -> Iterator[MetaRun]:
    """Run what follows on the meta device as it would run on `target` (`cuda` or `cpu`); yields what it takes."""
    import torch.utils.checkpoint
    import trl.kernels.chunked_logprob as head
    import trl.trainer.utils as trl_utils

    with contextlib.ExitStack() as held:
        held.enter_context(mock.patch.object(torch.utils.checkpoint, "_infer_device_type", lambda *_: "cpu"))
        if target == "cuda":  # by Triton, in place
            held.enter_context(mock.patch.object(trl_utils, "_use_triton", lambda _: True))
            for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
                held.enter_context(mock.patch.object(head, name, lambda *_, **__: None))
        held.enter_context(OnTarget(target, autocast))
        yield held.enter_context(MetaRun())
