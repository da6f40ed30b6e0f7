"""Random models of the three families around the embedded tokenizer, and prompts with images of several sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from trl import GRPOConfig

from vrft.config.package_files import TINY_MODEL

FAMILIES = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, Qwen2VLVideoProcessor, 14),
    "qwen2_5_vl": (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
        14,
    ),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor, 16),
}
WIDTH = 64
TOKENS = ("image_pad", "video_pad", "vision_start", "vision_end")


def small_model(
    family: str,
    *,
    seed: int = 0,
    is_tied: bool = True,
    text_options: Mapping | None = None,
    vision_options: Mapping | None = None,
) -> PreTrainedModel:
    """Grouped-query attention, 4 heads on 2; weights large enough that tokens and gradients differ visibly.

    text_options, vision_options: fields of the family's two configs, over those set here.
    """
    config_class, model_class, *_, patch = FAMILIES[family]
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    half = WIDTH // 4 // 2
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": WIDTH // 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
        },
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.08,
    }
    vision = {"depth": 2, "num_heads": 4, "patch_size": patch, "spatial_merge_size": 2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
    if family == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [1], "window_size": 56}
    if family == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [0, 1]}
    ids = {f"{name.replace('pad', 'token')}_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in TOKENS[:2]}
    ids |= {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in TOKENS[2:]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(
            config_class(
                text_config={**text, **(text_options or {})},
                vision_config={**vision, "initializer_range": 0.08, **(vision_options or {})},
                tie_word_embeddings=is_tied,
                **ids,
            )
        )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def small_processor(family: str) -> ProcessorMixin:
    """The family's processor; an image keeps its size, rounded to patches."""
    *_, processor_class, video_class, patch = FAMILIES[family]
    size = {"shortest_edge": 1, "longest_edge": 10**7}
    sides = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2}
    return processor_class(
        image_processor=Qwen2VLImageProcessor(**sides, size=dict(size)),
        tokenizer=AutoTokenizer.from_pretrained(TINY_MODEL, padding_side="left"),
        video_processor=video_class(**sides, size=dict(size)),
        chat_template=(TINY_MODEL / "chat_template.jinja").read_text(encoding="utf-8"),
    )


def save_model(folder: Path, family: str, **options) -> Path:
    """Model and processor on disk, from where TRL loads its reference model."""
    small_model(family, **options).save_pretrained(folder)
    small_processor(family).save_pretrained(folder)
    return folder


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def prompt_rows(n: int, *, image_sizes=((112, 84), (56, 56), (84, 140)), n_images=(1,)) -> Dataset:
    """Questions of different lengths about images of different sizes, as TRL reads them."""
    questions = ["find it", "where is the digit seven", "count", "what is to the left of the four"]
    rows = [
        {
            "prompt": [{"role": "user", "content": questions[row % len(questions)]}],
            "images": [picture(*image_sizes[(row + i) % len(image_sizes)], seed=10 * row + i) for i in range(count)],
            "row_id": str(row),
        }
        for row in range(n)
        for count in [n_images[row % len(n_images)]]
    ]
    return Dataset.from_list(rows)


def reward_by_ids(completion_ids: list, **kwargs) -> list[float]:
    """Something that differs between completions."""
    return [sum(ids) % 7 / 7 + 0.01 * len(ids) for ids in completion_ids]


def make_trainer(trainer_class, model: PreTrainedModel, family: str, rows: Dataset, folder: Path, **options):
    """A GRPO trainer on the CPU with plain SGD. options: fields of `trl.GRPOConfig`, and those named here."""
    reward, peft_config = options.pop("reward", reward_by_ids), options.pop("peft_config", None)
    own = {name: options.pop(name) for name in ("must_share", "validation", "eval_dataset") if name in options}
    arguments = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 16,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "beta": 0.0,
        "top_k": 0,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 3,
    }
    trainer = trainer_class(
        model=model,
        args=GRPOConfig(**arguments | options),
        reward_funcs=reward if isinstance(reward, list) else [reward],
        train_dataset=rows,
        processing_class=small_processor(family),
        peft_config=peft_config,
        **own,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
