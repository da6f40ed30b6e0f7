"""The terms of a task as TRL's reward functions: values, logs and rollouts."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from vrft.tasks import load_task
from vrft.tasks.boxes import Frame
from vrft.tasks.reward import RewardFunction
from vrft.train.grpo import reward_functions

END = 7
ROW = {"row_id": "r", "phrase": "the digit four", "gold": [0, 0, 28, 56], "image_wh": [56, 56], "images": ["x.png"]}
FRAME = Frame("norm1000", (56, 56), (56, 56))
WEIGHTS = {"iou": 1.0, "confidence": 1.0, "format": 0.0}


@pytest.fixture
def called(tmp_path):
    """The reward functions called on a batch as TRL calls them: values by term, logged metrics, rollouts folder."""
    functions = reward_functions(
        load_task("grounding"),
        {"r": ROW},
        lambda row: FRAME,
        judge=RewardFunction(load_task("grounding"), {"weights": WEIGHTS}),
        end_ids=[END],
        rollouts=tmp_path,
        failures=Counter(),
    )
    texts = [
        "<think></think><answer>(0,0),(500,1000)</answer>",  # the gold
        "<answer>(0,0),(1000,1000)</answer>",  # half of it right, no thought
        "<think>cut off",  # no answer, and no end token
    ]
    logged = {}
    arguments = {
        "prompts": ["?"] * 3,
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "completion_ids": [[1, END], [1, END], [1, 1]],
        "row_id": ["r"] * 3,
        "trainer_state": SimpleNamespace(global_step=4),
        "log_metric": logged.__setitem__,
        "log_extra": None,
    }
    return {function.__name__: function(**arguments) for function in functions}, logged, tmp_path


def test_terms_are_unweighted_and_only_those_of_the_task(called):
    values, _, _ = called
    assert values == {"iou": [1.0, 0.5, 0.0], "format": [1.0, 0.0, 0.0]}  # grounding has no confidence


def test_reading_is_logged_with_every_reason(called):
    _, logged, _ = called
    assert logged["parse_rate"] == pytest.approx(2 / 3)
    assert logged["unreadable/no_answer"] == pytest.approx(1 / 3)
    assert logged["unreadable/malformed"] == 0


def test_rollouts_hold_terms_total_and_truncation_once(called):
    _, _, folder = called
    lines = [json.loads(line) for line in (folder / "step_000004.jsonl").read_text().splitlines()]
    assert [line["total"] for line in lines] == [1.0, 0.5, 0.0]
    assert [line["is_truncated"] for line in lines] == [False, False, True]
