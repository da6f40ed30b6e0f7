"""Rows are checked before a run starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from vrft.config.schema import Evaluate, Trainer
from vrft.errors import UserError
from vrft.run.rows import _for_test, check_rows, needed_splits, target_faults
from vrft.tasks import load_task


@pytest.mark.parametrize(
    ("dataset", "model", "more"),
    [
        ({"n_validation": None, "n_test": None}, "ORG/NAME", {"n_test": "all"}),
        ({"n_validation": None, "n_test": None}, "run/checkpoints/best", {"n_test": "all", "unseen_by": "run/data"}),
        ({"n_validation": None, "n_test": None}, "other/checkpoints/best", {"n_test": "all"}),  # it has no manifest
        ({"n_validation": None, "n_test": 5}, "run/checkpoints/best", {}),  # numbers win
        ({"n_validation": 3, "n_test": None}, "run/checkpoints/best", {}),
        ({"path": "rows/mine"}, "run/checkpoints/best", {}),  # built rows have their splits
    ],
)
def test_where_nothing_is_trained_every_row_is_judged(tmp_path, monkeypatch, dataset, model, more):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "manifest.json").touch()
    assert _for_test(dataset, Path(model)) == dataset | more


def test_rows_are_checked_by_their_task():
    good = {"row_id": "a", "image_wh": [10, 10], "phrase": "x", "gold": [0, 0, 5, 5]}
    bad = good | {"row_id": "b", "gold": [0, 0, 50, 5]}
    evaluate = Evaluate.model_construct(before=True, train=True, after=True)
    needed = needed_splits(evaluate, Trainer.model_construct(eval_steps=None))
    with pytest.raises(UserError) as refused:
        check_rows({"train": [good, bad], "test": []}, load_task("grounding"), needed=needed)
    assert "train, row b" in str(refused.value)
    assert "the split test has no rows, but evaluate.before or evaluate.after needs it (there are 2 in train, 0" in str(
        refused.value
    )
    assert "row a" not in str(refused.value)


def test_training_rows_without_the_thought_that_is_their_target_are_named():
    rows = [{"row_id": "a", "thought": "so"}, {"row_id": "b"}]
    [fault] = target_faults(rows, Trainer.model_construct(sft_thought="gold"))
    assert "1 of 2 rows have no column 'thought' (first: b)" in fault
    assert list(target_faults(rows, Trainer.model_construct(sft_thought="empty"))) == []
