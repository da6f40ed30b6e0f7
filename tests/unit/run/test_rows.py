"""Rows are checked before a run starts."""

from __future__ import annotations

import pytest

from vrft.config.schema import Evaluate, Trainer
from vrft.errors import UserError
from vrft.run.rows import check_rows, needed_splits
from vrft.tasks import load_task


def test_rows_are_checked_by_their_task():
    good = {"row_id": "a", "image_wh": [10, 10], "phrase": "x", "gold": [0, 0, 5, 5]}
    bad = good | {"row_id": "b", "gold": [0, 0, 50, 5]}
    evaluate = Evaluate.model_construct(before=True, train=True, after=True)
    needed = needed_splits(evaluate, Trainer.model_construct(eval_steps=None))
    with pytest.raises(UserError) as refused:
        check_rows({"train": [good, bad], "test": []}, load_task("grounding"), needed=needed)
    assert "train, row b" in str(refused.value)
    assert "the split test has no rows" in str(refused.value)
    assert "row a" not in str(refused.value)
