"""How much memory a run takes per GPU, by part and phase, before anything is loaded."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch

from vrft.config.batch_sizes import batch_sizes
from vrft.config.model_checks import unshared_key
from vrft.config.schema import Model
from vrft.errors import UserError
from vrft.memory.architectures import architecture, make_model
from vrft.memory.batch import Shapes, most_prompts
from vrft.memory.dry_run import rollout_bytes, step_bytes
from vrft.memory.parts import Counts, Sharding, States, bytes_of_optimizer, states
from vrft.memory.training_setup import Setup
from vrft.models.families import FAMILIES, seen_size

LARGE_IMAGE = (4032, 3024)  # pixels: a photograph, larger than any max_pixels in use
_QUESTION = 16  # tokens of the shortest question, with what stands around it


@dataclass(frozen=True)
class Plan:
    """Bytes of one GPU, by phase and part.

    Phases: evaluation; prefill and sampling of a rollout; step, a micro-batch's forward and backward; update of the
    weights.
    """

    phases: dict[str, dict[str, int]]
    host: dict[str, int]  # bytes of one process in main memory, by part
    n_weights: int
    n_trained: int
    shapes: Shapes
    image_wh: tuple[int, int]  # of an image after the processor's resize
    image_tokens: int  # of such an image in the prompt
    target: str  # cuda or cpu

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of each phase."""
        return {phase: sum(parts.values()) for phase, parts in self.phases.items()}

    @property
    def peak(self) -> int:
        """Bytes of the phase that takes the most."""
        return max(self.totals.values())


def make_plan(
    setup: Setup,
    *,
    target: str,
    gpu_bytes: int | None = None,
    image_wh: tuple[int, int] = LARGE_IMAGE,
    prompt_tokens: int | None = None,
    text_tokens: int | None = None,
    completion_tokens: int | None = None,
) -> Plan:
    """The memory that one process of a run takes.

    target: `cuda` or `cpu`. gpu_bytes: of the GPU, of which vLLM takes a share. image_wh: of an image before the
    processor's resize. prompt_tokens: of the longest prompt with its image; None for `memory.max_prompt_length`.
    text_tokens: of its text alone, instead of prompt_tokens; then a smaller image makes a shorter prompt.
    completion_tokens: of every completion; None for `memory.max_completion_length`.
    """
    seen = image_size(setup, image_wh)
    if text_tokens is None:
        text_tokens = text_length(setup, image_wh, prompt_tokens)
    shapes = _shapes(setup, seen, text_tokens, completion_tokens)
    known, sharding, lasting = _lasting(setup)
    counts = known.counts
    is_wide = sharding.stage is not None and sharding.stage >= 2
    shapes = replace(shapes, frees_gradients=is_wide)
    always = {name: size for name, size in lasting.gpu.items() if name != "gradients"}
    vllm = setup.rollout.vllm
    if setup.rollout.name == "vllm_colocate" and vllm and not vllm.sleep:
        always |= _vllm_bytes(setup, gpu_bytes)
    sampling = always | {"buffers": max(always["buffers"], _gathered(setup, sharding, counts, lasting))}
    images = _image_bytes(known.model, shapes)
    autocast = torch.bfloat16 if setup.model.dtype == "bfloat16" and sharding.stage is None else None
    phases: dict[str, dict[str, int]] = {}
    options = {"model": known, "target": target, "autocast": autocast}
    if _evaluates(setup):
        n = setup.memory.evaluation_batch_size
        alone = replace(shapes, rollout_prompts=n, rollout_rows=n, shares=setup.model.attention != "eager")
        most = max(_rollout(alone, **options), key=lambda parts: sum(parts.values()))
        alone_bytes = {
            "weights": counts.weight_bytes
        }  # evaluated before and after training, without the trainer's states
        phases["evaluation"] = (sampling if setup.trainer.eval_steps else alone_bytes) | most
    if shapes.trainer == "grpo":
        for name, parts in _sampling(setup, shapes, gpu_bytes, options).items():
            phases[name] = (
                sampling | parts | {"images": images + parts.get("images", 0)}
            )  # the previous step's images are still in memory
    own = _step(shapes, **options)
    if is_wide:
        own = own | {"gradients": lasting.gpu["gradients"]}
    at_hand = _image_bytes(
        known.model, replace(shapes, rollout_rows=shapes.n_completions)
    )  # those that the step counts
    phases["step"] = always | {"images": max(images - at_hand, 0)} | own
    phases["update"] = always | {"images": images} | lasting.update
    return Plan(
        phases={name: {part: size for part, size in parts.items() if size} for name, parts in phases.items()},
        host=lasting.host,
        n_weights=counts.n_weights,
        n_trained=counts.n_trained,
        shapes=shapes,
        image_wh=seen,
        image_tokens=_image_tokens(seen, setup),
        target=target,
    )


