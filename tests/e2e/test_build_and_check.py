"""Rows built once in a folder, and looked at before anything is trained."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

BOXES = [[10, 12, 40, 44], [2, 3, 30, 31], [20, 20, 55, 50]]


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    """Twelve rows of detection on twelve images of 56 × 56 pixels."""
    root = tmp_path_factory.mktemp("rows")
    generator = np.random.default_rng(0)
    rows = []
    for index in range(12):
        Image.fromarray(generator.integers(0, 255, (56, 56, 3), np.uint8)).save(root / f"{index}.png")
        rows.append({"image": f"{index}.png", "category": "seven", "gold": BOXES[: index % 4]})
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root / "rows.jsonl"


def test_built_rows_are_there_for_later_runs(vrft, tmp_path, rows_file):
    out = tmp_path / "built"
    words = ("dataset=json", f"dataset.path={rows_file}", "dataset.n_validation=3", "dataset.n_test=4")
    vrft("build", "task=detection", *words, f"out={out}")
    counts = {path.stem: len(path.read_text().splitlines()) for path in out.glob("*.jsonl")}
    assert counts == {"train": 5, "validation": 3, "test": 4}
    again = tmp_path / "again"
    vrft("build", "task=detection", *words, f"out={again}")
    assert (out / "train.jsonl").read_bytes() == (again / "train.jsonl").read_bytes()
    refused = vrft("build", "task=detection", *words, f"out={out}", code=2)
    assert "out is" in refused.stderr
    refused = vrft("build", "task=detection", *words, "run.resume=true", f"out={out}", code=2)
    assert "holds finished rows" in refused.stderr
    checked = vrft(
        "check", "model=tiny", "task=detection", "protocol=coco_present", "dataset=built", f"dataset.path={out}",
        "trainer.max_steps=null", "model.dtype=bfloat16", f"run.dir={tmp_path / 'check'}",
    )  # fmt: skip
    report = json.loads((tmp_path / "check" / "check.json").read_text())
    assert report["n_rows"] == {"train": 5, "validation": 3, "test": 4}
    assert report["gold_boxes"]["n"] > 0
    assert 0.8 < report["gold_boxes"]["lowest"] < 1  # the tiny model's coordinates are coarse
    assert report["tokens"]["question"]["n_above"] == 0
    assert "golds.png" in checked.stdout
    assert min(Image.open(tmp_path / "check" / "golds.png").size) > 100


def test_what_is_no_longer_as_it_was_built_is_refused(vrft, tmp_path, rows_file):
    out = tmp_path / "built"
    vrft("build", "task=detection", "dataset=json", f"dataset.path={rows_file}", "dataset.n_validation=3",
         "dataset.n_test=4", f"out={out}")  # fmt: skip
    lines = (out / "train.jsonl").read_text().splitlines(keepends=True)
    (out / "train.jsonl").write_text("".join(lines[1:]))
    rows = (out / "test.jsonl").read_text()
    (out / "test.jsonl").write_text(rows.replace('"seven"', '"eight"', 1))
    words = ("model=tiny", "task=detection", "protocol=coco_present", "dataset=built", f"dataset.path={out}")
    told = vrft("check", *words, f"run.dir={tmp_path / 'check'}", code=2)
    assert "train.jsonl: its 4 rows are not the 5 of the manifest" in told.stderr
    assert told.stderr.count("changed since the build") == 1


def test_bad_rows_are_named_and_leave_no_folder(vrft, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "none.png", "category": "x", "gold": []}))
    told = vrft("build", "task=detection", "dataset=json", f"dataset.path={tmp_path / 'rows.jsonl'}",
                f"out={tmp_path / 'out'}", code=2)  # fmt: skip
    assert "row 1" in told.stderr
    assert "none.png" in told.stderr
    assert not (tmp_path / "out").exists()
