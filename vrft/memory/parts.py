"""The memory that lives through a whole run, per GPU: weights, gradients, optimizer state, reference, buffers.

Seen in deepspeed 0.19.8: in bfloat16 a gradient takes 2 bytes (`grad_accum_dtype` is the model's dtype unless
`data_types.grad_accum_dtype` says otherwise). Master weights and Adam's m and v take 4 bytes each. Stage 1 partitions
these, stage 2 also gradients, stage 3 also weights. `_update` counts what the update takes beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vrft.memory.four_bits import loaded_bytes

FLOAT32 = 4
_NORM = 8  # bytes a number while a norm is computed
_ADAM = 8  # bytes a parameter: m and v in float32
_OPTIMIZERS = {"sgd": 0, "adafactor": 0, "adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "lion_32bit": 4}
_BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in numbers
_MAX_LIVE = 1_000_000_000  # its stage3_max_live_parameters
_SUB_GROUP = 1_000_000_000  # its sub_group_size


@dataclass(frozen=True)
class Counts:
    """A policy in numbers. n_*: parameters; *_bytes: in the dtypes that they are loaded in. n_largest: of the largest
    tensor that is trained."""

    n_weights: int
    weight_bytes: int
    n_trained: int
    trained_bytes: int
    n_largest: int = 0

    @classmethod
    def of(cls, model: Any) -> Counts:
        weights = list(model.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        return cls(
            sum(weight.numel() for weight in weights),
            loaded_bytes(model),
            sum(weight.numel() for weight in trained),
            sum(weight.nbytes for weight in trained),
            max((weight.numel() for weight in trained), default=0),
        )


@dataclass(frozen=True)
class Sharding:
    """How states are partitioned. stage: of ZeRO; None without DeepSpeed. gradient_bytes: of one number of a gradient;
    None for the model's dtype. sub_group: how many numbers stage 3 updates at once."""

    stage: int | None = None
    n_processes: int = 1
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    overlaps: bool = False
    bucket: int = _BUCKET
    max_live: int = _MAX_LIVE
    gradient_bytes: int | None = None
    sub_group: int = _SUB_GROUP

    @classmethod
    def of(cls, deepspeed: dict[str, Any] | None, *, n_processes: int, hidden_size: int) -> Sharding:
        """deepspeed: its own config."""
        if not deepspeed:
            return cls(None, n_processes)
        zero = deepspeed.get("zero_optimization") or {}
        bucket, live = zero.get("reduce_bucket_size", _BUCKET), zero.get("stage3_max_live_parameters", _MAX_LIVE)
        dtype = (deepspeed.get("data_types") or {}).get("grad_accum_dtype")
        return cls(
            zero.get("stage", 0),
            n_processes,
            offloads_optimizer=_is_offloaded(zero, "offload_optimizer"),
            offloads_weights=_is_offloaded(zero, "offload_param"),
            overlaps=bool(zero.get("overlap_comm")),
            bucket=hidden_size**2 if bucket == "auto" else int(bucket),
            max_live=_MAX_LIVE if live == "auto" else int(live),
            gradient_bytes={"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2}.get(dtype),
            sub_group=int(zero.get("sub_group_size", _SUB_GROUP)),
        )


def _is_offloaded(zero: dict[str, Any], name: str) -> bool:
    return (zero.get(name) or {}).get("device", "none") != "none"


@dataclass(frozen=True)
class States:
    """Bytes by part on one GPU (or process), and of this process in main memory. update: `gradients` and their `copies`
    while the optimizer steps, in place of those in `gpu`."""

    gpu: dict[str, int]
    host: dict[str, int] = field(default_factory=dict)
    update: dict[str, int] = field(default_factory=dict)

    @property
    def least(self) -> int:
        """Bytes on the GPU that every phase of a training needs."""
        return max(sum(self.gpu.values()), sum((self.gpu | self.update).values()))


def states(counts: Counts, sharding: Sharding, *, reference_bytes: int = 0, optimizer_bytes: int = _ADAM) -> States:
    """Weights, gradients, master weights, the optimizer's state, the reference and DeepSpeed's buffers.

    reference_bytes: of a reference model's weights, whole. Gradients count if they live from one micro-batch to
    the next: all of them without DeepSpeed and in its stage 1.
    """
    stage, n = sharding.stage, sharding.n_processes
    is_deepspeed = stage is not None
    gradients = counts.trained_bytes
    if is_deepspeed and sharding.gradient_bytes:
        gradients = counts.n_trained * sharding.gradient_bytes
    weight_share = n if stage == 3 else 1
    optimizer_share = n if is_deepspeed and stage >= 1 else 1
    gradient_share = n if is_deepspeed and stage >= 2 else 1
    gpu = {
        "weights": counts.weight_bytes // weight_share,
        "gradients": gradients // gradient_share,
        "master weights": FLOAT32 * counts.n_trained // optimizer_share if is_deepspeed else 0,
        "optimizer": optimizer_bytes * counts.n_trained // optimizer_share,
        "reference": reference_bytes // weight_share,
        "buffers": _buffers(counts, sharding),
    }
    update = _update(counts, sharding, gradients)
    host: dict[str, int] = {}
    if sharding.offloads_optimizer:
        host = {name: gpu[name] for name in ("master weights", "optimizer")}
        host["gradients"] = FLOAT32 * counts.n_trained // gradient_share
        gpu |= dict.fromkeys(("master weights", "optimizer", "gradients"), 0)
        update = {"gradients": 0, "copies": 0}
    if sharding.offloads_weights:
        host |= {name: gpu[name] for name in ("weights", "reference")}
        gpu |= {"weights": 0, "reference": 0}
    return States(gpu, host, update)


def _update(counts: Counts, sharding: Sharding, gradient_bytes: int) -> dict[str, int]:
    """Gradients, and their copies, while the optimizer steps.

    Seen in deepspeed 0.19.8. First a norm is computed, of one gradient after the other in float64. Then stages 1 and 2
    (`step` in stage_1_and_2.py) flatten the process's share and cast it to float32; by then other processes' shares are
    freed. With float32 gradients of bfloat16 weights the share is flat already: in stage 2 the gradients live in it, in
    stage 1 it exists beside all gradients. Stage 3 (`_prepare_fp32_grad_for_sub_group` in stage3.py) does the same for
    `sub_group_size` numbers at a time; the tensor that reaches this size is added whole. gradient_bytes: of all
    gradients together.
    """
    stage, n = sharding.stage, sharding.n_processes
    if not stage:
        return {"gradients": gradient_bytes, "copies": 0}
    share, width = counts.n_trained // n, gradient_bytes // max(counts.n_trained, 1)
    is_flat = width == FLOAT32 and counts.trained_bytes < gradient_bytes
    as_float32 = 0 if width == FLOAT32 else FLOAT32
    if stage == 3:
        largest = -(-counts.n_largest // n)
        at_once = min(share, sharding.sub_group + largest)
        return {"gradients": width * share, "copies": max(_NORM * largest, (width + as_float32) * at_once)}
    norm = _NORM * min(counts.n_largest, share)
    if is_flat:
        beside = stage == 1
        return {"gradients": gradient_bytes if beside else width * share, "copies": norm + beside * width * share}
    return {"gradients": width * share, "copies": max(norm, (width + as_float32) * share)}


def _buffers(counts: Counts, sharding: Sharding) -> int:
    """Buckets of gradients in communication, and in stage 3 the weights gathered for the current layers."""
    width = counts.weight_bytes // max(counts.n_weights, 1)
    if sharding.stage is None:
        return counts.trained_bytes if sharding.n_processes > 1 else 0  # DDP's buckets
    bucket = sharding.bucket * (counts.trained_bytes // max(counts.n_trained, 1)) * (2 if sharding.overlaps else 1)
    if sharding.stage < 3:
        return bucket if sharding.stage else 0
    here = 0 if sharding.offloads_weights else counts.n_weights // sharding.n_processes
    away = counts.n_weights - here
    return bucket + width * min(away, sharding.max_live)


def bytes_of_optimizer(arguments: dict[str, Any]) -> int:
    """Bytes of the optimizer's state for each trained parameter, by `trainer.args.optim`."""
    return _OPTIMIZERS.get(str(arguments.get("optim", "adamw_torch_fused")), _ADAM)
