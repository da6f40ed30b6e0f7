"""Which checkpoints are judged after a training, and which of them is its result."""

from __future__ import annotations

import pytest

from vrft.config.schema import Evaluate
from vrft.run.stages import checkpoints_to_judge

WANTED = {"train": True, "after": True, "checkpoint": "last", "also": ["best", "last"]}


@pytest.mark.parametrize(
    ("wanted", "rule", "action", "expected"),
    [
        ({}, None, None, ("last", ["last", "best"])),
        ({"checkpoint": "best"}, None, None, ("best", ["best", "last"])),
        ({"also": []}, None, None, ("last", ["last"])),
        ({"after": False}, None, None, ("last", [])),
        ({"train": False}, None, None, ("last", [])),
        ({}, "low_entropy", "stop", ("last", ["last", "best"])),  # what is there by then
        ({}, "low_entropy", "stop_keep_best", ("best", ["best", "last"])),
        ({}, "non_finite", "stop", ("last", [])),
        ({}, "non_finite", "stop_keep_best", ("best", ["best"])),  # there is no last
    ],
)
def test_the_result_is_judged_first_and_only_what_there_is(wanted, rule, action, expected):
    stopped_by = {"rule": rule, "action": action} if rule else None
    assert checkpoints_to_judge(Evaluate.model_construct(**WANTED | wanted), stopped_by) == expected
