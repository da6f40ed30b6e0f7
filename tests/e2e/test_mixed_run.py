"""A run on rows of several tasks, with a prefilled thought and a reward term of the user's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

GOLDS = {
    "detection": {"category": "seven", "gold": [[5, 5, 30, 30], [30, 20, 50, 44]]},
    "grounding": {"phrase": "the digit four", "gold": [10, 12, 40, 44]},
    "classification": {"gold": "seven", "aliases": ["7"]},
    "counting": {"category": "digit", "gold": 2},
    "pointing": {"phrase": "the digit four", "gold": [10, 12, 40, 44]},
}
OWN_TERM = """
def thoughtful(parsed, row, image_paths):
    assert image_paths[0].is_file() and row["task"]
    return float("</think>" in parsed.text)
"""
SMALL = (
    "model=tiny", "task=mixed", "protocol=rows", "reward=strict", "dataset=json", "dataset.n_validation=5",
    "dataset.n_test=10", "trainer.prompts_per_step=4", "trainer.max_steps=2", "trainer.eval_steps=2",
    "trainer.save_steps=2", "memory.num_generations=2", "memory.max_completion_length=24",
    "memory.max_prompt_length=400", "+task.tasks.pointing.weight=4",
    *(f"+task.tasks.{name}.thinking=prefilled" for name in ("pointing",)),
    *(f"task.tasks.{name}.thinking=prefilled" for name in GOLDS if name != "pointing"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with rows of five tasks, their images, and a module with a reward term."""
    root = tmp_path_factory.mktemp("mixture")
    generator = np.random.default_rng(0)
    rows = []
    for index in range(40):
        name = f"{index}.png"
        Image.fromarray(generator.integers(0, 255, (56, 56, 3), np.uint8)).save(root / name)
        task = list(GOLDS)[index % len(GOLDS)]
        rows.append({"image": name, "task": task, **GOLDS[task]})
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "my_terms.py").write_text(OWN_TERM)
    return root


@pytest.mark.parametrize("trainer", ["grpo", "sft"])
def test_a_mixture_trains_and_is_judged_task_by_task(vrft, folder, tmp_path, trainer):
    run_dir = tmp_path / "run"
    own = ("trust_code=[my_terms]", "+reward.weights={my_terms.thoughtful: 0.5}")
    vrft("train", *SMALL, *own, f"trainer={trainer}", f"dataset.path={folder / 'rows.jsonl'}", f"run.dir={run_dir}",
         cwd=folder)  # fmt: skip
    result = json.loads((run_dir / "result.json").read_text())
    figures = result["after"]["rows_v1"]
    assert figures["score"]["n"] == 10
    assert sum(figures[f"{task}/{metric}"]["n"] for task, metric in (
        ("detection", "iou"), ("grounding", "iou"), ("classification", "accuracy"), ("counting", "accuracy"),
        ("pointing", "accuracy"))) == 10  # fmt: skip
    scores = [json.loads(line) for line in (run_dir / "evaluations/best/test/scores.jsonl").read_text().splitlines()]
    assert all(score["text"].startswith("<think>") for score in scores)
    assert all("my_terms.thoughtful" in score["terms"] for score in scores)
    assert (run_dir / "report.html").is_file()
    if trainer == "grpo":
        logs = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        logged = set().union(*logs)
        assert {"rewards/my_terms.thoughtful/mean", "rewards/format/mean", "parse_rate"} <= logged
        lines = [
            json.loads(line) for path in (run_dir / "rollouts").iterdir() for line in path.read_text().splitlines()
        ]
        assert len(lines) == 2 * 4 * 2  # steps x prompts x completions
        assert all(line["text"].startswith("<think>") for line in lines)


def test_a_failing_term_stops_the_run_and_names_itself_and_the_row(vrft, folder, tmp_path):
    (folder / "broken_terms.py").write_text("def late(parsed, row, image_paths):\n    return {}['no such key']\n")
    own = ("trust_code=[broken_terms]", "+reward.weights={broken_terms.late: 1.0}", "evaluate.before=false")
    done = vrft("train", *SMALL, *own, f"dataset.path={folder / 'rows.jsonl'}", f"run.dir={tmp_path / 'run'}",
                cwd=folder, code=2)  # fmt: skip
    assert "broken_terms.late failed on row row-" in done.stderr
    assert "KeyError" in done.stderr
    assert "Traceback" not in done.stderr
