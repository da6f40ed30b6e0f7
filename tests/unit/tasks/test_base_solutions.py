"""Golds from the text of a data set's `solution`."""

import pytest

from vrft.tasks import load_task
from vrft.tasks.boxes import Frame

FRAME = Frame("norm1000", (200, 100), (196, 98))
LEFT = [0, 0, 100, 100]  # (0,0),(500,1000)


@pytest.mark.parametrize(
    ("name", "solution", "gold"),
    [
        ("detection", "<answer>[{'Position': [0, 0, 500, 1000], 'Confidence': 1}]</answer>", [LEFT]),
        ("detection", "[{'Position': [0, 0, 500, 1000], 'Confidence': 1}]", [LEFT]),  # without tags
        ("detection", "[[0, 0, 500, 1000], [0, 0, 500, 1000]]", [LEFT]),  # listed twice
        ("detection", "<answer>No Objects</answer>", []),
        (
            "detection",
            "<answer>[{'Position': [0, 0, 500, 1200], 'Confidence': 1}]</answer>",
            [[0, 0, 100, 120]],
        ),  # not cut
        ("grounding", "<think>1) left</think><answer> (0,0),(500,1000) </answer>", LEFT),
        ("grounding", "(0,0),(500,-1)", [0, 0, 100, -0.1]),
        ("open_vocabulary_detection", "(0,0),(500,1000)", [LEFT]),
        ("counting", "<answer>0</answer>", 0),
        ("counting", "three", 3),
        ("pointing", "<answer>(0,0),(500,1000)</answer>", LEFT),  # the box to be hit
        ("classification", "<answer>Maine_Coon</answer>", "Maine_Coon"),
        ("classification", "'Maine_Coon'", "'Maine_Coon'"),  # exactly as written
        ("classification", "toad (lily", "toad (lily"),
    ],
)
def test_gold_of_a_solution(name, solution, gold):
    assert load_task(name).gold_of(solution, FRAME) == gold


@pytest.mark.parametrize(
    ("name", "solution", "words"),
    [
        ("detection", "a dog", "not_found.*right: .*Position"),
        ("detection", "", "empty_answer"),
        ("detection", "<answer></answer>", "empty_answer"),
        ("detection", "[{'Position': [0, 0, 500], 'Confidence': 1}]", "malformed"),
        ("detection", "[{'Position': [0, 0, 5, 5], 'Confidence': 1}, {'Pos", "cut"),  # a gold box would be lost
        ("detection", "<answer>[{'Position': [0, 0, 5, 5], 'Confidence': 1}]", "cut"),
        ("grounding", "(0,0),(1,1),(2,2),(3,3)", "several"),
        ("grounding", "<think>(0,0),(1,1)</think>", "no_answer"),
        ("counting", "2 or 3", r"several.*right: <answer>whole number"),
        ("counting", "<answer>3", "cut"),  # it may have been 30
        ("pointing", "(250,500)", r"malformed.*right: <answer>\(x1,y1\),\(x2,y2\)"),  # a point is no box
        ("classification", "<answer>rose", "cut"),
    ],
)
def test_an_unreadable_solution_is_refused(name, solution, words):
    with pytest.raises(ValueError, match=words):
        load_task(name).gold_of(solution, FRAME)
