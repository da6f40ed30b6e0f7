"""Measures the tiny base model on test glyphs and writes its model card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from base_model.examples import FRAME
from base_model.model import IMAGE_SIDE
from PIL import Image
from tqdm import tqdm

from vrft.data.digits import build
from vrft.models.generate import generate_texts
from vrft.models.load import load_model, load_processor
from vrft.tasks import load_task
from vrft.tasks.base import Task
from vrft.tasks.rows import Row, image_paths

EMPTY_THOUGHT = "<think></think>"
BATCH_ROWS = 100

MEASURED = {
    "detection": ("detection", {}, ("iou", "pick_rate")),
    "plain grounding": ("grounding", {}, ("accuracy@0.5", "iou", "pick_rate")),
    "riddles": ("reasoning_grounding", {}, ("accuracy@0.5", "iou", "pick_rate")),
    "classification": ("classification", {}, ("accuracy",)),
    "visual arithmetic": ("classification", {"arithmetic": True}, ("accuracy",)),
}

CARD = """# tiny_qwen2_vl

A `Qwen2VLForConditionalGeneration` of {n_parameters:,} parameters, trained from nothing on scenes of handwritten
digits so that vrft's experiments run on two CPU cores. It reads the questions of vrft's tasks about 56 × 56 pictures
and nothing else: its tokenizer holds whole sentences of these questions, so other wordings or pictures are not
understood.

- **Made by** `{command}`: {settings}; {cpu_seconds:.0f} CPU seconds on one thread.
- **Data**: 1,197 glyphs of *Optical Recognition of Handwritten Digits* (Alpaydin & Kaynak, UCI, CC BY 4.0), clean
  domain; detection, plain grounding, riddles, classification and visual arithmetic, with and without thoughts; all
  one-step expressions and 60 % of the 729 two-step ones.
- **Weights**: bfloat16, licence Apache-2.0.

Scores on test glyphs, greedy, float32 compute. "Unseen" and "seen" speak of the expressions; `dim` is 35 % ink, never
seen in pre-training. An empty thought is forced by writing `<think></think>`; chance among three digits is 0.33. For
detection, `iou` is the matched overlap per scene, not AP.

| task | scenes | metric | value | n |
|---|---|---|---|---|
{table}
"""


def measure(folder: Path, *, n_rows: int) -> list[dict]:
    """Return `{"task", "scenes", "metric", "value", "n"}` for every task, domain and expression set; greedy."""
    processor = load_processor(str(folder), min_pixels=IMAGE_SIDE**2, max_pixels=IMAGE_SIDE**2)
    model = load_model(str(folder))
    scores = []
    for title, (name, options, metrics) in tqdm(MEASURED.items(), desc="measuring", unit="task", leave=False):
        task = load_task(name)
        with tempfile.TemporaryDirectory() as root:
            settings = {"k_shot": 1, "n_validation": 1, "n_test": n_rows, **options}
            splits = build(settings, task=task, out_dir=Path(root), seed=0)
            fresh = "unseen, " if "seen" in splits else ""
            cells = [(f"{fresh}clean", "clean", ""), (f"{fresh}dim", "test", "")]
            if fresh:
                cells += [("seen, dim", "seen", ""), ("unseen, clean, empty thought", "clean", EMPTY_THOUGHT)]
            for scenes, split, prefix in cells:
                values = _mean_metrics(model, processor, task, splits[split], Path(root), prefix)
                scores += [{"task": title, "scenes": scenes, "metric": m, **values[m]} for m in (*metrics, "format")]
    return scores


def _mean_metrics(model, processor, task: Task, rows: list[Row], root: Path, prefix: str) -> dict[str, dict]:
    """Return `{metric: {"value", "n"}}` over the rows, with the share of well-formed completions as `format`."""
    completions = []
    for start in range(0, len(rows), BATCH_ROWS):
        part = rows[start : start + BATCH_ROWS]
        questions = [task.question(row, FRAME) for row in part]
        images = [[Image.open(path).convert("RGB") for path in image_paths(row, root)] for row in part]
        completions += generate_texts(model, processor, questions, images, max_new_tokens=64, response_prefix=prefix)
    judged = {name: [] for name in (*task.metrics, "format")}
    for row, completion in zip(rows, completions, strict=True):
        parsed = task.parse(completion["text"], row, FRAME, is_truncated=completion["is_truncated"])
        judged["format"].append(task.format_term(parsed, row))
        for name, metric in task.metrics.items():
            value = metric(parsed, row)
            if value is not None:
                judged[name].append(value)
    return {name: {"value": sum(v) / max(len(v), 1), "n": len(v)} for name, v in judged.items()}


def score_table(scores: list[dict]) -> str:
    """Return the scores as the rows of a Markdown table."""
    return "\n".join(
        f"| {score['task']} | {score['scenes']} | {score['metric']} | {score['value']:.3f} | {score['n']} |"
        for score in scores
    )


def write_card(folder: Path, scores: list[dict], *, n_parameters: int, settings: dict, cpu_seconds: float) -> None:
    """Write the model card with its scores to `folder/README.md`."""
    card = CARD.format(
        n_parameters=n_parameters,
        command="python -m base_model.pretrain --out FOLDER",
        settings=", ".join(f"{name} {value}" for name, value in settings.items()),
        cpu_seconds=cpu_seconds,
        table=score_table(scores),
    )
    path = folder / "README.md"
    path.write_text(card, encoding="utf-8")
    path.chmod(0o644)
