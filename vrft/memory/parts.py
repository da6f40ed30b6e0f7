"""What lives through a whole run, per GPU: weights, gradients, the optimizer's state, the reference, buffers.

Seen in deepspeed 0.19.8: in bfloat16 a gradient takes 2 bytes (`grad_accum_dtype` is the model's dtype unless
`data_types.grad_accum_dtype` says otherwise); master weights and Adam's m and v take 4 bytes each, shared out from
stage 1 on; stage 2 shares out gradients, stage 3 weights. Before a step stages 1 and 2 make a float32 copy of the
process's part of the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vrft.batch_sizes import n_processes
from vrft.memory.four_bits import loaded_bytes

FLOAT32 = 4
_ADAM = 8  # bytes a parameter: m and v in float32
_OPTIMIZERS = {"sgd": 0, "adafactor": 0, "adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "lion_32bit": 4}
_BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in numbers
_MAX_LIVE = 1_000_000_000  # its stage3_max_live_parameters


@dataclass(frozen=True)
class Counts:
    """A policy in numbers. n_*: parameters; *_bytes: in the dtypes that they are loaded in."""

    n_weights: int
    weight_bytes: int
    n_trained: int
    trained_bytes: int

    @classmethod
    def of(cls, model: Any) -> Counts:
        weights = list(model.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        return cls(
            sum(weight.numel() for weight in weights),
            loaded_bytes(model),
            sum(weight.numel() for weight in trained),
            sum(weight.nbytes for weight in trained),
        )


@dataclass(frozen=True)
class Sharding:
    """How states are shared out. stage: of ZeRO; None without DeepSpeed. gradient_bytes: of one gradient's number, None
    for the model's dtype."""

    stage: int | None = None
    n_processes: int = 1
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    overlaps: bool = False
    bucket: int = _BUCKET
    max_live: int = _MAX_LIVE
    gradient_bytes: int | None = None

    @classmethod
    def of(cls, config: dict[str, Any], hidden_size: int) -> Sharding:
        """config: a frozen one."""
        deepspeed = config["deepspeed"]["config"]
        if not deepspeed:
            return cls(None, n_processes(config))
        zero = deepspeed.get("zero_optimization") or {}
        bucket, live = zero.get("reduce_bucket_size", _BUCKET), zero.get("stage3_max_live_parameters", _MAX_LIVE)
        dtype = (deepspeed.get("data_types") or {}).get("grad_accum_dtype")
        return cls(
            zero.get("stage", 0),
            n_processes(config),
            offloads_optimizer=_is_offloaded(zero, "offload_optimizer"),
            offloads_weights=_is_offloaded(zero, "offload_param"),
            overlaps=bool(zero.get("overlap_comm")),
            bucket=hidden_size**2 if bucket == "auto" else int(bucket),
            max_live=_MAX_LIVE if live == "auto" else int(live),
            gradient_bytes={"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2}.get(dtype),
        )


def _is_offloaded(zero: dict[str, Any], name: str) -> bool:
    return (zero.get(name) or {}).get("device", "none") != "none"


@dataclass(frozen=True)
class States:
    """Bytes by part on one GPU (or process), and of this process in main memory. update: beside the rest, while the
    optimizer steps."""

    gpu: dict[str, int]
    host: dict[str, int] = field(default_factory=dict)
    update: int = 0


def states(counts: Counts, sharding: Sharding, *, reference_bytes: int = 0, optimizer_bytes: int = _ADAM) -> States:
    """Weights, gradients, master weights, the optimizer's state, the reference and DeepSpeed's buffers.

    reference_bytes: of a reference model's weights, whole. Gradients are those that live from one micro-batch to the
    next; without DeepSpeed, and in its stage 1, that is all of them.
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
    update = FLOAT32 * counts.n_trained // n if is_deepspeed and stage in (1, 2) else 0
    host: dict[str, int] = {}
    if sharding.offloads_optimizer:
        host = {name: gpu[name] for name in ("master weights", "optimizer")}
        host["gradients"] = FLOAT32 * counts.n_trained // gradient_share
        gpu |= dict.fromkeys(("master weights", "optimizer", "gradients"), 0)
        update = 0
    if sharding.offloads_weights:
        host |= {name: gpu[name] for name in ("weights", "reference")}
        gpu |= {"weights": 0, "reference": 0}
    return States(gpu, host, update)


def _buffers(counts: Counts, sharding: Sharding) -> int:
    """Gradients on their way between processes, and in stage 3 weights gathered for the layers at work."""
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
