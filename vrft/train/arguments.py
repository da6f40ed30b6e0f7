"""From vrft's config to the fields of TRL's: the one place that knows both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from datasets import Dataset

from vrft.data.images import decode_upright
from vrft.tasks.rows import Row, image_paths


def trainer_arguments(config: dict, folder: Path) -> dict:
    """The fields of `trl.GRPOConfig` or `trl.SFTConfig` for a frozen config; `trainer.args` has the last word.

    Batches are counted by TRL in completions for GRPO and in rows for SFT; `config["derived"]` holds both numbers.
    """
    trainer, memory = config["trainer"], config["memory"]
    on_cpu = config["derived"]["device"] == "cpu"
    arguments = {
        "output_dir": str(folder),
        "seed": config["run"]["seed"],
        "learning_rate": trainer["learning_rate"],
        "per_device_train_batch_size": config["derived"]["per_device_train_batch_size"],
        "gradient_accumulation_steps": config["derived"]["gradient_accumulation_steps"],
        "gradient_checkpointing": memory["gradient_checkpointing"],
        "bf16": config["model"]["dtype"] == "bfloat16",
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "logging_steps": 1,
        "report_to": config["logging"]["report_to"],
        "run_name": config["run"]["name"],
        "save_strategy": "steps" if trainer["save_steps"] else "no",
        "save_total_limit": 2,
        "disable_tqdm": True,  # vrft shows one bar of its own
        "deepspeed": config["deepspeed"]["config"],
    }
    if trainer["max_steps"]:
        arguments["max_steps"] = trainer["max_steps"]
    if trainer["epochs"]:
        arguments["num_train_epochs"] = trainer["epochs"]
    if trainer["save_steps"]:
        arguments["save_steps"] = trainer["save_steps"]
    return arguments | (_grpo(config) if trainer["name"] == "grpo" else {"max_length": None}) | trainer["args"]


def _grpo(config: dict) -> dict:
    rollout, memory = config["rollout"], config["memory"]
    return {
        "num_generations": memory["num_generations"],
        "max_completion_length": memory["max_completion_length"],
        "temperature": rollout["temperature"],
        "top_p": rollout["top_p"],
        "top_k": rollout["top_k"],
        **_vllm(config),
    }


def _vllm(config: dict) -> dict:
    """TRL's fields for a rollout by vLLM; none for the others."""
    mode = config["rollout"]["name"].partition("vllm_")[2]
    if not mode:
        return {}
    settings = config["rollout"]["vllm"]
    shared = {"use_vllm": True, "vllm_mode": mode}
    if mode == "server":
        return shared | {
            "vllm_server_base_url": f"http://{settings['host']}:{settings['port']}",
            "vllm_server_timeout": settings["timeout_s"],
            "vllm_group_port": settings["group_port"],
        }
    return shared | {
        "vllm_gpu_memory_utilization": settings["gpu_memory_utilization"],
        "vllm_tensor_parallel_size": settings["tensor_parallel_size"],
        "vllm_max_model_length": longest(config),
        "vllm_enable_sleep_mode": settings["sleep"],
    }


def longest(config: dict) -> int:
    """The most tokens of prompt and completion together that vLLM must hold."""
    memory = config["memory"]
    return config["rollout"]["vllm"]["max_model_len"] or memory["max_prompt_length"] + memory["max_completion_length"]


def training_dataset(
    rows: Sequence[Row], root: Path, *, question: Callable[[Row], str], completion: Callable[[Row], str] | None = None
) -> Dataset:
    """Columns `prompt` (one user turn), `images` and `row_id`; with `completion` also that (one assistant turn).

    TRL puts the images in front of the question's text. Rows that are read together share one image object for each
    file, which is decoded once.
    """
    columns = {
        "prompt": [[{"role": "user", "content": question(row)}] for row in rows],
        "images": [[str(path) for path in image_paths(row, root)] for row in rows],
        "row_id": [row["row_id"] for row in rows],
    }
    if completion is not None:
        columns["completion"] = [[{"role": "assistant", "content": completion(row)}] for row in rows]
    return Dataset.from_dict(columns).with_transform(_with_images)


def _with_images(batch: dict[str, list]) -> dict[str, list]:
    """Columns of rows with image files -> the same with their images, upright."""
    if "images" not in batch:  # only other columns were selected
        return batch
    decoded = {path: decode_upright(Path(path).read_bytes())[0] for path in set(chain(*batch["images"]))}
    return batch | {"images": [[decoded[path] for path in paths] for paths in batch["images"]]}
