"""The probe's figures and its verdict: a fault of each kind is named, with the knob that mends it."""

from __future__ import annotations

import pytest

from vrft.cli.probe import obstacle
from vrft.config.schema import Config, Memory, Reward, Rollout

CONFIG = Config.model_construct(
    task={"name": "grounding"},
    reward=Reward.model_construct(name="strict"),
    memory=Memory.model_construct(max_completion_length=64, num_generations=8),
    rollout=Rollout.model_construct(temperature=1.0),
)
HEALTHY = {
    "n_rows": 16,
    "n_completions": 128,
    "reward": {"mean": 0.6, "within": 0.2, "most": 1.25},
    "terms": {"iou": {"mean": 0.3, "within": 0.2, "gold": 0.99}, "format": {"mean": 0.9, "within": 0.1, "gold": 1.0}},
    "groups_without_signal": 0.1,
    "groups_of_one_text": 0.0,
    "readable": 0.9,
    "unreadable": {"no_answer": 9, "malformed": 4},
    "truncated": 0.02,
    "n_tokens": 30.0,
    "golds_not_paid": [],
    "term_faults": {},
    "frames": {"read_in": "norm1000", "as it is": 0.3, "the model speaks pixels": 0.1, "the golds are in norm1": 0.0},
}


def unpaid(n: int) -> list[dict]:
    return [{"row_id": f"row-{i}", "earns": 0.5, "of": 1.5} for i in range(n)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, None),
        ({"term_faults": {"my.term": 3}}, "reward terms of your own fail on completions (my.term on 3)"),
        ({"golds_not_paid": unpaid(16)}, "reward=strict is not one for task=grounding"),
        ({"golds_not_paid": unpaid(3)}, "no answer can match the gold of 3 of 16 rows (row-0, row-1, row-2)"),
        ({"truncated": 0.9, "readable": 0.1}, "90% of the completions are cut at memory.max_completion_length=64"),
        (
            {"frames": HEALTHY["frames"] | {"as it is": 0.05, "the model speaks pixels": 0.6}},
            "boxes look as if the model speaks pixels (read in norm1000): the mean IoU would be 0.60 in place of 0.05; "
            "look at model.family",
        ),
        (
            {"frames": HEALTHY["frames"] | {"as it is": 0.05, "the golds are in norm1": 0.6}},
            "boxes look as if the golds are in norm1 (read in norm1000): the mean IoU would be 0.60 in place of 0.05;",
        ),
        (  # the same boxes twice, but for rounding
            {"frames": HEALTHY["frames"] | {"model speaks pixels": 0.6, "golds are in norm1000": 0.6 + 1e-16}},
            "model speaks pixels or golds are in norm1000",
        ),
        (  # golds that earn nothing because of their frame
            {"frames": HEALTHY["frames"] | {"the golds are in norm1": 0.6}, "golds_not_paid": unpaid(16)},
            "boxes look as if the golds are in norm1",
        ),
        ({"readable": 0.2}, "80% of the answers cannot be read, most of them (9) for no_answer"),
        ({"groups_of_one_text": 0.9, "groups_without_signal": 0.95}, "raise rollout.temperature=1"),
        ({"groups_without_signal": 0.95}, "the rows are too hard for this model; raise memory.num_generations=8"),
        (
            {"groups_without_signal": 0.95, "reward": {"mean": 1.2, "within": 0.0, "most": 1.25}},
            "the rows are too easy",
        ),
        ({"frames": {"read_in": ""}}, None),  # a task without boxes
    ],
)
def test_the_verdict_names_what_stands_in_the_way(changes, named):
    found = obstacle({**HEALTHY, **changes}, CONFIG)
    assert named in found if named else found is None
