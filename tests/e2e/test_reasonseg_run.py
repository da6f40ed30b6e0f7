"""ReasonSeg's polygons as the measure: a run judged by gIoU and cIoU, and the same figures from its files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vrft.evaluate.paired_change import metric_change


def write_pairs(folder, n, *, first):
    """Bright rectangles on noise, each the target; beside it a part that is ignored."""
    folder.mkdir(parents=True)
    for number in range(first, first + n):
        generator = np.random.default_rng(number)
        x1, y1 = generator.integers(5, 40, 2).tolist()
        x2, y2 = x1 + int(generator.integers(20, 60)), y1 + int(generator.integers(20, 40))
        pixels = generator.integers(0, 80, (96, 128, 3), dtype=np.uint8)
        pixels[y1:y2, x1:x2] = 250
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        target = {"label": "target", "points": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]}
        ignored = {"label": "ignore", "points": [[x2, y1], [x2 + 5, y1], [x2 + 5, y2], [x2, y2]]}
        label = {"text": ["the bright part"], "is_sentence": False, "shapes": [target, ignored]}
        (folder / f"{number}.json").write_text(json.dumps(label))


def test_a_run_is_judged_by_masks(vrft, tmp_path):
    write_pairs(tmp_path / "pairs" / "train", 12, first=0)
    write_pairs(tmp_path / "pairs" / "val", 6, first=12)
    run_dir = tmp_path / "run"
    vrft("train", "model=tiny", "debug=smoke", "task=reasoning_grounding", "dataset=reasonseg", "dataset.k_shot=null",
         "dataset.n_validation=4", f"dataset.path={tmp_path / 'pairs'}", "protocol=reasonseg_lisa",
         "protocol.n_resamples=9", f"run.dir={run_dir}")  # fmt: skip
    result = json.loads((run_dir / "result.json").read_text())
    assert {"gIoU", "cIoU", "iou"} <= result["after"]["reasonseg_lisa_v1"].keys()
    sides = {
        name: [json.loads(line) for line in (run_dir / "evaluations" / name / "test" / "scores.jsonl").open()]
        for name in ("before", result["after_is"])
    }
    changes = {name: metric_change([], *sides.values(), metric=name) for name in ("gIoU", "cIoU", "iou")}
    for name, change in changes.items():
        before, after = (result[part]["reasonseg_lisa_v1"][name]["value"] for part in ("before", "after"))
        assert change["value"] == pytest.approx(after - before, abs=1e-12)
        assert change["n"] == 6
    page = (run_dir / "report.html").read_text()
    assert "gIoU" in page
    assert "cIoU" in page
    vrft("score", "protocol=reasonseg_lisa", "task=reasoning_grounding", f"rows={run_dir / 'data' / 'test.jsonl'}",
         f"completions={run_dir / 'evaluations' / 'before' / 'test' / 'completions.jsonl'}", "protocol.n_resamples=9",
         f"out={tmp_path / 'scores.json'}")  # fmt: skip
    scored = json.loads((tmp_path / "scores.json").read_text())
    for name in ("gIoU", "cIoU"):
        assert scored["metrics"][name] == result["before"]["reasonseg_lisa_v1"][name]
    assert len(scored["cases"]) == 6
    assert scored["counts"]["cases_with_ignored_pixels"] == 6


def test_rows_without_polygons_are_refused_before_a_model_is_loaded(vrft, tmp_path):
    refused = vrft("evaluate", "experiment=digits_riddles", "debug=smoke", "protocol=reasonseg_lisa",
                   f"run.dir={tmp_path / 'run'}", code=2)  # fmt: skip
    assert "no target_polygons; rows of dataset=reasonseg have them" in refused.stderr
    assert not (tmp_path / "run").exists()
