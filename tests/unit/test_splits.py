"""Splits that share no image, few-shot draws, and mixtures of tasks."""

from collections import Counter

import pytest

from vrft.data.splits import Checked, cut, few_shot, image_groups, mix
from vrft.errors import UserError


@pytest.mark.parametrize(
    ("contents", "n_groups"),
    [
        ([], 0),
        ([["a"], ["b"]], 2),
        ([["a", "b"], ["c", "d"], ["b", "c"]], 1),  # linked by the third
        ([["d", "c"], ["a", "b"], ["e"], ["c", "a"]], 2),
        ([["a", "a"]], 1),
    ],
)
def test_image_groups(contents, n_groups):
    assert len(set(image_groups(contents))) == n_groups


def test_a_cut_depends_on_content_not_on_order():
    rows = [Checked({"row_id": str(n), "gold": "x"}, [f"hash {n}"]) for n in range(20)]
    part, rest = cut(rows, 6, seed=3)
    assert len(part) == 6
    assert sorted([*part, *rest], key=rows.index) == rows
    assert {item.row["row_id"] for item in cut(rows[::-1], 6, seed=3)[0]} == {item.row["row_id"] for item in part}
    assert cut(rows, 0, seed=3) == ([], rows)
    assert cut(rows, 99, seed=3) == (rows, [])


def test_few_shot_takes_as_many_of_each_class():
    names = ["cat", "dog"] * 5
    rows = [Checked({"row_id": str(n), "gold": name}, [str(n)]) for n, name in enumerate(names)]
    kept = few_shot(rows, 2, seed=0)
    assert sorted(item.row["gold"] for item in kept) == ["cat", "cat", "dog", "dog"]
    boxes = [
        Checked({"row_id": str(n), "category": "cat", "gold": [[0, 0, 1, 1]] * (n % 2)}, [str(n)]) for n in range(4)
    ]
    assert [item.row["row_id"] for item in few_shot(boxes, 2, seed=0)] == ["1", "3"]  # rows without an object are none
    with pytest.raises(UserError, match=r"k_shot=6(.|\n)*cat: 5 rows\n.*dog: 5 rows"):
        few_shot(rows, 6, seed=0)
    with pytest.raises(UserError, match="row 0 has no class"):
        few_shot([Checked({"row_id": "0", "gold": [0, 0, 1, 1]}, ["0"])], 1, seed=0)


def task_rows(**n_rows):
    return [{"row_id": f"{task}-{n}", "task": task} for task, n in n_rows.items() for n in range(n)]


@pytest.mark.parametrize(
    ("n_rows", "weights", "drawn"),
    [
        ({"counting": 6, "pointing": 6}, {"counting": 1, "pointing": 1}, {"counting": 6, "pointing": 6}),
        ({"counting": 6, "pointing": 6}, {"counting": 1, "pointing": 2}, {"counting": 4, "pointing": 8}),
        ({"counting": 6, "pointing": 6}, {"counting": 0.1, "pointing": 0.2}, {"counting": 4, "pointing": 8}),
        ({"counting": 10, "pointing": 2}, {"counting": 1, "pointing": 1}, {"counting": 6, "pointing": 6}),
        ({"counting": 1, "pointing": 99}, {"counting": 1, "pointing": 1}, {"counting": 50, "pointing": 50}),
        (  # one without rows takes no share
            {"counting": 6, "pointing": 6},
            {"counting": 1, "pointing": 2, "detection": 9},
            {"counting": 4, "pointing": 8},
        ),
        ({"counting": 5}, {"counting": 0.5}, {"counting": 5}),  # a single task
        ({"counting": 4, "detection": 3, "pointing": 3}, dict.fromkeys(("counting", "detection", "pointing"), 1), None),
        ({}, {"counting": 1}, {}),
    ],
)
def test_a_mixture_has_as_many_rows_in_proportion(n_rows, weights, drawn):
    rows = task_rows(**n_rows)
    mixed = mix(rows, weights, seed=0)
    assert len(mixed) == len(rows)
    found = Counter(row["task"] for row in mixed)
    if drawn is None:  # a third of ten each, rounded
        assert sorted(found.values()) == [3, 3, 4]
    else:
        assert found == drawn
    times = Counter(row["row_id"] for row in mixed)
    for task, n_own in n_rows.items():
        own = [times[f"{task}-{n}"] for n in range(n_own)]
        assert max(own) - min(own) <= 1, "every row is used before any a second time"


def test_a_mixture_depends_on_seed_and_content_not_on_order():
    rows, weights = task_rows(counting=20, pointing=5), {"counting": 2.0, "pointing": 1.0}
    mixed = mix(rows, weights, seed=3)
    assert mix(rows[::-1], weights, seed=3) == mixed
    assert mix(rows[7:] + rows[:7], weights, seed=3) == mixed
    assert mix(rows, weights, seed=4) != mixed
    tasks = [row["task"] for row in mixed]
    assert tasks != sorted(tasks), "tasks take turns"