def peak_or_more(setup: Setup, n_bytes: int, **options: Any) -> int:
    """The peak of a frozen setup, or a part of it that alone exceeds `n_bytes`. options: those of `make_plan`."""
    lasting = _lasting(setup)[2]
    if lasting.least > n_bytes:  # known without a dry run
        return lasting.least
    return make_plan(setup, **options).peak


def _lasting(setup: Setup) -> tuple[_Known, Sharding, States]:
    """The model, how its states are partitioned, and their bytes."""
    known = _known_model(setup.model.model_dump_json())
    arguments = setup.trainer.args
    sharding = Sharding.of(
        setup.deepspeed.config,
        n_processes=setup.launch.n_processes,
        hidden_size=known.model.config.get_text_config().hidden_size,
    )
    has_reference = setup.trainer.name == "grpo" and arguments.get("beta", 0.0) and not setup.model.peft
    lasting = states(
        known.counts,
        sharding,
        reference_bytes=known.counts.weight_bytes if has_reference else 0,
        optimizer_bytes=bytes_of_optimizer(arguments),
    )
    return known, sharding, lasting


def _gathered(setup: Setup, sharding: Sharding, counts: Counts, lasting: States) -> int:
    """Bytes of other processes' weights that ZeRO-3 gathers to sample: all of them, unless TRL is set not to."""
    if sharding.stage != 3 or not setup.trainer.args.get("ds3_gather_for_generation", True):
        return 0
    return counts.weight_bytes - lasting.gpu["weights"]


def image_size(setup: Setup, image_wh: tuple[int, int] = LARGE_IMAGE) -> tuple[int, int]:
    """(width, height) of an image after the processor's resize. Raises `UserError` for an image that is too thin."""
    family, memory = FAMILIES[setup.model.family], setup.memory
    try:
        return seen_size(image_wh, family, min_pixels=memory.min_pixels, max_pixels=memory.max_pixels)
    except ValueError as error:
        raise UserError(f"plan.image_wh is {list(image_wh)}, which the image processor refuses: {error}") from None


def text_length(setup: Setup, image_wh: tuple[int, int] = LARGE_IMAGE, prompt_tokens: int | None = None) -> int:
    """Tokens of the longest prompt's text.

    prompt_tokens: of the prompt with its image; None for `memory.max_prompt_length`.
    """
    longest = prompt_tokens or setup.memory.max_prompt_length
    return max(longest - _image_tokens(image_size(setup, image_wh), setup), _QUESTION)


def _image_tokens(seen_wh: tuple[int, int], setup: Setup) -> int:
    return seen_wh[0] * seen_wh[1] // FAMILIES[setup.model.family].pixel_factor ** 2


