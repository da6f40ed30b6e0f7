"""One GRPO step by stock TRL and by vrft's shared prefix, side by side on the same random model in one process.

    OMP_NUM_THREADS=1 python tests/bench/bench_step.py [--quick] [--repeats N] [--out FILE.json] [--plot FILE.png]
    python tests/bench/bench_step.py --gpu qwen2_vl_2b        (or qwen2_5_vl_3b; needs about 80 GB)

A step is all of `trainer.train()` for one prompt: fetching the batch, preprocessing, completions of exactly C tokens, the
reference model's log probabilities (beta = 0.04), rewards, forward and backward without checkpointing, SGD. Of each side:

    FLOPs    what torch's counter counts, attention included; as is its convention, causal attention as if it were full
    time     CPU time, on a GPU wall time; the sides take turns, median
    saved    bytes that the loss keeps for its backward pass, each storage once, weights left out
    peak     on a GPU: the most memory that a step allocated on top of what was held before it

and the largest absolute differences of log probabilities (policy's and reference's), of the loss and of any weight's
gradient in the very first step. Lines without a time are points of the plot. P: prompt tokens, C: completion tokens,
G: completions of the prompt.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import matplotlib.pyplot as plt
import torch
import transformers
import trl
from datasets import Dataset, Image, List
from peft import LoraConfig
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from small_models import picture, save_model, small_processor

from vrft.models import shared_prefix
from vrft.train.datasets import training_dataset
from vrft.train.shared_prefix import SharedPrefixTrainer

SIDES = {"stock": GRPOTrainer, "shared": SharedPrefixTrainer}
N_TEXT, N_TEMPLATE = 89, 16  # text tokens of every prompt; of these the chat template's
TOKEN_SIDE = 28  # pixels of an image token: 2 x 2 patches of 14


class Case(NamedTuple):
    """What is measured: P (text, and an image of P - 89 tokens, a square number), C, G."""

    n_prompt: int
    n_completion: int
    n_group: int
    is_lora: bool = False  # LoRA on the language model, the vision tower frozen; else all weights are trained


class Architecture(NamedTuple):
    """A family of `small_models`, and the fields of its configs that differ from those there."""

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    is_tied: bool = True


TIMED = (Case(665, 64, 8), Case(345, 64, 8), Case(665, 64, 16), Case(665, 64, 8, is_lora=True))
PLOTTED = {
    "P": [Case(n_prompt, 64, 8) for n_prompt in (105, 189, 345, 665, 1050)],
    "C": [Case(665, n_completion, 8) for n_completion in (16, 32, 64, 128, 256)],
    "G": [Case(665, 64, n_group) for n_group in (2, 4, 8, 16)],
}

TIMING_MODEL = Architecture(  # 8.3 M parameters, 1.3 M of them in the vision tower
    "qwen2_vl",
    {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "intermediate_size": 1024,
        "head_dim": 64,
        "vocab_size": 2048,
        "initializer_range": 0.02,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    },
    {"depth": 4, "embed_dim": 128, "hidden_size": 256, "mlp_ratio": 4, "initializer_range": 0.02},
    is_tied=False,
)
_TRUE_TEXT = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 151936,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "initializer_range": 0.02,
}
_TRUE_VISION = {"depth": 32, "num_heads": 16, "initializer_range": 0.02}
TRUE_SHAPES = {  # config.json of Qwen/Qwen2-VL-2B-Instruct and Qwen/Qwen2.5-VL-3B-Instruct
    "qwen2_vl_2b": Architecture(
        "qwen2_vl",
        _TRUE_TEXT
        | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
        _TRUE_VISION | {"embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4},
    ),
    "qwen2_5_vl_3b": Architecture(
        "qwen2_5_vl",
        _TRUE_TEXT
        | {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16},
        _TRUE_VISION
        | {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048, "window_size": 112}
        | {"fullatt_block_indexes": [7, 15, 23, 31]},
    ),
}

_ATEN = torch.ops.aten
FLOP_FORMULAS = {  # of operators that torch's counter takes for free: attention on the CPU, TRL's head in its backward
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, query, key, value, *_, **__: (
        sdpa_backward_flop_count(grad, query, key, value)
    ),
    _ATEN.addmm_: lambda _, left, right, **__: 2 * math.prod(left) * right[1],
}


def save_random_model(folder: Path, architecture: Architecture = TIMING_MODEL) -> Path:
    """The folder, with model and processor: policy and reference are loaded from there."""
    family, text, vision, is_tied = architecture
    return save_model(folder, family, is_tied=is_tied, text_options=text, vision_options=vision)


def make_trainer(
    cls: type[GRPOTrainer], case: Case, folder: Path, *, family: str = "qwen2_vl", on_gpu: bool = False, **load: Any
) -> GRPOTrainer:
    """A trainer of one prompt whose `train()` is one step; every completion has exactly C tokens.

    folder: of the saved model. load: options for `from_pretrained`.
    """
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj")
    trainer = cls(
        model=str(folder),
        args=GRPOConfig(
            output_dir=str(folder / "out"),
            max_steps=1,
            per_device_train_batch_size=case.n_group,
            gradient_accumulation_steps=1,
            num_generations=case.n_group,
            max_completion_length=case.n_completion,
            generation_kwargs={"min_new_tokens": case.n_completion},
            top_k=0,
            beta=0.04,
            gradient_checkpointing=False,
            optim="sgd",
            model_init_kwargs=load or None,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        reward_funcs=[reward],
        train_dataset=question_dataset(cls, case, folder),
        processing_class=small_processor(family),
        peft_config=lora if case.is_lora else None,
    )
    trainer.remove_callback(PrinterCallback)
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


def question_dataset(cls: type[GRPOTrainer], case: Case, folder: Path) -> Dataset:
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
    return Dataset.from_dict(columns).cast_column("images", List(Image()))


class Step(NamedTuple):
    """What was seen of one step. Rows are sorted by completion: stock TRL shuffles them."""

    flops: int
    saved_bytes: int
    loss: float
    completions: list[list[int]]
    logps: Tensor  # (2, G, C), the policy's and the reference's
    gradients: dict[str, Tensor]


def observed_step(trainer: GRPOTrainer, seed: int = 0) -> Step:
    """Takes a step, the random draws of which are those of `seed`."""
    seen: dict[str, Any] = {}

    def watch_loss(compute: Callable, model: torch.nn.Module, inputs: dict) -> Tensor:
        with counted_storages(exclude=trainer.model.parameters()) as seen["saved_bytes"]:
            loss = compute(model, inputs)
        ids = inputs["completion_ids"].tolist()
        order = sorted(range(len(ids)), key=ids.__getitem__)
        seen["loss"], seen["completions"] = loss.item(), [ids[row] for row in order]
        logps = torch.stack([seen.pop("policy"), inputs["ref_per_token_logps"].float()])
        seen["logps"] = logps[:, order]
        return loss

    def watch_logps(compute: Callable, *args: Any, **kwargs: Any) -> tuple:
        outputs = compute(*args, **kwargs)
        seen["policy"] = outputs[0].detach().float()
        return outputs

    def watch_backward(compute: Callable, *args: Any) -> Tensor:
        loss = compute(*args)
        weights = trainer.model.named_parameters()
        seen["gradients"] = {name: weight.grad.clone() for name, weight in weights if weight.grad is not None}
        return loss

    torch.manual_seed(seed)
    with (
        watched(trainer, "_compute_loss", watch_loss),
        watched(trainer, "_get_per_token_logps_and_entropies", watch_logps),
        watched(trainer, "training_step", watch_backward),
        watched(shared_prefix, "causal_lower_right", without_modes),
        FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter,
    ):
        trainer.train()
    return Step(counter.get_total_flops(), sum(seen.pop("saved_bytes").values()), **seen)


@contextlib.contextmanager
def watched(owner: object, name: str, watch: Callable) -> Iterator[None]:
    """Calls of the function `name` go to `watch`, which is given the function first."""
    function = getattr(owner, name)
    setattr(owner, name, functools.partial(watch, function))
    try:
        yield
    finally:
        setattr(owner, name, function)


def without_modes(function: Callable, *args: Any) -> Any:
    """torch cannot make a `CausalBias` while FLOPs are counted: "the raw Tensor object is already associated"."""
    with _disable_current_modes():
        return function(*args)


@contextlib.contextmanager
def counted_storages(exclude: Iterator[Tensor]) -> Iterator[dict[int, int]]:
    """Bytes, by address, of each storage that is saved for backward meanwhile."""
    found: dict[int, int] = {}
    excluded = {tensor.untyped_storage().data_ptr() for tensor in exclude}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield found


def differences(stock: Step, shared: Step) -> dict[str, float]:
    """The largest absolute differences. Raises if the sides have sampled different completions."""
    if stock.completions != shared.completions:
        raise ValueError("the two sides sampled different completions: their steps cannot be compared")
    if stock.gradients.keys() != shared.gradients.keys():
        raise ValueError(f"gradients on one side only: {sorted(stock.gradients.keys() ^ shared.gradients.keys())}")
    return {
        "max_logp_difference": (stock.logps - shared.logps).abs().max().item(),
        "max_loss_difference": abs(stock.loss - shared.loss),
        "max_gradient_difference": max(
            (gradient - shared.gradients[name]).abs().max().item() for name, gradient in stock.gradients.items()
        ),
    }


def timed_step(trainer: GRPOTrainer, seed: int) -> tuple[float, int | None]:
    """Seconds of a step (CPU time; on a GPU wall time) and, on a GPU, the bytes that it allocated at most."""
    torch.manual_seed(seed)
    gc.collect()
    if trainer.args.device.type == "cpu":
        started = time.process_time()
        trainer.train()
        return time.process_time() - started, None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held, started = torch.cuda.memory_allocated(), time.perf_counter()
    trainer.train()
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() - held


def measured(case: Case, folder: Path, *, repeats: int, **options: Any) -> dict[str, Any]:
    """All figures of a case; without times if `repeats` is 0. options: of `make_trainer`."""
    trainers = {side: make_trainer(cls, case, folder, **options) for side, cls in SIDES.items()}
    steps = {side: observed_step(trainer) for side, trainer in trainers.items()}
    runs = [{side: timed_step(trainer, seed) for side, trainer in trainers.items()} for seed in range(1, repeats + 1)]
    figures: dict[str, Any] = {"P": case.n_prompt, "C": case.n_completion, "G": case.n_group}
    figures |= {f"flops_{side}": step.flops for side, step in steps.items()}
    if runs:
        figures |= {f"time_{side}_s": statistics.median(run[side][0] for run in runs) for side in SIDES}
    figures |= {f"saved_bytes_{side}": step.saved_bytes for side, step in steps.items()}
    figures |= differences(**steps)
    if runs and runs[0]["stock"][1]:
        figures |= {f"peak_bytes_{side}": max(run[side][1] for run in runs) for side in SIDES}
    return figures


def bound(n_prompt: int, n_completion: int, n_group: int) -> float:
    """How many times fewer tokens there are when G completions share their prompt.

    >>> bound(600, 100, 6)
    3.5
    """
    return n_group * (n_prompt + n_completion) / (n_prompt + n_group * n_completion)


def row_of_table(figures: dict[str, Any], name: str = "") -> str:
    """The figures as a row of a table in Markdown."""

    def pair(key: str, unit: float, digits: int) -> str:
        stock, shared = (figures.get(key.format(side)) for side in SIDES)
        if stock is None:
            return "-"
        return f"{stock / unit:.{digits}f} / {shared / unit:.{digits}f} = **{stock / shared:.2f}**"

    size = [figures[letter] for letter in "PCG"]
    cells = [
        ", ".join(f"{letter} {n}" for letter, n in zip("PCG", size, strict=True)) + name,
        pair("flops_{}", 1e9, 1),
        f"{bound(*size):.2f}",
        pair("time_{}_s", 1, 2),
        pair("saved_bytes_{}", 1e6, 1),
        pair("peak_bytes_{}", 1e6, 0),
        *(f"{figures[key]:.1e}" for key in figures if key.endswith("_difference")),
    ]
    return f"| {' | '.join(cells)} |"


HEAD = """| case | GFLOPs | bound | time, s | saved, MB | peak, MB | Δ log p | Δ loss | Δ gradient |
|---|---|---|---|---|---|---|---|---|"""


def draw(results: Sequence[dict[str, Any]], file: Path) -> None:
    """The ratio of FLOPs against P, C and G, beside the ratio of tokens."""
    figure, panels = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
    names = {"P": "prompt tokens P", "C": "completion tokens C", "G": "completions of a prompt G"}
    for panel, (letter, cases) in zip(panels, PLOTTED.items(), strict=True):
        by_size = {(one["P"], one["C"], one["G"]): one["flops_stock"] / one["flops_shared"] for one in results}
        sizes = [case[:3] for case in cases]
        x = ["PCG".index(letter)]
        x = [size["PCG".index(letter)] for size in sizes]
        fixed = ", ".join(f"{other} = {size}" for other, size in zip("PCG", sizes[0], strict=True) if other != letter)
        panel.plot(x, [by_size[size] for size in sizes], "o-", color="#1f5f8b", label="measured FLOPs")
        panel.plot(x, [bound(*size) for size in sizes], color="#888888", linewidth=0.8, label="G(P + C) / (P + GC)")
        panel.set(xlabel=names[letter], title=fixed, xticks=x, ylim=(0, None))
