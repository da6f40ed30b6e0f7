"""From vrft's settings to the fields of TRL's configs: the one place where both vocabularies meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vrft.config.schema import Config, Memory, Rollout


def trainer_arguments(config: Config, folder: Path) -> dict[str, Any]:
    """The fields of `trl.GRPOConfig` or `trl.SFTConfig` for a frozen config; `trainer.args` has the last word.

    Batches are counted by TRL in completions for GRPO and in rows for SFT; `config.derived` holds both numbers.
    folder: where checkpoints go.
    """
    trainer, memory, derived = config.trainer, config.memory, config.derived
    on_cpu = derived.device == "cpu"
    arguments = {
        "output_dir": str(folder),
        "seed": config.run.seed,
        "learning_rate": trainer.learning_rate,
        "per_device_train_batch_size": derived.per_device_train_batch_size,
        "gradient_accumulation_steps": derived.gradient_accumulation_steps,
        "gradient_checkpointing": memory.gradient_checkpointing,
        "bf16": config.model.dtype == "bfloat16",
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "logging_steps": 1,
        "report_to": config.logging.report_to,
        "run_name": config.run.name,
        "save_strategy": "steps" if trainer.save_steps else "no",
        "save_total_limit": 2,
        "disable_tqdm": True,  # vrft shows one bar of its own
        "deepspeed": config.deepspeed.config,
    }
    if trainer.max_steps:
        arguments["max_steps"] = trainer.max_steps
    if trainer.epochs:
        arguments["num_train_epochs"] = trainer.epochs
    if trainer.save_steps:
        arguments["save_steps"] = trainer.save_steps
    own = _grpo(config.rollout, memory) if trainer.name == "grpo" else {"max_length": None}
    return arguments | own | trainer.args


def _grpo(rollout: Rollout, memory: Memory) -> dict[str, Any]:
    return {
        "num_generations": memory.num_generations,
        "max_completion_length": memory.max_completion_length,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        **_vllm(rollout, memory),
    }


def _vllm(rollout: Rollout, memory: Memory) -> dict[str, Any]:
    """TRL's fields for a rollout by vLLM; none for the others."""
    mode, settings = rollout.name.partition("vllm_")[2], rollout.vllm
    if not mode:
        return {}
    shared = {"use_vllm": True, "vllm_mode": mode}
    if mode == "server":
        return shared | {
            "vllm_server_base_url": f"http://{settings.host}:{settings.port}",
            "vllm_server_timeout": settings.timeout_s,
            "vllm_group_port": settings.group_port,
        }
    return shared | {
        "vllm_gpu_memory_utilization": settings.gpu_memory_utilization,
        "vllm_tensor_parallel_size": settings.tensor_parallel_size,
        "vllm_max_model_length": vllm_length(rollout, memory),
        "vllm_enable_sleep_mode": settings.sleep,
    }


def vllm_length(rollout: Rollout, memory: Memory) -> int:
    """Tokens of prompt and completion that vLLM makes room for."""
    return rollout.vllm.max_model_len or memory.max_prompt_length + memory.max_completion_length
