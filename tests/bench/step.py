"""One GRPO step by stock TRL and by vrft's shared prefix, side by side on the same random model in one process.

    OMP_NUM_THREADS=1 python tests/bench/step.py [--repeats N] [--out FILE.json] [--plot FILE.png]
    python tests/bench/step.py --gpu qwen2_vl_2b        (or qwen2_5_vl_3b; written, never run)

A step is all of `trainer.train()` for one prompt: fetching the batch, preprocessing, completions of exactly C tokens,
log probabilities of a reference (beta = 0.04), rewards, forward and backward without checkpointing, SGD. Of each side:

    FLOPs    by torch's counter, attention included; by its convention causal attention counts as if it were full
    time     CPU time, on a GPU wall time; the sides take turns, median
    saved    bytes that the loss keeps for its backward pass, each storage once, weights left out
    peak     on a GPU: the most memory that a step allocated on top of what was held before it

and the largest absolute differences of log probabilities (policy's and reference's), of the loss and of any weight's
gradient in the very first step. A plot needs further sizes, the rows without a time, and seven more minutes.

P: prompt tokens, C: completion tokens, G: completions of the prompt; tokens: G(P + C) / (P + GC), how many times fewer
of them the language model reads in a forward pass.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import gc
import json
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import matplotlib.pyplot as plt
import torch
import transformers
import trl
from step_cases import TIMING_MODEL, TRUE_SHAPES, Case, make_trainer, save_random_model
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from trl import GRPOTrainer

from vrft.models import attention
from vrft.train.trl_overrides import SharedPrefixTrainer

SIDES = {"stock": GRPOTrainer, "shared": SharedPrefixTrainer}
TIMED = (Case(665, 64, 8), Case(345, 64, 8), Case(665, 64, 16), Case(665, 64, 8, is_lora=True))
PLOTTED = (  # by P, by C, by G
    [Case(n_prompt, 64, 8) for n_prompt in (105, 189, 345, 665, 1050)],
    [Case(665, n_completion, 8) for n_completion in (16, 32, 64, 128, 256)],
    [Case(665, 64, n_group) for n_group in (2, 4, 8, 16)],
)
HEAD = """| case | GFLOPs | tokens | time, s | saved, MB | peak, MB | Δ log p | Δ loss | Δ gradient |
|---|---|---|---|---|---|---|---|---|"""


_ATEN = torch.ops.aten
FLOP_FORMULAS = {  # operators that torch's counter takes for free: attention on the CPU, TRL's head in its backward
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda *qkv, **_: sdpa_flop_count(*qkv[:3]),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda *grad, **_: sdpa_backward_flop_count(*grad[:4]),
    _ATEN.addmm_: lambda _, left, right, **__: 2 * math.prod(left) * right[1],
}


class Step(NamedTuple):
    """What was seen of one step. Rows are sorted by completion: stock TRL shuffles them."""

    size: tuple[int, int, int]  # (P, C, G)
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
        n_written = int(inputs["completion_mask"].sum(1).min())
        seen["size"] = inputs["prompt_ids"].shape[1], n_written, len(ids)
        seen["loss"], seen["completions"] = loss.item(), [ids[row] for row in order]
        seen["logps"] = torch.stack([seen.pop("policy"), inputs["ref_per_token_logps"].float()])[:, order]
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
        watched(attention, "causal_lower_right", without_modes),
        FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter,
    ):
        trainer.train()
    seen |= {"flops": counter.get_total_flops(), "saved_bytes": sum(seen["saved_bytes"].values())}
    return Step(**seen)


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
    """On a GPU; torch cannot make a `CausalBias` under a counter: "the raw Tensor object is already associated"."""
    with _disable_current_modes():
        return function(*args)


@contextlib.contextmanager
def counted_storages(exclude: Iterable[Tensor]) -> Iterator[dict[int, int]]:
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
    on_gpu, marks, held = trainer.args.device.type == "cuda", [], 0

    def mark(function: Callable, *args: Any) -> Any:
        if on_gpu:
            torch.cuda.synchronize()
        marks.append(time.perf_counter() if on_gpu else time.process_time())
        return function(*args)

    torch.manual_seed(seed)
    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    with watched(trainer, "get_batch_samples", mark), watched(trainer.callback_handler, "on_step_end", mark):
        trainer.train()
    started, ended = marks  # what `train` does before its first batch and after its last step is left out
    return ended - started, torch.cuda.max_memory_allocated() - held if on_gpu else None


def measured(case: Case, folder: Path, *, repeats: int, **options: Any) -> dict[str, Any]:
    """All figures of a case; without times if `repeats` is 0. options: of `make_trainer`."""
    gc.collect()  # the trainers of the case before
    trainers = {side: make_trainer(cls, case, folder, **options) for side, cls in SIDES.items()}
    steps = {side: observed_step(trainer) for side, trainer in trainers.items()}
    for side, step in steps.items():
        if step.size != case[:3]:
            raise ValueError(f"the {side} step has P, C, G = {step.size}, where {case[:3]} are wanted")
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


def token_ratio(n_prompt: int, n_completion: int, n_group: int) -> float:
    """How many times fewer tokens there are when G completions share their prompt.

    >>> token_ratio(600, 100, 6)
    3.5
    """
    return n_group * (n_prompt + n_completion) / (n_prompt + n_group * n_completion)


def table_row(figures: dict[str, Any], case: Case) -> str:
    """The figures as a row of Markdown: stock / shared = ratio."""

    def pair(key: str, unit: float, digits: int) -> str:
        stock, shared = (figures.get(key.format(side)) for side in SIDES)
        if stock is None:
            return "-"
        return f"{stock / unit:.{digits}f} / {shared / unit:.{digits}f} = **{stock / shared:.2f}**"

    size = case[:3]
    name = ", ".join(f"{letter} = {n}" for letter, n in zip("PCG", size, strict=True))
    cells = [
        name + (", LoRA and frozen vision" if case.is_lora else ""),
        pair("flops_{}", 1e9, 1),
        f"{token_ratio(*size):.2f}",
        pair("time_{}_s", 1, 2),
        pair("saved_bytes_{}", 1e6, 1),
        pair("peak_bytes_{}", 1e6, 0),
        *(f"{value:.1e}" for key, value in figures.items() if key.endswith("_difference")),
    ]
    return f"| {' | '.join(cells)} |"


def plot(ratios: dict[tuple[int, int, int], float], file: Path) -> None:
    """Draws the ratios of FLOPs, by (P, C, G), beside those of tokens."""
    figure, panels = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True, layout="constrained")
    names = ("prompt tokens P", "completion tokens C", "completions of a prompt G")
    for axis, (panel, name, cases) in enumerate(zip(panels, names, PLOTTED, strict=True)):
        sizes = [case[:3] for case in cases]
        x = [size[axis] for size in sizes]
        panel.plot(x, [ratios[size] for size in sizes], "o-", color="tab:blue", label="measured")
        panel.plot(
            x, [token_ratio(*size) for size in sizes], color="0.5", linewidth=0.8, label="tokens: G(P + C) / (P + GC)"
        )
        fixed = [f"{letter} = {n}" for i, (letter, n) in enumerate(zip("PCG", sizes[0], strict=True)) if i != axis]
        panel.set_xscale("log", base=2)
        panel.set_xticks(x, labels=x)
        panel.minorticks_off()
        panel.set(xlabel=name, title=", ".join(fixed))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.9")
    panels[0].set_ylabel("FLOPs of a step, stock / shared")
    panels[0].set_ylim(0)
    panels[0].legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=150)


def surroundings(device: str) -> str:
    """Where, with what and when."""
    versions = [f"{module.__name__} {module.__version__}" for module in (torch, transformers, trl)]
    return ", ".join([device, *versions, datetime.date.today().isoformat()])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="steps of each side that are timed")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures of the cases that train all weights")
    parser.add_argument("--plot", type=Path, help="a PNG file for the ratios of FLOPs")
    parser.add_argument("--gpu", choices=TRUE_SHAPES, help="a model of true size with random weights, in bfloat16")
    parser.add_argument("--attention", choices=("sdpa", "flash_attention_2"), default="sdpa", help="with --gpu")
    chosen = parser.parse_args()
    if chosen.repeats < 1:
        parser.error(f"--repeats {chosen.repeats}: at least 1")
    if chosen.gpu and not torch.cuda.is_available():
        parser.error(f"--gpu {chosen.gpu} needs a CUDA device, and torch sees none; without --gpu the CPU is measured")
    return chosen


def main() -> None:
    chosen = arguments()
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)  # also what DeepSpeed, where installed, writes to the standard output
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    architecture = TRUE_SHAPES[chosen.gpu] if chosen.gpu else TIMING_MODEL
    options = {"family": architecture.family, "gpu_attention": chosen.attention if chosen.gpu else None}
    points = [case for cases in PLOTTED for case in cases] if chosen.plot else []
    print(surroundings(torch.cuda.get_device_name() if chosen.gpu else "CPU, one thread"))
    print(HEAD, flush=True)
    results: dict[Case, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_random_model(folder, architecture)
        for case in dict.fromkeys([*TIMED, *points]):
            repeats = chosen.repeats if case in TIMED else 0
            results[case] = measured(case, folder, repeats=repeats, **options)
            print(table_row(results[case], case), flush=True)
    full = {case: figures for case, figures in results.items() if not case.is_lora}
    if chosen.out:
        records = [
            {key: value for key, value in full[case].items() if not key.startswith("peak")}
            for case in TIMED
            if case in full
        ]
        chosen.out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    if chosen.plot:
        plot({case[:3]: one["flops_stock"] / one["flops_shared"] for case, one in full.items()}, chosen.plot)


if __name__ == "__main__":
    main()
