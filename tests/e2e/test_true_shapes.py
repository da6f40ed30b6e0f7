"""Nothing in the path knows that a model is tiny: the families' own classes, tokenizer and sizes, with random weights.

Two photographs go through one GRPO step with a reference model, and an evaluation before and after.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from random_models import FAMILIES, write_model

SHARED = Path(__file__).parents[3] / "shared" / "data"
TOKENIZER = SHARED / "tokenizer" / "tokenizer.json.gz"
MODELS = {"qwen2_vl": "qwen2_vl_2b", "qwen2_5_vl": "qwen2_5_vl_3b", "qwen3_vl": "qwen3_vl_2b"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TOKENIZER.is_file(), reason=f"{TOKENIZER} is not there: it is not part of vrft"),
]


@pytest.fixture(scope="module")
def rows(vrft, tmp_path_factory):
    """Rows of two photographs, one of them the test set."""
    out = tmp_path_factory.mktemp("photographs") / "rows"
    images = SHARED / "images"
    vrft("build", "task=detection", "dataset=coco", f"dataset.path={images / 'panoptic_coco_detection_format.json'}",
         f"dataset.image_root={images}", "dataset.n_validation=0", "dataset.n_test=6", f"out={out}")  # fmt: skip
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_true_shape_takes_a_real_step(vrft, tmp_path, rows, family):
    model = write_model(tmp_path / "model", family, tokenizer_gz=TOKENIZER)
    run_dir = tmp_path / "run"
    vrft(
        "train", f"model={MODELS[family]}", f"model.path={model}", "model.dtype=float32", "task=detection",
        "protocol=coco_all", "dataset=built", f"dataset.path={rows}", "memory=gpu_24gb",
        "memory.max_completion_length=16", "trainer.prompts_per_step=2", "trainer.max_steps=1", "trainer.epochs=null",
        "trainer.eval_steps=null", "evaluate.checkpoint=last", "trainer.args.beta=0.04", f"run.dir={run_dir}",
    )  # fmt: skip
    logs = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert any("kl" in entry and "rewards/iou/mean" in entry for entry in logs)
    result = json.loads((run_dir / "result.json").read_text())
    assert result["after"]["coco_all_v1"]["AP"]["n"] == 1
    card = json.loads((run_dir / "checkpoints" / "last" / "vrft.json").read_text())
    assert card["example"]["frame"][0] == ("seen_pixels" if family == "qwen2_5_vl" else "norm1000")
