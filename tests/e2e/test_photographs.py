"""Two real photographs with COCO annotations, from build to score, as any data set goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

IMAGES = Path(__file__).parents[3] / "shared" / "data" / "images"
ANNOTATIONS = IMAGES / "panoptic_coco_detection_format.json"


@pytest.mark.skipif(not ANNOTATIONS.is_file(), reason=f"{ANNOTATIONS} is not there; photographs are not part of vrft")
def test_photographs_go_from_annotations_to_figures(vrft, tmp_path):
    rows = tmp_path / "rows"
    vrft("build", "task=detection", "dataset=coco", f"dataset.path={ANNOTATIONS}", f"dataset.image_root={IMAGES}",
         "dataset.n_validation=0", "dataset.n_test=100", f"out={rows}")  # fmt: skip
    n_crowds = sum(one["iscrowd"] for one in json.loads(ANNOTATIONS.read_text())["annotations"])
    golds = [json.loads(line)["gold"] for line in (rows / "test.jsonl").read_text().splitlines()]
    assert (n_crowds, sum(map(len, golds))) == (3, 50 - 3)
    words = ("model=tiny", "task=detection", "protocol=coco_all", "dataset=built", f"dataset.path={rows}",
             "memory.max_pixels=50176")  # fmt: skip
    vrft("check", *words, "evaluate.train=false", f"run.dir={tmp_path / 'check'}")
    assert json.loads((tmp_path / "check" / "check.json").read_text())["gold_boxes"]["n"] == 47
    run_dir = tmp_path / "run"
    vrft("evaluate", *words, f"run.dir={run_dir}")
    vrft("score", "protocol=coco_all", "task=detection", f"rows={run_dir / 'data' / 'test.jsonl'}",
         f"completions={run_dir / 'evaluations' / 'before' / 'test' / 'completions.jsonl'}",
         f"out={tmp_path / 'scores.json'}")  # fmt: skip
    scored = json.loads((tmp_path / "scores.json").read_text())["metrics"]["AP"]
    vrft("score", "protocol=coco_all", "task=detection", f"rows={run_dir / 'data' / 'test.jsonl'}",
         f"completions={run_dir / 'evaluations' / 'before' / 'test' / 'completions.jsonl'}",
         f"annotations={ANNOTATIONS}", f"out={tmp_path / 'official.json'}")  # fmt: skip
    official = json.loads((tmp_path / "official.json").read_text())
    assert (official["metrics"]["AP"]["n"], official["counts"]["crowd_annotations"]) == (2, 3)
    assert scored == json.loads((run_dir / "result.json").read_text())["before"]["coco_all_v1"]["AP"]
    assert scored["n"] == 2
    assert "data:image/jpeg" in (run_dir / "report.html").read_text()
