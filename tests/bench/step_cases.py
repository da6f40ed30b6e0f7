"""What `step.py` measures: sizes of a step, random models, and a trainer of one step for each side."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import transformers
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from vrft.train.dataset import training_dataset
from vrft.train.trl_overrides import SharedPrefixTrainer

sys.path.append(str(Path(__file__).parents[1]))
from small_models import picture, save_model, small_processor

N_TEXT, N_TEMPLATE = 89, 16  # text tokens of every prompt; of these the chat template's
TOKEN_SIDE = 28  # pixels of an image token: 2 x 2 patches of 14


class Case(NamedTuple):
    """P (text, and an image of P - 89 tokens, a square number), C, G; which weights are trained."""

    n_prompt: int
    n_completion: int
    n_group: int
    is_lora: bool = False  # LoRA on the language model, the vision tower frozen; else all weights


class Architecture(NamedTuple):
    """A family of `small_models`, and the fields of its configs that differ from those there."""

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    is_tied: bool = True


def _text(width: int, n_layers: int, n_heads: int, intermediate: int, vocabulary: int, sections: list[int]) -> dict:
    return {
        "hidden_size": width, "num_hidden_layers": n_layers, "num_attention_heads": n_heads, "num_key_value_heads": 2,
        "head_dim": width // n_heads, "intermediate_size": intermediate, "vocab_size": vocabulary,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
        "initializer_range": 0.02,
    }  # fmt: skip


TIMING_MODEL = Architecture(  # 8.3 M parameters, 1.3 M of them in the vision tower
    "qwen2_vl",
    _text(256, 6, 4, 1024, 2048, [8, 12, 12]),
    {"depth": 4, "num_heads": 4, "embed_dim": 128, "hidden_size": 256, "mlp_ratio": 4, "initializer_range": 0.02},
    is_tied=False,
)
_VISION = {"depth": 32, "num_heads": 16, "initializer_range": 0.02}
TRUE_SHAPES = {  # config.json of Qwen/Qwen2-VL-2B-Instruct and of Qwen/Qwen2.5-VL-3B-Instruct
    "qwen2_vl_2b": Architecture(
        "qwen2_vl",
        _text(1536, 28, 12, 8960, 151_936, [16, 24, 24]),
        {**_VISION, "embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4},
    ),
    "qwen2_5_vl_3b": Architecture(
        "qwen2_5_vl",
        _text(2048, 36, 16, 11_008, 151_936, [16, 24, 24]),
        {**_VISION, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048, "window_size": 112}
        | {"fullatt_block_indexes": [7, 15, 23, 31]},
    ),
}


def save_random_model(folder: Path, architecture: Architecture = TIMING_MODEL) -> None:
    """Policy and reference are loaded from there."""
    family, text, vision, is_tied = architecture
    save_model(folder, family, is_tied=is_tied, text_options=text, vision_options=vision)


def make_trainer(
    cls: type[GRPOTrainer], case: Case, folder: Path, *, family: str = "qwen2_vl", gpu_attention: str | None = None
) -> GRPOTrainer:
    """A trainer of one prompt whose `train()` is one step; every completion has exactly C tokens.

    folder: of the saved model. gpu_attention: None for float32 on the CPU, else bfloat16 on the GPU.
    """
    on_gpu = gpu_attention is not None
    arguments = GRPOConfig(
        output_dir=str(folder / "out"), save_strategy="no", report_to=[], disable_tqdm=True,
        max_steps=1, per_device_train_batch_size=case.n_group, gradient_accumulation_steps=1, optim="sgd",
        num_generations=case.n_group, max_completion_length=case.n_completion, top_k=0,
        generation_kwargs={"min_new_tokens": case.n_completion}, beta=0.04, gradient_checkpointing=False,
        bf16=on_gpu, use_cpu=not on_gpu, dataloader_pin_memory=on_gpu,
        model_init_kwargs={"dtype": "bfloat16", "attn_implementation": gpu_attention} if on_gpu else None,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj")
    trainer = cls(
        model=str(folder),
        args=arguments,
        reward_funcs=[reward],
        train_dataset=question_dataset(cls, case, folder),
        processing_class=small_processor(family),
        peft_config=lora if case.is_lora else None,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    leave_reference(trainer.model)
    return trainer


@torch.no_grad()
def leave_reference(policy: torch.nn.Module) -> None:
    """Some noise on the weights that are trained: the divergence from the reference and its gradient are 0 before."""
    torch.manual_seed(0)
    for weight in policy.parameters():
        if weight.requires_grad:
            weight += 0.002 * torch.randn_like(weight)


def reward(completion_ids: Sequence[Sequence[int]], **_) -> list[float]:
    """Seven values, by the sum of a completion's token ids: a group has several."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def question_dataset(cls: type[GRPOTrainer], case: Case, folder: Path) -> datasets.Dataset:
    """One question about one image file, as vrft reads it and, for stock TRL, as TRL's examples do."""
    side = math.isqrt(case.n_prompt - N_TEXT)
    if side**2 != case.n_prompt - N_TEXT:
        raise ValueError(f"P = {case.n_prompt}: P - {N_TEXT} has to be a square number, the tokens of the image")
    picture(side * TOKEN_SIDE, side * TOKEN_SIDE).save(folder / f"{side}.png")
    question = "\n" * (N_TEXT - N_TEMPLATE)  # of all strings these surely are one token a character
    rows = [{"row_id": "0", "images": [f"{side}.png"]}]
    if issubclass(cls, SharedPrefixTrainer):
        return training_dataset(rows, folder, question=lambda row: question)
    columns = {"prompt": [[{"role": "user", "content": question}]], "images": [[str(folder / f"{side}.png")]]}
    return datasets.Dataset.from_dict(columns).cast_column("images", datasets.List(datasets.Image()))
