"""Splits that share no image, few-shot draws, and mixtures of tasks."""

from collections import Counter
from itertools import pairwise

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


def detection_rows(**n_rows):
    """Rows of one category each; `no_cat=2`: two that ask for a cat in vain."""
    return [
        Checked(
            {
                "row_id": f"{name}-{n}",
                "category": name.removeprefix("no_"),
                "gold": [] if "no_" in name else [[0, 0, 1, 1]],
            },
            [f"{name} {n}"],
        )
        for name, number in n_rows.items()
        for n in range(number)
    ]


@pytest.mark.parametrize(
    ("k_shot", "negatives", "n_kept"),
    [
        (2, 0.0, {"cat": 2, "dog": 2}),
        (2, 0.5, {"cat": 2, "dog": 2, "no_cat": 1, "no_dog": 1}),
        (3, 2.0, {"cat": 3, "dog": 3, "no_cat": 4, "no_dog": 3}),  # no more than there are
        (2, 0.2, {"cat": 2, "dog": 2}),  # rounded
    ],
)
def test_shots_may_bring_questions_without_an_object(k_shot, negatives, n_kept):
    rows = detection_rows(cat=5, dog=4, no_cat=4, no_dog=3, no_cow=9)
    kept = few_shot(rows, k_shot, seed=1, negatives=negatives)
    assert Counter(item.row["row_id"].partition("-")[0] for item in kept) == n_kept


@pytest.mark.parametrize("seed", range(5))
def test_fewer_shots_are_among_more_shots_whatever_the_order_and_the_ids(seed):
    rows = detection_rows(cat=9, dog=7, no_cat=8)
    shots = [[item.contents[0] for item in few_shot(rows, k, seed=seed, negatives=1.0)] for k in range(1, 8)]
    assert [len(part) for part in shots] == [3 * k for k in range(1, 8)]
    assert all(set(fewer) < set(more) for fewer, more in pairwise(shots))
    renamed = [Checked(item.row | {"row_id": str(n)}, item.contents) for n, item in enumerate(rows[::-1])]
    again = [item.contents[0] for item in few_shot(renamed, 3, seed=seed, negatives=1.0)]
    assert sorted(again) == sorted(shots[2])


def test_a_row_of_several_labels_is_a_shot_of_each():
    def row(number, *labels):
        gold = [{"label": label, "xyxy": [0, 0, 1, 1]} for label in labels]
        return Checked({"row_id": str(number), "categories": ["cat", "cow", "dog"], "gold": gold}, [str(number)])

    rows = [row(0, "cat", "cat"), row(1, "dog"), row(2, "cat", "dog"), row(3)]
    assert [item.row["row_id"] for item in few_shot(rows, 2, seed=0)] == ["0", "1", "2"]
    with pytest.raises(UserError, match=r"cat: 2 rows\n.*dog: 2 rows"):
        few_shot(rows, 3, seed=0)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({}, True),
        ({"row_id": "other"}, True),  # names of rows and files do not matter
        ({"images": ["elsewhere.png"]}, True),
        ({"gold": [[0, 0, 1, 2]]}, False),
        ({"category": "dog"}, False),
        ({"contents": ["another picture"]}, False),
    ],
)
def test_a_fingerprint_is_of_what_a_row_says_and_shows(change, is_same):
    row = {"row_id": "0", "images": ["a.png"], "category": "cat", "gold": [[0, 0, 1, 1]]}
    changed = {name: value for name, value in change.items() if name != "contents"}
    other = Checked(row | changed, change.get("contents", ["picture"]))
    assert (Checked(row, ["picture"]).fingerprint == other.fingerprint) is is_same


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
