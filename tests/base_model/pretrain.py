"""Pre-trains the tiny base model from nothing: `python -m base_model.pretrain --out vrft/tiny_qwen2_vl`.

One thread, about ten minutes. Real digits of the pre-training pool, clean domain, all tasks; see
`pretrain_examples.py` for the data and `pretrain_losses.py` for the losses. Writes a folder that loads like any
Qwen2-VL, with a model card that holds the scores. The same seed gives the same weights on the same machine and
versions.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from base_model.card import measure, write_card
from base_model.examples import FRAME, MIXTURE, ExampleMaker, draw_text, load_tasks
from base_model.losses import FastForward, pretraining_losses
from base_model.model import build_model, build_processor, build_tokenizer
from base_model.muon import Muon
from torch import nn
from tqdm import tqdm
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from vrft.data.digits.scenes import DIGIT_NAMES

N_TOKENIZER_EXAMPLES = 3000
MUON_LR, ADAMW_LR = 0.02, 2e-3
WARMUP_STEPS = 40
MAX_GRADIENT_NORM = 1.0


def make_processor(seed: int) -> Qwen2VLProcessor:
    """Return the processor, its tokenizer trained on the tasks' own questions and completions."""
    rng = np.random.default_rng([seed, 1])
    plain, reworded, completions = [], [], []
    tasks = load_tasks()
    for number in range(N_TOKENIZER_EXAMPLES):
        kind = list(MIXTURE)[number % len(MIXTURE)]
        row, _, question, completion, _ = draw_text(kind, tasks, rng, reworded_share=1.0)
        reworded.append(question)
        completions.append(completion)
        plain.append(tasks[kind, ("think", "none")[number // len(MIXTURE) % 2]].question(row, FRAME))
    return build_processor(build_tokenizer(plain, completions, names=DIGIT_NAMES, other_text=reworded))


def make_optimizers(model: nn.Module, background: nn.Parameter) -> list[torch.optim.Optimizer]:
    """Return Muon for the weight matrices and AdamW for embeddings, norms, biases and the patch embedding."""
    matrices, others = [], [background]
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed_tokens" not in name
        (matrices if is_matrix else others).append(parameter)
    return [
        Muon(matrices, lr=MUON_LR),
        torch.optim.AdamW(others, lr=ADAMW_LR, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def pretrain(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    *,
    n_steps: int,
    batch_size: int,
    seed: int,
    snapshot_every: int = 0,
    snapshots: Path | None = None,
) -> None:
    """Train the model in place, with a progress bar; every `snapshot_every` steps save and measure in `snapshots`."""
    maker, forward = ExampleMaker(processor), FastForward(model, processor)
    background = nn.Parameter(torch.zeros(1))
    optimizers = make_optimizers(model, background)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: learning_rate_factor(s, n_steps)) for o in optimizers]
    parameters = [*model.parameters(), background]
    model.set_attn_implementation("eager")
    model.train()
    progress = tqdm(range(1, n_steps + 1), desc="pre-training", unit="step", mininterval=2.0)
    for step in progress:
        batch = maker.draw_batch(batch_size, np.random.default_rng([seed, 2, step]))
        losses = pretraining_losses(forward, batch, name_ids=maker.name_ids, background=background)
        losses.total.backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % 10 == 0:
            progress.set_postfix(text=f"{losses.text:.3f}", cells=f"{losses.cells:.3f}", look=f"{losses.attention:.2f}")
        if snapshots and step % snapshot_every == 0 and step < n_steps:
            save(model, processor, snapshots / f"step_{step}")
            tqdm.write(
                f"step {step}, {time.process_time():.0f} CPU-s: {measure(snapshots / f'step_{step}', n_rows=100)}"
            )
    model.set_attn_implementation("sdpa")
    model.eval()


def learning_rate_factor(step: int, n_steps: int) -> float:
    """Return the share of the full learning rate: a linear warm-up, then half a cosine down to nothing.

    >>> [round(learning_rate_factor(step, 1240), 2) for step in (0, 39, 640, 1240)]
    [0.03, 1.0, 0.5, 0.0]
    """
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (n_steps - WARMUP_STEPS)))


def save(model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, folder: Path) -> None:
    """Write model (bfloat16) and processor to the folder, readable by everyone."""
    half = Qwen2VLForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.generation_config = model.generation_config
    half.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def main() -> None:
    """Pre-train, save, measure, and write the model card."""
    parser = argparse.ArgumentParser(prog="python -m base_model.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--snapshots", type=Path, help="folder for snapshots, each measured on 100 rows a task")
    parser.add_argument("--snapshot-every", type=int, default=300)
    given = parser.parse_args()
    torch.set_num_threads(1)
    processor = make_processor(given.seed)
    model = build_model(processor.tokenizer, seed=given.seed)
    pretrain(
        model,
        processor,
        n_steps=given.steps,
        batch_size=given.batch_size,
        seed=given.seed,
        snapshot_every=given.snapshot_every,
        snapshots=given.snapshots,
    )
    cpu_seconds = time.process_time()
    save(model, processor, given.out)
    scores = measure(given.out, n_rows=300)
    write_card(
        given.out,
        scores,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        settings={"steps": given.steps, "batch size": given.batch_size, "seed": given.seed},
        cpu_seconds=cpu_seconds,
    )


if __name__ == "__main__":
    main()
