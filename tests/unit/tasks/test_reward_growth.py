"""Reading and judging take time in proportion to the length of the text, whatever the model writes."""

import re
import time

import pytest

from vrft.tasks import load_task, task_names
from vrft.tasks.boxes import Frame
from vrft.tasks.reward_terms import MATCHINGS, RewardOptions

SIZES = (62_500, 1_000_000)
MOST_RATIO = 64  # linear is 16, quadratic 256: a busy machine has a factor of four either way
FAST_S = 0.005  # below it a ratio is noise, and nothing is dear
DEAR_S = 2.0  # the shorter text alone: no need to wait for the longer one
FRAME = Frame("norm1000", (640, 480), (532, 392))
TASKS = {  # one of each kind of answer, and boxes with labels: options, and how boxes are matched
    "detection": ({}, "greedy"),
    "detection, labelled": ({"labelled": True}, "hungarian"),
    "grounding": ({}, "greedy"),
    "pointing": ({}, "greedy"),
    "counting": ({}, "greedy"),
    "classification": ({}, "greedy"),
}


def repeated(piece: str, *, start: str = "", end: str = ""):
    """A function of a length n to a text of at most about n characters."""
    return lambda n: start + piece * (n // len(piece)) + end


def distinct_boxes(n: int) -> str:
    """Readable boxes, no two alike, 50 to 56 characters each."""
    n_boxes = n // 56
    boxes = (f"{{'Position': [{i % 997}, {i // 997}, 999, 999], 'Confidence': 0.50}}" for i in range(n_boxes))
    return f"[{', '.join(boxes)}]"


SHAPES = {
    "[[[[": repeated("["),
    "{{{{": repeated("{"),
    "((((": repeated("("),
    "thoughts": repeated("<think>"),
    "answers": repeated("<answer>"),
    "alternating tags": repeated("</think><answer>"),
    "blanks": repeated(" "),
    "a point, then blanks": repeated(" ", start="(1,1)", end="x"),
    "a list, then blanks": repeated(" ", start="[1,2,3,4", end="x]"),
    "line ends": repeated("\n"),
    "digits": repeated("9"),
    "1,1,1,1": repeated("1,1,1,1,"),
    "1.1.1.1": repeated("1.1.1.1."),
    "corners without end": repeated("(1,1),("),
    "one box, many times": repeated("(1,1),(9,9)" + " " * 89),
    "{'Position': [1": repeated("{'Position': [1"),
    "labels in one object": repeated("'label': '", start="{'Position': [1,2,3,4], ", end="}"),
    "labels, then blanks": repeated(" ", start="{'Position': [1,2,3,4]," + "'label':'" * 10 + "'", end="}"),
    "confidences in one object": repeated("'Confidence': 1 ", start="{'Position': [1,2,3,4], ", end="}"),
    "confidence, then blanks": repeated(" ", start="{'Position': [1,2,3,4], 'Confidence': 1", end="x}"),
    "quotes": repeated("'"),
    "hyphens": repeated("-"),
    "commas": repeated(","),
    "No Objects": repeated("No Objects "),
    "one long word": repeated("a"),
    "words": repeated("a b "),
    "digits of another script": repeated("٣"),
    "letters that lower case lengthens": repeated("İİİİİİİ "),
    "distinct boxes": distinct_boxes,
}


def reader(label: str):
    """`(judge, right)`: a function that reads a completion and judges it by every term, and the right answer."""
    options, matching = TASKS[label]
    task = load_task(label.partition(",")[0], **options)
    row = {"row_id": "r0", "images": ["a.png"], "image_wh": [640, 480], **task.examples[0]}
    task.check(row)
    terms = task.terms(RewardOptions(matching=matching)).values()

    def judge(text: str) -> list[float]:
        parsed = task.parse(text, row, FRAME)
        return [term(parsed, row) for term in terms]

    return judge, task.gold(row, FRAME, "none")


ANSWERS = [
    (label, shape)
    for label in TASKS
    for shape in SHAPES
    if label != "detection, labelled" or "label" in shape or "box" in shape  # otherwise as without labels
]


def growth(work, shape, *, sizes=SIZES) -> float | None:
    """How many times more CPU time the longer text of a shape takes than the shorter; None where it is fast anyway.

    Noise only adds: the shorter text's is the least of three runs, and so is the longer's where one alone looks dear;
    what still looks dear is measured again, both by turns.
    """

    def cpu_s(text: str) -> float:
        started = time.process_time()
        work(text)
        return time.process_time() - started

    short, long = (shape(n) for n in sizes)
    short_s = cpu_s(short)
    if short_s > DEAR_S:
        return float("inf")
    long_s, short_s = cpu_s(long), min(short_s, cpu_s(short), cpu_s(short))
    if long_s >= MOST_RATIO * short_s:
        long_s = min(long_s, cpu_s(long), cpu_s(long))
    for _ in range(3):
        if long_s >= MOST_RATIO * short_s:
            short_s, long_s = min(short_s, cpu_s(short)), min(long_s, cpu_s(long))
    return long_s / short_s if long_s >= FAST_S else None


def test_every_kind_of_answer_is_attacked():
    kinds = {load_task(name).answer_kind for name in task_names()}
    assert {load_task(label.partition(",")[0]).answer_kind for label in TASKS} == kinds
    assert {matching for _, matching in TASKS.values()} == set(MATCHINGS)
    assert (len(SHAPES), len(ANSWERS)) == (29, 5 * 29 + 4)
    assert all(0.8 * n < len(shape(n)) < 1.01 * n + 200 for shape in SHAPES.values() for n in SIZES)


@pytest.mark.parametrize("label", TASKS)
def test_the_right_answer_is_judged(label):
    """Else the growth of the terms would not be seen."""
    judge, right = reader(label)
    assert max(judge(f"<think>I see it.</think>{right}")) == 1.0
    assert min(judge(f"<think>I see it.</think>{right}")) > 0


@pytest.mark.parametrize(("label", "shape"), ANSWERS)
def test_no_answer_takes_more_than_its_share(label, shape):
    judge, _ = reader(label)
    ratio = growth(lambda attack: judge(f"<think></think><answer>{attack}</answer>"), SHAPES[shape])
    assert ratio is None or ratio < MOST_RATIO


@pytest.mark.parametrize("shape", SHAPES)
def test_no_thought_takes_more_than_its_share(shape):
    """A thought is read alike by all tasks; with the right answer behind it, the terms have something to judge."""
    judge, right = reader("pointing")
    ratio = growth(lambda attack: judge(f"<think>{attack}</think>{right}"), SHAPES[shape])
    assert ratio is None or ratio < MOST_RATIO


@pytest.mark.parametrize(
    ("work", "shape", "is_refused"),
    [
        (lambda text: re.findall(r"\{[^}]*\}", text), repeated("{"), True),  # each opening reads to the end
        (lambda text: re.findall(r"\{[^{}]*\}", text), repeated("{"), False),
        (lambda text: [text.count("ab", 0, end) for end in range(0, len(text), 40)], repeated("a"), True),
        (lambda text: [text[start : start + 9] for start in range(len(text))], repeated("a"), False),
    ],
)
def test_what_is_quadratic_is_seen(work, shape, is_refused):
    ratio = growth(work, shape, sizes=(1_250, 20_000) if is_refused else SIZES)
    assert (ratio is not None and ratio >= MOST_RATIO) == is_refused
