"""`vrft probe` on the embedded model: broken set-ups are named, and a sound one is ready."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

ROWS = (
    *("task=reasoning_grounding", "dataset=json", "dataset.n_validation=0", "dataset.n_test=0", "protocol=grounding"),
    *("evaluate.before=false", "evaluate.after=false", "evaluate.checkpoint=last", "trainer.eval_steps=null"),
    *("reward=strict", "memory.max_completion_length=40"),
)
RIDDLES = ("experiment=digits_riddles", "debug=smoke", "dataset.k_shot=4")
FEW = ("probe.rows=8", "probe.completions=4")


def verdict_of(run_dir: Path) -> str:
    return json.loads((run_dir / "probe.json").read_text())["verdict"]


@pytest.fixture(scope="module")
def sound(vrft, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("probe") / "sound"
    done = vrft("probe", *RIDDLES, *FEW, f"run.dir={run_dir}")
    return run_dir, done.stdout


def test_a_sound_set_up_is_ready(sound):
    run_dir, told = sound
    assert verdict_of(run_dir).startswith("ready to train")
    assert f"verdict: {verdict_of(run_dir)}" in told
    completions = [json.loads(line) for line in (run_dir / "completions.jsonl").read_text().splitlines()]
    assert len(completions) == 8 * 4
    report = json.loads((run_dir / "probe.json").read_text())
    mean = sum(completion["total"] for completion in completions) / len(completions)
    assert report["reward"]["mean"] == pytest.approx(mean)
    assert report["reward"]["most"] == 1.25, "iou and format; the preset strict also has weights for other tasks"
    assert Image.open(run_dir / "probe.png").size[0] > 100


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["memory.max_completion_length=8"], "memory.max_completion_length=8"),
        (["rollout.temperature=0.01"], "rollout.temperature=0.01"),
        (["~reward.weights.iou", "+reward.weights.other_task.exact=1.0", "trust_code=[other_task]"], "is not one for"),
    ],
)
def test_a_broken_set_up_is_named(vrft, tmp_path, monkeypatch, overrides, named):
    (tmp_path / "other_task.py").write_text(
        "def exact(parsed, row, images):\n    return float(parsed.answer == row.get('label'))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    vrft("probe", *RIDDLES, *FEW, *overrides, f"run.dir={tmp_path / 'run'}", code=1)
    assert named in verdict_of(tmp_path / "run")


def test_what_training_would_refuse_is_refused(vrft, tmp_path):
    done = vrft("probe", *RIDDLES, *FEW, "memory.max_prompt_length=5", f"run.dir={tmp_path / 'run'}", code=2)
    assert "memory.max_prompt_length=5" in done.stderr


def test_temperature_0_is_refused_with_the_reason(vrft, tmp_path):
    refused = vrft("probe", *RIDDLES, "rollout.temperature=0", f"run.dir={tmp_path / 'run'}", code=2)
    assert "at 0 all completions of a prompt are one text" in refused.stderr


def as_it_is(box, size):
    return box


def too_thin_to_be_written(box, size):
    return [box[0], box[1], box[0] + 0.3, box[3]]


def y_before_x(box, size):
    return [box[1], box[0], box[3], box[2]]


@pytest.mark.parametrize(
    ("scale", "written", "named"),
    [
        (8, as_it_is, "golds are in seen_pixels"),  # of images that are enlarged
        (1, y_before_x, "golds are y1, x1, y2, x2"),
        (1, too_thin_to_be_written, "no answer can match"),
    ],
)
def test_golds_that_are_not_boxes_in_pixels_are_named(vrft, tmp_path, sound, scale, written, named):
    """Of those too thin every other one."""
    lines = []
    for number, line in enumerate((sound[0] / "data" / "train.jsonl").read_text().splitlines()):
        row = json.loads(line)
        image = Image.open(sound[0] / "data" / row["images"][0])
        image.resize([side * scale for side in image.size]).save(tmp_path / f"{number}.png")
        is_whole = written is too_thin_to_be_written and number % 2
        gold = row["gold"] if is_whole else written(row["gold"], image.size[0])
        lines.append(json.dumps({"images": [f"{number}.png"], "phrase": row["phrase"], "gold": gold}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    sizes = ("memory.max_pixels=3136", "memory.min_pixels=3136")
    rows = f"dataset.path={tmp_path / 'rows.jsonl'}"
    vrft("probe", *ROWS, *sizes, *FEW, rows, f"run.dir={tmp_path / 'run'}", code=1)
    assert named in verdict_of(tmp_path / "run")
