"""The verb build: rows for training or for a test alone, and builds that were killed."""

from __future__ import annotations

import pytest
from PIL import Image

from vrft.cli import build
from vrft.config.verb_schema import BuildConfig, BuildRun
from vrft.errors import UserError
from vrft.files import write_rows
from vrft.run.rows import build_rows


def build_config(folder, n_rows, **dataset) -> BuildConfig:
    """Rows of as many pictures in `folder`, built without numbers of rows where none are given."""
    rows = [{"image": f"{n}.png", "phrase": "it", "gold": [0, 0, 5, 5]} for n in range(n_rows)]
    for n in range(n_rows):
        Image.new("RGB", (10, 10), (n, 0, 0)).save(folder / f"{n}.png")
    write_rows(folder / "rows.jsonl", rows)
    usual = {"builder": "records", "path": str(folder / "rows.jsonl"), "n_validation": None, "n_test": None}
    run = BuildRun(seed=0, resume=True)
    return BuildConfig(
        task={"name": "grounding"}, dataset=usual | dataset, run=run, trust_code=[], out=str(folder / "out")
    )


def test_a_build_without_training_rows_is_refused_or_said(tmp_path, capsys):
    config = build_config(tmp_path, 6, n_test=4, n_validation=2)
    with pytest.raises(UserError, match="the split train has no rows, but training needs it"):
        build_rows(config, tmp_path / "out")
    build_rows(build_config(tmp_path, 6, n_test="all"), tmp_path / "out")
    assert "warning: no row is left for training" in capsys.readouterr().err
    assert len(build_rows(build_config(tmp_path, 6), tmp_path / "out")["train"]) == 2


def test_a_build_that_was_killed_resumes(tmp_path, capsys, monkeypatch):
    config, out = build_config(tmp_path, 6), tmp_path / "out"
    with monkeypatch.context() as killed:
        killed.setattr("vrft.run.rows.finish_manifest", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build.run(config)
    assert not (out / "manifest.json").exists()
    build.run(config)
    with pytest.raises(UserError, match="holds finished rows"):
        build.run(config)
    for damage in ((out / "train.jsonl").unlink, lambda: (out / "manifest.json").write_text('{"splits"')):
        damage()
        build.run(config)
        assert len(list(out.glob("*.jsonl"))) == 3
