"""The main claim, measured again: RFT lifts unseen riddles in the shifted domain (slow: about two minutes a seed)."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_rft_lifts_unseen_dim_riddles_on_three_seeds(vrft, tmp_path):
    gains = []
    for seed in range(3):
        run_dir = tmp_path / str(seed)
        vrft("train", "experiment=digits_riddles", f"run.seed={seed}", f"run.dir={run_dir}")
        result = json.loads((run_dir / "result.json").read_text())
        before, after = (result[part]["grounding_v1"]["accuracy@0.5"] for part in ("before", "after"))
        assert min(before["n"], after["n"]) >= 300
        gains.append(after["value"] - before["value"])
    assert min(gains) >= 0.08, gains
    assert sum(gains) / len(gains) >= 0.15, gains
