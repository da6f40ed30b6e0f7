"""What `memory.py` measures: a real step on the CPU, every live tensor counted, beside the plan of the same config."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from vrft.config.schema import Config
from vrft.config.trl_arguments import trainer_arguments
from vrft.memory.live_bytes import LiveBytes
from vrft.memory.plan import Plan, make_plan
from vrft.memory.training_setup import Setup
from vrft.models.families import FAMILIES
from vrft.models.generate import render_prompt
from vrft.models.load import freeze_parts, load_model, load_processor
from vrft.train.dataset import training_dataset
from vrft.train.trl_overrides import SharedPrefixTrainer

sys.path.append(str(Path(__file__).parents[1]))
from configs import composed
from small_models import picture, save_model

SMALL_TEXT = {
    "hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64,
    "intermediate_size": 1536, "initializer_range": 0.02,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
}  # fmt: skip
SMALL_VISION = {
    "depth": 4, "num_heads": 4, "embed_dim": 192, "hidden_size": 384, "mlp_ratio": 4, "initializer_range": 0.02,
}  # fmt: skip
COMMON = [
    "evaluate.before=false", "evaluate.after=false", "trainer.eval_steps=null", "evaluate.checkpoint=last",
    "launch.device=cpu", "logging=none",
]  # fmt: skip


class Case(NamedTuple):
    """A model (`tiny`, or `small` of 20 M parameters), the size of every image, and the config's overrides."""

    model: str
    image_wh: tuple[int, int]
    overrides: tuple[str, ...]


_G4 = (
    "memory=roomy", "trainer.prompts_per_step=2", "memory.num_generations=4", "memory.max_completion_length=40",
)  # fmt: skip
_GRPO = (*_G4, "trainer.args.beta=0.0", "trainer.max_steps=2")
_CHECKPOINTING = "memory.gradient_checkpointing=true"
CASES = {
    "tiny, G = 4": Case("tiny", (56, 56), _GRPO),
    "tiny, every prompt G times": Case("tiny", (56, 56), (*_GRPO, "rollout=transformers")),
    "tiny, larger images, checkpointing": Case("tiny", (280, 280), (*_GRPO, _CHECKPOINTING)),
    "20 M, G = 4": Case("small", (280, 280), _GRPO),
    "20 M, every prompt G times": Case("small", (280, 280), (*_GRPO, "rollout=transformers")),
    "20 M, checkpointing, two micro-batches": Case(
        "small", (280, 280), (*_GRPO, _CHECKPOINTING, "memory.completions_per_device=4")
    ),
    "20 M, LoRA": Case("small", (280, 280), (*_GRPO, "model/peft=lora")),
    "20 M, LoRA, checkpointing": Case("small", (280, 280), (*_GRPO, "model/peft=lora", _CHECKPOINTING)),
    "20 M, frozen vision tower": Case("small", (280, 280), (*_GRPO, "model.freeze=[vision,projector]")),
    "20 M, G = 8, reference": Case("small", (280, 280), (*_GRPO, "memory.num_generations=8", "trainer.args.beta=0.04")),
    "20 M, max_pixels = 100352": Case("small", (560, 560), (*_GRPO, "memory.max_pixels=100352")),
    "20 M, max_pixels = 50176, two micro-batches": Case(
        "small", (560, 560), (*_GRPO, "memory.max_pixels=50176", "memory.completions_per_device=4")
    ),
    "20 M, G = 4, three prompts, micro-batches of 3": Case(
        "small", (280, 280), (*_GRPO, "trainer.prompts_per_step=3", "memory.completions_per_device=3")
    ),
    "20 M, G = 6, micro-batches of 4": Case(
        "small", (280, 280), (*_GRPO, "memory.num_generations=6", "memory.completions_per_device=4")
    ),
    "20 M, SFT": Case("small", (280, 280), (*_G4, "trainer=sft", "trainer.max_steps=2")),
    "20 M, SFT, checkpointing": Case("small", (280, 280), (*_G4, "trainer=sft", "trainer.max_steps=2", _CHECKPOINTING)),
}


class Figures(NamedTuple):
    """Bytes at the peak of the whole, and at that of sampling completions (0 for SFT)."""

    plan: Plan
    measured: int
    parts: dict[str, int]
    measured_sampling: int

    @property
    def planned(self) -> int:
        return self.plan.peak

    @property
    def planned_sampling(self) -> int:
        return max(self.plan.totals.get(phase, 0) for phase in ("prefill", "sampling"))


