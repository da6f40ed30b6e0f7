"""What was taken for what, as the report counts it."""

from collections import Counter

import pytest
from written_run import write_config, write_evaluated, write_result

from vrft.report.confusion import OTHER, UNREADABLE, Pair, class_names, confusion, count_answers, most_confused
from vrft.report.run_files import RunFiles

ROWS = [{"gold": "aubergine", "aliases": ["eggplant"]}, {"gold": "aubergine"}, {"gold": "Bell_Pepper"}]


def scored(answer, is_right):
    return {"answer": answer, "metrics": {"accuracy": float(is_right)}}


@pytest.mark.parametrize(
    ("row", "one", "expected", "why"),
    [
        (ROWS[0], scored("eggplant", True), "aubergine", "an alias is its class"),
        (ROWS[1], scored("eggplant", False), OTHER, "an alias that this row does not allow is not right"),
        (ROWS[2], scored("eggplant", False), "aubergine", "an alias of another class"),
        (ROWS[0], scored("bell pepper", False), "Bell_Pepper", "as names are compared, as the class is written"),
        (ROWS[0], scored("tomato", False), OTHER, "no class"),
        (ROWS[0], scored(None, False), UNREADABLE, "nothing was read"),
    ],
)
def test_an_answer_is_a_class_or_neither(row, one, expected, why):
    assert count_answers([row], [one], class_names(ROWS)) == {(row["gold"], expected): 1}, why


def test_pairs_are_ordered_by_the_last_side():
    before = Counter({("a", "b"): 3, ("a", "a"): 1, ("c", OTHER): 9})
    after = Counter({("a", "b"): 1, ("a", "a"): 3, ("c", "a"): 2, ("c", UNREADABLE): 7})
    assert most_confused([before, after]) == [Pair("c", "a", 9, [0, 2]), Pair("a", "b", 4, [3, 1])]


def write_run(run_dir, n_classes):
    rows = [{"gold": f"class {i:02}"} for i in range(n_classes)]
    write_evaluated(run_dir, rows, before=[scored("class 00", i == 0) for i in range(n_classes)])
    write_config(run_dir, protocol={"scorer": "classification"})
    write_result(run_dir)
    return RunFiles(run_dir)


@pytest.mark.parametrize(
    ("n_classes", "n_matrices", "n_pairs", "why"),
    [(16, 1, 0, "a matrix can be read"), (40, 0, 25, "too many: the most confused pairs")],
)
def test_few_classes_make_a_matrix_and_many_make_pairs(tmp_path, n_classes, n_matrices, n_pairs, why):
    found = confusion(write_run(tmp_path, n_classes))
    assert (len(found.matrices), len(found.pairs)) == (n_matrices, n_pairs), why
    assert found.sides == ["Completion"]
    if found.matrices:
        counts = found.matrices[0].counts
        assert [row[0] for row in counts] == [1] * n_classes
        assert sum(map(sum, counts)) == n_classes
    else:
        assert found.n_pairs == n_classes - 1
