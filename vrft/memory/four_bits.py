"""4-bit weights on the meta device: the sizes that bitsandbytes gives to a language model.

Seen in bitsandbytes 0.48 and transformers 5.23: every linear layer outside `llm_int8_skip_modules` is packed. It is
unpacked into the compute dtype while it is multiplied, in the forward and again in the backward.
"""

from __future__ import annotations

from torch import Tensor, autograd, nn
from torch.nn import functional

_BLOCK, _BLOCKS = 64, 256  # numbers to a scale of 1 byte, scales to one of 4 bytes (Dettmers et al. 2023, section 3)


class FourBitLinear(nn.Linear):
    """A placeholder for bitsandbytes' layer: its weight has the unpacked shape, and counts as packed."""

    def forward(self, inputs: Tensor) -> Tensor:
        """As in `nn.Linear`."""
        return _Product.apply(inputs, self.weight, self.bias)


class _Product(autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        whole = weight.new_empty(weight.shape)
        return functional.linear(inputs, whole, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        whole = ctx.weight.new_empty(ctx.weight.shape)
        return grad @ whole, None, None


def pack(language_model: nn.Module) -> None:
    """Turn every linear layer of the language model into a frozen 4-bit layer; embeddings, norms and biases stay."""
    for module in language_model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FourBitLinear
    for weight in language_model.parameters():
        weight.requires_grad_(False)


def packed_bytes(n_numbers: int) -> int:
    """Bytes of `n_numbers` in NF4 with double quantization: the scales are quantized too.

    >>> packed_bytes(16384)  # 8192 of numbers, 256 scales, and one of 4 bytes for these
    8452
    """
    n_scales = -(-n_numbers // _BLOCK)
    return -(-n_numbers // 2) + n_scales + 4 * -(-n_scales // _BLOCKS)


def loaded_bytes(model: nn.Module) -> int:
    """Bytes of all weights of a model, with 4-bit weights packed."""
    packed = {id(module.weight) for module in model.modules() if isinstance(module, FourBitLinear)}
    return sum(packed_bytes(one.numel()) if id(one) in packed else one.nbytes for one in model.parameters())