def save_small_model(folder: Path) -> Path:
    """A random Qwen2-VL of about 20 million parameters."""
    return save_model(folder, "qwen2_vl", text_options=SMALL_TEXT, vision_options=SMALL_VISION)


def config_of(case: Case, small: Path) -> Config:
    """The frozen config of a case."""
    model = [] if case.model == "tiny" else ["model.family=qwen2_vl", f"model.path={small}"]
    return composed(*COMMON, *model, *case.overrides)


def compare(case: Case, folder: Path, small: Path) -> Figures:
    """Plan and measure one case. folder: for what the trainer writes. small: the saved model of 20 M parameters."""
    config = config_of(case, small)
    trainer, prompt_tokens = _trainer(config, case.image_wh, folder)
    plan = make_plan(config.part(Setup), target="cpu", image_wh=case.image_wh, prompt_tokens=prompt_tokens)
    parts, sampling = _peaks(trainer)
    return Figures(plan, sum(parts.values()), parts, sampling)


def _peaks(trainer: Any) -> tuple[dict[str, int], int]:
    """Live tensors at the peak of two steps, by kind, and at that of sampling, in bytes.

    The second step is the first that has an optimizer's state.
    """
    live = LiveBytes(device="cpu")
    live.count(trainer.model.parameters(), "weights")
    live.count(trainer.model.buffers(), "weights")
    if getattr(trainer, "ref_model", None) is not None:
        live.count(trainer.ref_model.parameters(), "reference")
    peaks, in_sampling = [], [0]
    sample = getattr(trainer, "_generate_single_turn", None)

    def watched(*args, **kwargs) -> Any:
        peaks.append(dict(live.peak))
        live.reset_peak()
        made = sample(*args, **kwargs)
        in_sampling.append(live.peak_bytes)
        return made

    if sample:
        trainer._generate_single_turn = watched
    with live:
        trainer.train()
    return max([*peaks, dict(live.peak)], key=lambda peak: sum(peak.values())), max(in_sampling)


def _trainer(config: Config, image_wh: tuple[int, int], folder: Path) -> tuple[Any, int]:
    """A trainer of two steps, and the tokens of its prompts; completions all have the longest length."""
    settings, memory = config.model, config.memory
    family = FAMILIES[settings.family]
    processor = load_processor(settings.path, min_pixels=memory.min_pixels, max_pixels=memory.max_pixels)
    model = load_model(settings.path, family=family, dtype=settings.dtype, attention=settings.attention)
    freeze_parts(model, settings.freeze, family)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(max(2 * config.trainer.prompts_per_step, 2)):
        picture(*image_wh, seed=number).save(folder / f"{number}.png")
        rows.append({"row_id": str(number), "images": [f"{number}.png"], "image_wh": list(image_wh)})
    question = "where is it?"
    inputs = processor(text=[render_prompt(processor, question, 1)], images=[[picture(*image_wh)]], return_tensors="pt")
    n_prompt = inputs["input_ids"].shape[1]
    length = memory.max_completion_length
    arguments = trainer_arguments(config, folder / "out") | {"max_steps": 2, "save_strategy": "no", "report_to": []}
    arguments.pop("num_train_epochs", None)
    shared = {
        "model": model,
        "processing_class": processor,
        "peft_config": LoraConfig(**settings.peft) if settings.peft else None,
    }
    if config.trainer.name == "sft":
        text = _text_of(processor, length - 2)  # the template ends a turn with two tokens
        data = training_dataset(rows, folder, question=lambda row: question, completion=lambda row: text)
        trainer = SFTTrainer(
            args=SFTConfig(**{"remove_unused_columns": False, **arguments}), train_dataset=data, **shared
        )
        collate = trainer.data_collator
        trainer.data_collator = lambda batch: {k: v for k, v in collate(batch).items() if k != "row_id"}
    else:
        data = training_dataset(rows, folder, question=lambda row: question)
        kind = SharedPrefixTrainer if config.rollout.sharing else GRPOTrainer
        exact = {"generation_kwargs": {"min_new_tokens": length}}
        trainer = kind(args=GRPOConfig(**arguments | exact), reward_funcs=[reward], train_dataset=data, **shared)
    trainer.remove_callback(PrinterCallback)
    return trainer, n_prompt


def _text_of(processor: Any, n_tokens: int) -> str:
    """Text of so many tokens: line ends are one each."""
    text = "\n" * n_tokens
    assert len(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) == n_tokens
    return text


def reward(completion_ids: Sequence[Sequence[int]], **_) -> list[float]:
    """Something that differs between completions, so that no row is left out."""
    return [number + sum(ids) % 7 / 7 for number, ids in enumerate(completion_ids)]
