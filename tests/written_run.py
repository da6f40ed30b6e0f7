"""The files of a run as the report reads them, each whole: a test gives only what it is about."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from vrft.files import write_rows

_CONFIG = {
    "run": {"name": "x", "seed": 0},
    "model": {"path": None, "family": "tiny"},
    "task": {"name": "grounding"},
    "dataset": {"builder": "digits"},
    "trainer": {"name": "grpo", "prompts_per_step": 8, "learning_rate": 1e-4},
    "memory": {"num_generations": 8},
    "reward": {"name": "visual_rft"},
    "protocol": {"name": "grounding", "version": 1, "scorer": "grounding", "n_resamples": 100},
    "evaluate": {"train": True, "titles": {}},
}
_RESULT = {
    "before": None,
    "after": None,
    "after_is": None,
    "primary_metrics": ["iou"],
    "reward_terms": [["iou", 1.0]],
    "test_sets": {},
    "validation": [],
    "n_rows": {},
    "durations_s": {},
}
_ROW = {"images": ["a.png"], "image_wh": [200, 200], "gold": None}
_SCORED = {"text": "", "answer": None, "reason": None, "terms": {}, "total": 0.0, "metrics": {}}


def write_config(run_dir: Path, **sections: dict) -> None:
    """Write `config.yaml`; what a section gives is added to the usual."""
    config = {name: {**_CONFIG.get(name, {}), **(sections.pop(name, None) or {})} for name in _CONFIG} | sections
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))


def write_result(run_dir: Path, **values: object) -> None:
    """Write `result.json`."""
    (run_dir / "result.json").write_text(json.dumps(_RESULT | values))


def write_evaluated(run_dir: Path, rows: list[dict], **scored: list[dict]) -> None:
    """Write the rows of the test set and, by the name of each evaluation, their scored rows."""
    rows = [{"row_id": str(number), **_ROW, **row} for number, row in enumerate(rows)]
    write_rows(run_dir / "data" / "test.jsonl", rows)
    for name, lines in scored.items():
        whole = [{"row_id": row["row_id"], **_SCORED, **line} for row, line in zip(rows, lines, strict=True)]
        write_rows(run_dir / "evaluations" / name / "test" / "scores.jsonl", whole)
