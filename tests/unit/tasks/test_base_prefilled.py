"""thinking=prefilled: the prompt has written `<think>` already, and completions start inside the thought."""

import pytest

from vrft.tasks import load_task
from vrft.tasks.boxes import Frame
from vrft.tasks.reward_terms import RewardOptions

FRAME = Frame("norm1000", (200, 100), (196, 98))
ROW = {
    "row_id": "r",
    "images": ["a.png"],
    "image_wh": [200, 100],
    "category": "dog",
    "gold": 4,
    "thought": "Two pairs.",
}
DONE = "two pairs</think><answer>4</answer>"


@pytest.mark.parametrize(
    ("completion", "text", "answer", "reason", "has_form"),
    [
        (DONE, f"<think>{DONE}", 4, None, 1),
        (f"\n{DONE}", f"<think>\n{DONE}", 4, None, 1),
        ("</think><answer>4</answer>", "<think></think><answer>4</answer>", 4, None, 1),  # an empty thought
        (f"<think>{DONE}", f"<think><think>{DONE}", 4, None, 0),  # repeated: read, form not full
        (f"So <think>{DONE}", f"<think>So <think>{DONE}", 4, None, 0),  # opened inside the thought
        ("<answer>4</answer>", "<think><answer>4</answer>", None, "no_answer", 0),  # still inside the thought
        ("two pai", "<think>two pai", None, "no_answer", 0),  # cut
        ("", "<think>", None, "no_answer", 0),
        (f"{DONE} dogs", f"<think>{DONE} dogs", 4, None, 0),
    ],
)
def test_a_completion_is_read_with_the_tag_of_its_prompt(completion, text, answer, reason, has_form):
    task = load_task("counting", thinking="prefilled")
    parsed = task.parse(completion, ROW, FRAME)
    assert (parsed.text, parsed.answer, parsed.reason) == (text, answer, reason)
    assert task.terms(RewardOptions())["format"](parsed, ROW) == has_form


@pytest.mark.parametrize(
    ("thinking", "is_prefilled", "has_form"),
    [("think", False, 0), ("prefilled", True, 1), ("none", False, 0)],
)
def test_only_a_prefilled_task_adds_the_tag(thinking, is_prefilled, has_form):
    task = load_task("counting", thinking=thinking)
    parsed = task.parse(DONE, ROW, FRAME)
    assert task.is_prefilled is is_prefilled
    assert parsed.answer == 4, "read all the same"
    assert task.terms(RewardOptions())["format"](parsed, ROW) == has_form


def test_the_question_is_that_of_think_and_the_gold_always_has_a_thought():
    task = load_task("counting", thinking="prefilled")
    assert task.question(ROW, FRAME) == load_task("counting").question(ROW, FRAME)
    assert task.gold(ROW, FRAME) == "<think>Two pairs.</think><answer>4</answer>"
    assert task.gold(ROW, FRAME, "none") == "<think></think><answer>4</answer>", "the prompt has opened one"
