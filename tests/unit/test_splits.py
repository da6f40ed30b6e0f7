"""Splits that share no image, and few-shot draws."""

import pytest

from vrft.data.splits import Checked, cut, few_shot, image_groups
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