def _shapes(setup: Setup, seen: tuple[int, int], text_tokens: int, completion_tokens: int | None) -> Shapes:
    """The shapes of one process's batch. seen: (width, height) of an image after the processor's resize."""
    memory, trainer, arguments = setup.memory, setup.trainer, setup.trainer.args
    sizes = batch_sizes(setup.trainer, setup.memory, setup.launch)
    per_device, accumulation = sizes["per_device_train_batch_size"], sizes["gradient_accumulation_steps"]
    is_grpo = trainer.name == "grpo"
    group = memory.num_generations if is_grpo else 1
    rows = per_device * (arguments.get("steps_per_generation") or accumulation) if is_grpo else per_device
    n_prompts, rollout_prompts = most_prompts(
        per_device, group, n_steps=rows // per_device, n_processes=setup.launch.n_processes
    )
    cell = _patch(setup)
    return Shapes(
        n_prompts=n_prompts,
        n_completions=per_device,
        rollout_prompts=rollout_prompts,
        rollout_rows=rows,
        prompt=_image_tokens(seen, setup) + text_tokens,
        completion=completion_tokens or memory.max_completion_length,
        image_grid=(1, seen[1] // cell, seen[0] // cell),
        shares=is_grpo
        and bool(setup.rollout.sharing)
        and setup.model.attention != "eager"
        and not unshared_key(setup.model, trainer),
        trainer=trainer.name,
        checkpointing=memory.gradient_checkpointing,
        accumulates=accumulation > 1,
    )


def _patch(setup: Setup) -> int:
    """Pixels of a patch's side: a token is 2 × 2 patches in every family."""
    return FAMILIES[setup.model.family].pixel_factor // 2


def _image_bytes(model, shapes: Shapes) -> int:
    """Bytes of all patches of a generation in float32; TRL keeps them once for every completion."""
    vision = model.config.vision_config
    channels = getattr(vision, "in_channels", getattr(vision, "in_chans", 3)) * vision.temporal_patch_size
    n_patches = shapes.image_grid[0] * shapes.image_grid[1] * shapes.image_grid[2]
    return shapes.rollout_rows * shapes.images * n_patches * channels * vision.patch_size**2 * 4


def _evaluates(setup: Setup) -> bool:
    wanted = setup.evaluate
    return wanted.before or wanted.after or bool(setup.trainer.eval_steps)


def _sampling(setup: Setup, shapes: Shapes, gpu_bytes: int | None, options: dict) -> dict[str, dict[str, int]]:
    """Bytes of sampling by phase: by torch, by vLLM on the same GPU, or none where a server samples."""
    rollout = setup.rollout
    if rollout.name == "vllm_server":
        return {}
    if rollout.name == "vllm_colocate":
        return {"sampling": _vllm_bytes(setup, gpu_bytes)}
    return dict(zip(("prefill", "sampling"), _rollout(shapes, **options), strict=True))


def _vllm_bytes(setup: Setup, gpu_bytes: int | None) -> dict[str, int]:
    """The share of a GPU that vLLM allocates: while it samples, or always if it does not sleep."""
    return {"vLLM": int(setup.rollout.vllm.gpu_memory_utilization * (gpu_bytes or 0))}


@dataclass(frozen=True, eq=False)
class _Known:
    """A policy on the meta device, and its counts."""

    model: Any
    counts: Counts


@functools.lru_cache(maxsize=4)
def _known_model(section: str) -> _Known:
    settings = Model.model_validate_json(section)
    model = make_model(settings, architecture(settings))
    return _Known(model, Counts.of(model))


@functools.lru_cache(maxsize=256)
def _measured(kind: str, known: _Known, shapes: Shapes, target: str, autocast: torch.dtype | None) -> Any:
    run = step_bytes if kind == "step" else rollout_bytes
    try:
        return run(known.model, shapes, target=target, autocast=autocast)
    except ValueError as error:
        raise UserError(f"plan: {error}; raise plan.prompt_tokens or lower memory.max_pixels") from None


def _step(shapes: Shapes, *, model: _Known, target: str, autocast: torch.dtype | None) -> dict[str, int]:
    return dict(_measured("step", model, replace(shapes, rollout_prompts=0, rollout_rows=0), target, autocast))


def _rollout(shapes: Shapes, *, model: _Known, target: str, autocast: torch.dtype | None) -> list[dict[str, int]]:
    wanted = replace(
        shapes, n_prompts=1, n_completions=1, checkpointing=False, accumulates=False, frees_gradients=False
    )
    return [dict(parts) for parts in _measured("rollout", model, wanted, target, autocast)]
