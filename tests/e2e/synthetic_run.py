"""A run directory as a finished run leaves it, with completions by chance in place of a model's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from vrft.data import load_builder
from vrft.evaluate.protocols import primary_metrics, protocol_key
from vrft.evaluate.score import score_completions
from vrft.files import write_rows
from vrft.tasks import load_task
from vrft.tasks.boxes import Frame
from vrft.tasks.reward import RewardFunction

SCORERS = {
    "reasoning_grounding": ("grounding", "grounding", {"iou": 1.0, "format": 1.0}),
    "detection": ("coco_present", "coco", {"iou": 1.0, "confidence": 1.0, "format": 1.0}),
    "classification": ("classification", "classification", {"accuracy": 1.0, "format": 1.0}),
}
SKILL = {"before": 0.4, "best": 0.85, "last": 0.65}
METRIC = {"grounding": "accuracy@0.5", "coco": "AP", "classification": "accuracy"}


def write_run(
    run_dir: Path,
    *,
    task_name: str = "reasoning_grounding",
    trainer: str = "grpo",
    n_test: int = 60,
    n_steps: int = 50,
    names: tuple[str, ...] = ("before", "best", "last"),
    seed: int = 0,
) -> Path:
    """Write all that a run leaves but its checkpoints. names: what was evaluated; without steps nothing was trained."""
    protocol, scorer, weights = SCORERS[task_name]
    config = _config(run_dir, task_name, trainer, protocol, scorer, weights, seed=seed, is_trained=n_steps > 0)
    task = load_task(**config["task"])
    options = {"domain": "dim", "k_shot": 4, "n_validation": 20, "n_test": n_test}
    splits = load_builder("digits")(options, task=task, out_dir=run_dir / "data", seed=seed)
    for split, rows in splits.items():
        write_rows(run_dir / "data" / f"{split}.jsonl", rows)
    generator = np.random.default_rng(seed)
    test_sets = {
        split: {name: {protocol_key(config["protocol"]): _evaluate(run_dir, config, task, split, rows, name, generator)}
                for name in names}
        for split, rows in splits.items()
        if split not in ("train", "validation")
    }  # fmt: skip
    validation = [{"step": s, "value": 0.5 + 0.25 * s / max(n_steps, 1), "n": 20} for s in range(0, n_steps + 1, 10)]
    after = next((name for name in names if name != "before"), None)
    result = {
        "before": test_sets["test"].get("before"),
        "after": test_sets["test"].get(after),
        "after_is": after,
        "test_sets": test_sets,
        "validation": validation if n_steps else [],
        "n_rows": {split: len(rows) for split, rows in splits.items()},
        "primary_metrics": primary_metrics(config["protocol"], task),
        "reward_terms": list(weights.items()),
        "durations_s": {"evaluate_before": 9.4, **({"train": 38.2, "evaluate_best": 9.1} if n_steps else {})},
        "seed": seed,
    }
    logs = _logs(n_steps, trainer, weights, METRIC[scorer], validation, generator)
    write_rows(run_dir / "metrics.jsonl", logs if n_steps else [])
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    (run_dir / "provenance.json").write_text(json.dumps(_provenance(seed)))
    (run_dir / "result.json").write_text(json.dumps(result))
    return run_dir


def frame_for_row(row) -> Frame:
    return Frame("norm1000", tuple(row["image_wh"]), (56, 56), coordinate_step=20)


def write_completion(task, row, skill, generator) -> str:
    """The gold with a little noise, or with chance 1 - skill something else; now and then nothing readable."""
    if generator.random() < 0.02:
        return generator.choice(["<think>two plus", "<answer></answer>", ""])
    is_right = generator.random() < skill
    thought = row.get("thought", "It has a closed loop.") if is_right else "two plus three is six."
    changed = dict(row, thought=thought)
    if task.name == "classification":
        changed["gold"] = row["gold"] if is_right else "four"
        return task.gold(changed, frame_for_row(row))
    gold = np.reshape(np.array(row["gold"], float), (-1, 4))
    if not is_right and row.get("distractors"):
        gold = np.array(row["distractors"][:1], float)
    noisy = np.clip(gold + generator.normal(0, 2 * (1.2 - skill), gold.shape), 0, 56)
    changed["gold"] = noisy.tolist() if task.name == "detection" else noisy[0].tolist()
    return task.gold(changed, frame_for_row(row)).replace("1.00", f"{generator.uniform(0.5, 1):.2f}")


def _evaluate(run_dir, config, task, split, rows, name, generator) -> dict:
    completions = [
        {"row_id": row["row_id"], "sample": 0, "text": text, "n_tokens": len(text) // 4 + 1, "is_truncated": not text}
        for row in rows
        for text in [write_completion(task, row, SKILL[name], generator)]
    ]
    scored, metrics = score_completions(
        rows,
        completions,
        task=task,
        frame_for_row=frame_for_row,
        protocol=config["protocol"],
        judge=RewardFunction(task, config["reward"]),
    )
    write_rows(run_dir / "evaluations" / name / split / "completions.jsonl", completions)
    write_rows(run_dir / "evaluations" / name / split / "scores.jsonl", scored)
    return metrics


def _logs(n_steps, trainer, weights, metric, validation, generator) -> list[dict]:
    logs = []
    for step in range(n_steps + 1):
        rise = 1 - np.exp(-3 * step / max(n_steps, 1))
        noise = generator.normal(0, 0.05)
        if step and trainer == "grpo":
            terms = {
                f"rewards/{name}/mean": min(1.0, 0.4 + 0.1 * i + 0.4 * rise + noise) for i, name in enumerate(weights)
            }
            logs.append({
                "step": step, "reward": sum(terms.values()), "reward_std": 0.3 - 0.1 * rise, **terms, "kl": 0.02 * rise,
                "loss": 0.01 + noise / 10, "completions/mean_length": 22 + 4 * noise, "completions/clipped_ratio": 0.02,
                "frac_reward_zero_std": min(1, 0.1 + 0.3 * rise + abs(noise)), "entropy": 0.6 - 0.3 * rise,
                "parse_rate": 0.98 + noise / 10,
            })  # fmt: skip
        elif step:
            logs.append({"step": step, "loss": 2 - 1.5 * rise + noise, "mean_token_accuracy": 0.5 + 0.4 * rise + noise})
        logs += [{"step": s["step"], f"validation/{metric}": s["value"], "validation/n": s["n"]}
                 for s in validation if s["step"] == step]  # fmt: skip
    return [{name: float(value) if name != "step" else value for name, value in entry.items()} for entry in logs]


def _config(run_dir, task_name, trainer, protocol, scorer, weights, *, seed, is_trained) -> dict:
    return {
        "run": {"name": f"{task_name}_{trainer}", "dir": str(run_dir), "seed": seed},
        "model": {"path": "tiny_qwen2_vl", "family": "tiny"},
        "task": {"name": task_name, "thinking": "think"},
        "dataset": {"builder": "digits", "domain": "dim"},
        "trainer": {"name": trainer, "prompts_per_step": 8, "learning_rate": 1e-4},
        "memory": {"num_generations": 8},
        "reward": {"name": "visual_rft", "weights": weights, "options": {}},
        "protocol": {"name": protocol, "version": 1, "scorer": scorer, "n_resamples": 200},
        "evaluate": {
            "before": True,
            "train": is_trained,
            "after": is_trained,
            "checkpoint": "best",
            "titles": {"clean": "clean ink"},
        },
    }


def _provenance(seed) -> dict:
    return {
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "is_dirty": False,
        "python": "3.11.2",
        "platform": "Linux",
        "versions": {"torch": "2.13.0", "trl": "1.16.0"},
        "choices": {"model": "tiny", "dataset": "digits"},
        "overrides": ["experiment=digits_riddles"],
        "config_hash": "c0" * 32,
        "data_hash": "da" * 32,
        "model_revision": None,
        "model_hash": "ee" * 32,
        "seed": seed,
    }
