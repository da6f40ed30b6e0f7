"""A frozen config's memory per GPU, by part and phase, before anything is loaded."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from typing import Any

import torch

from vrft.config.batch_sizes import batch_sizes, n_processes
from vrft.errors import UserError
from vrft.memory.architectures import architecture, make_model
from vrft.memory.batch import Shapes, most_prompts
from vrft.memory.dry_run import rollout_bytes, step_bytes
from vrft.memory.parts import Counts, Sharding, States, bytes_of_optimizer, states
from vrft.models.families import FAMILIES, pixel_limits, seen_size

LARGE_IMAGE = (4032, 3024)  # pixels: a photograph, larger than any max_pixels in use
_QUESTION = 16  # tokens of the shortest question, with what stands around it


@dataclass(frozen=True)
class Plan:
    """phases: bytes by part, of one GPU, in each phase: evaluation, prefill and sampling (of a rollout), step (a
    micro-batch's forward and backward), update (of the weights). host: of a process in main memory, by part.

    image_wh: the size to which the image is brought. image_tokens: what it takes of the prompt.
    """

    phases: dict[str, dict[str, int]]
    host: dict[str, int]
    n_weights: int
    n_trained: int
    shapes: Shapes
    image_wh: tuple[int, int]
    image_tokens: int
    target: str

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of each phase."""
        return {phase: sum(parts.values()) for phase, parts in self.phases.items()}

    @property
    def peak(self) -> int:
        """Bytes of the phase that takes the most."""
        return max(self.totals.values())


def make_plan(
    config: dict[str, Any],
    *,
    target: str,
    gpu_bytes: int | None = None,
    image_wh: tuple[int, int] = LARGE_IMAGE,
    prompt_tokens: int | None = None,
    text_tokens: int | None = None,
    completion_tokens: int | None = None,
) -> Plan:
    """What one process of a frozen config takes.

    target: `cuda` or `cpu`. gpu_bytes: of the GPU, of which vLLM takes a share. image_wh: the size of an image before
    it is resized. prompt_tokens: of the longest prompt, image included; None for `memory.max_prompt_length`.
    text_tokens: in place of it, of its text alone, so that a smaller image makes a shorter prompt. completion_tokens:
    of every completion; None for `memory.max_completion_length`.
    """
    seen = image_size(config, image_wh)
    if text_tokens is None:
        text_tokens = text_length(config, image_wh, prompt_tokens)
    shapes = _shapes(config, seen, text_tokens, completion_tokens)
    known, sharding, lasting = _lasting(config)
    counts = known.counts
    is_wide = sharding.stage is not None and sharding.stage >= 2
    shapes = replace(shapes, sheds_gradients=is_wide)
    always = {name: size for name, size in lasting.gpu.items() if name != "gradients"}
    if not config["rollout"].get("vllm", {}).get("sleep", True):
        always |= _vllm_bytes(config, gpu_bytes)
    sampling = always | {"buffers": max(always["buffers"], _gathered(config, sharding, counts, lasting))}
    images = _image_bytes(known.model, shapes)
    autocast = torch.bfloat16 if config["model"]["dtype"] == "bfloat16" and sharding.stage is None else None
    phases: dict[str, dict[str, int]] = {}
    options = {"model": known, "target": target, "autocast": autocast}
    if _evaluates(config):
        n = config["memory"]["evaluation_batch_size"]
        alone = replace(shapes, rollout_prompts=n, rollout_rows=n, shares=config["model"]["attention"] != "eager")
        most = max(_rollout(alone, **options), key=lambda parts: sum(parts.values()))
        alone_bytes = {"weights": counts.weight_bytes}  # judged before and after, without the trainer's states
        phases["evaluation"] = (sampling if config["trainer"]["eval_steps"] else alone_bytes) | most
    if shapes.trainer == "grpo":
        for name, parts in _sampling(config, shapes, gpu_bytes, options).items():
            phases[name] = sampling | parts | {"images": images + parts.get("images", 0)}  # of the step before, too
    own = _step(shapes, **options)
    if is_wide:
        own = own | {"gradients": lasting.gpu["gradients"]}
    at_hand = _image_bytes(known.model, replace(shapes, rollout_rows=shapes.n_completions))  # which the step counts
    phases["step"] = always | {"images": max(images - at_hand, 0)} | own
    phases["update"] = always | {"images": images} | lasting.update
    return Plan(
        phases={name: {part: size for part, size in parts.items() if size} for name, parts in phases.items()},
        host=lasting.host,
        n_weights=counts.n_weights,
        n_trained=counts.n_trained,
        shapes=shapes,
        image_wh=seen,
        image_tokens=_image_tokens(seen, config),
        target=target,
    )


def peak_or_more(config: dict[str, Any], n_bytes: int, **options: Any) -> int:
    """The peak of a frozen config, or a part of it that alone exceeds `n_bytes`. options: those of `make_plan`."""
    lasting = _lasting(config)[2]
    if lasting.least > n_bytes:  # known at once, without a dry run
        return lasting.least
    return make_plan(config, **options).peak


def _lasting(config: dict[str, Any]) -> tuple[_Known, Sharding, States]:
    """The model, how its states are shared out, and what they take."""
    known = _known_model(_as_key(config["model"]))
    arguments = config["trainer"]["args"]
    sharding = Sharding.of(config, known.model.config.get_text_config().hidden_size)
    has_reference = config["trainer"]["name"] == "grpo" and arguments.get("beta", 0.0) and not config["model"]["peft"]
    lasting = states(
        known.counts,
        sharding,
        reference_bytes=known.counts.weight_bytes if has_reference else 0,
        optimizer_bytes=bytes_of_optimizer(arguments),
    )
    return known, sharding, lasting


def _gathered(config: dict[str, Any], sharding: Sharding, counts: Counts, lasting: States) -> int:
    """Weights of other processes that ZeRO-3 brings together to sample: all of them, unless TRL is told not to."""
    if sharding.stage != 3 or not config["trainer"]["args"].get("ds3_gather_for_generation", True):
        return 0
    return counts.weight_bytes - lasting.gpu["weights"]


def image_size(config: dict[str, Any], image_wh: tuple[int, int] = LARGE_IMAGE) -> tuple[int, int]:
    """(width, height) to which an image is brought under `memory.max_pixels`. Raises `UserError` for a thin one."""
    family = FAMILIES[config["model"]["family"]]
    try:
        return seen_size(image_wh, family, **pixel_limits(config["memory"]))
    except ValueError as error:
        raise UserError(f"plan.image_wh is {list(image_wh)}, which the image processor refuses: {error}") from None


def text_length(
    config: dict[str, Any], image_wh: tuple[int, int] = LARGE_IMAGE, prompt_tokens: int | None = None
) -> int:
    """Tokens of the longest prompt beside its image's.

    prompt_tokens: with them; None for `memory.max_prompt_length`.
    """
    longest = prompt_tokens or config["memory"]["max_prompt_length"]
    return max(longest - _image_tokens(image_size(config, image_wh), config), _QUESTION)


def _image_tokens(seen_wh: tuple[int, int], config: dict[str, Any]) -> int:
    return seen_wh[0] * seen_wh[1] // FAMILIES[config["model"]["family"]].pixel_factor ** 2


def _shapes(config: dict[str, Any], seen: tuple[int, int], text_tokens: int, completion_tokens: int | None) -> Shapes:
    """What one process computes on. seen: the (width, height) that an image is brought to."""
    memory, trainer, arguments = config["memory"], config["trainer"], config["trainer"]["args"]
    sizes = batch_sizes(config)
    per_device, accumulation = sizes["per_device_train_batch_size"], sizes["gradient_accumulation_steps"]
    is_grpo = trainer["name"] == "grpo"
    group = memory["num_generations"] if is_grpo else 1
    rows = per_device * (arguments.get("steps_per_generation") or accumulation) if is_grpo else per_device
    n_prompts, rollout_prompts = most_prompts(
        per_device, group, n_steps=rows // per_device, n_processes=n_processes(config)
    )
    cell = _patch(config)
    return Shapes(
        n_prompts=n_prompts,
        n_completions=per_device,
        rollout_prompts=rollout_prompts,
        rollout_rows=rows,
        prompt=_image_tokens(seen, config) + text_tokens,
        completion=completion_tokens or memory["max_completion_length"],
        image_grid=(1, seen[1] // cell, seen[0] // cell),
        shares=is_grpo and bool(config["rollout"].get("sharing")) and config["model"]["attention"] != "eager",
        trainer=trainer["name"],
        checkpointing=memory["gradient_checkpointing"],
        accumulates=accumulation > 1,
    )


def _patch(config: dict[str, Any]) -> int:
    """Pixels of a patch's side: a token is 2 × 2 patches in every family."""
    return FAMILIES[config["model"]["family"]].pixel_factor // 2


def _image_bytes(model, shapes: Shapes) -> int:
    """Patches of all images of a generation, float32, of each completion again, as TRL keeps them."""
    vision = model.config.vision_config
    channels = getattr(vision, "in_channels", getattr(vision, "in_chans", 3)) * vision.temporal_patch_size
    n_patches = shapes.image_grid[0] * shapes.image_grid[1] * shapes.image_grid[2]
    return shapes.rollout_rows * shapes.images * n_patches * channels * vision.patch_size**2 * 4


def _evaluates(config: dict[str, Any]) -> bool:
    wanted = config["evaluate"]
    return wanted["before"] or wanted["after"] or bool(config["trainer"]["eval_steps"])


def _sampling(
    config: dict[str, Any], shapes: Shapes, gpu_bytes: int | None, options: dict
) -> dict[str, dict[str, int]]:
    """What sampling takes by phase: of torch, of vLLM on the same GPU, or nothing where a server does it."""
    rollout = config["rollout"]
    if rollout["name"] == "vllm_server":
        return {}
    if rollout["name"] == "vllm_colocate":
        return {"sampling": _vllm_bytes(config, gpu_bytes)}
    return dict(zip(("prefill", "sampling"), _rollout(shapes, **options), strict=True))


def _vllm_bytes(config: dict[str, Any], gpu_bytes: int | None) -> dict[str, int]:
    """The share of a GPU that vLLM takes whole: while it samples, or always where it does not sleep."""
    return {"vLLM": int(config["rollout"]["vllm"]["gpu_memory_utilization"] * (gpu_bytes or 0))}


@dataclass(frozen=True, eq=False)
class _Known:
    """A policy on the meta device, and its counts."""

    model: Any
    counts: Counts


def _as_key(section: dict[str, Any]) -> str:
    return json.dumps(section, sort_keys=True)


@functools.lru_cache(maxsize=4)
def _known_model(section: str) -> _Known:
    settings = json.loads(section)
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
        shapes, n_prompts=1, n_completions=1, checkpointing=False, accumulates=False, sheds_gradients=False
    )
    return [dict(parts) for parts in _measured("rollout", model, wanted, target, autocast)]
