"""What every task promises, in every frame: found by globbing, so that a new task is held to it."""

import importlib
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vrft.tasks
from vrft.boxes import FRAMES, Frame
from vrft.rewards import MATCHINGS, RewardOptions
from vrft.tasks import load_task, task_names
from vrft.tasks.base import THINKING, THOUGHTS

MODULES = sorted(path.stem for path in Path(vrft.tasks.__file__).parent.glob("[a-z]*.py"))
TASKS = [name for name in MODULES if hasattr(importlib.import_module(f"vrft.tasks.{name}"), "TASK")]

SHAPES = {"landscape": ((640, 427), (532, 364)), "portrait": ((427, 640), (364, 532)), "tiny": ((56, 56), (56, 56))}
"""(width, height) of the original image, and as the model sees it."""
FRACTIONS = [(0.1, 0.15, 0.62, 0.78), (0.3, 0.41, 0.97, 0.99)]
GOLDS = {  # what golds may look like, from fractions of the image; each task takes those it checks
    "boxes": lambda boxes: boxes,
    "no box": lambda boxes: [],
    "a box": lambda boxes: boxes[0],
    "a name": lambda boxes: "Maine_Coon",
    "a count": lambda boxes: 3,
}


def frame_of(name: str, shape: str, *, step: int = 1) -> Frame:
    return Frame(name, *SHAPES[shape], coordinate_step=step)


def rows_for(task, image_wh) -> list[dict]:
    """A row for each kind of gold that the task takes."""
    boxes = [[x1 * image_wh[0], y1 * image_wh[1], x2 * image_wh[0], y2 * image_wh[1]] for x1, y1, x2, y2 in FRACTIONS]
    rows = []
    for gold in GOLDS.values():
        row = {"row_id": "r", "images": ["a.png"], "image_wh": list(image_wh), "category": "dog", "phrase": "the dog"}
        row |= {"thought": "It is on the left.", "gold": gold(boxes), "instruction": "Name the animal."}
        try:
            task.check(row)
        except ValueError:
            continue
        rows.append(row)
    return rows


def overlap_kept(gold, frame: Frame) -> float:
    """The IoU that rounding leaves at least, for the worst of the boxes of a gold: every corner half a step off."""
    boxes = gold if gold and isinstance(gold[0], list) else [gold]
    if not gold or isinstance(gold, str):
        return 1.0
    kept = 1.0
    for x1, y1, x2, y2 in boxes:
        overlap = 1.0
        for size, whole, seen in (
            (x2 - x1, frame.image_wh[0], frame.seen_wh[0]),
            (y2 - y1, frame.image_wh[1], frame.seen_wh[1]),
        ):
            step = {"norm1000": whole / 1000, "seen_pixels": whole / seen, "pixels": 1, "norm1": whole / 1000}[
                frame.name
            ]
            half = step * (1 if frame.name == "norm1" else frame.coordinate_step) / 2
            overlap *= (size - 2 * half) / (size + 2 * half)
        kept = min(kept, overlap)
    return kept


def test_every_task_is_found():
    assert len(TASKS) >= 4
    assert set(TASKS) == set(task_names())


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_what_it_is(name):
    task = load_task(name)
    assert task.name == name
    assert set(task.terms(RewardOptions())) == set(task.term_names)
    assert "format" in task.term_names
    assert task.metrics
    assert task.protocol_scorers
    assert rows_for(task, (640, 427)), "give GOLDS a gold of this task"


@pytest.mark.parametrize("thinking", THINKING)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("frame_name", "step"), [*((name, 1) for name in FRAMES), ("norm1000", 20)])
@pytest.mark.parametrize("name", TASKS)
def test_the_gold_earns_the_most_that_rounding_allows(name, frame_name, shape, step, thinking):
    task, frame = load_task(name, thinking=thinking), frame_of(frame_name, shape, step=step)
    for row in rows_for(task, frame.image_wh):
        for thought in THOUGHTS:
            parsed = task.parse(task.gold(row, frame, thought), row, frame)
            assert parsed.reason is None
            has_form = thinking == "none" or thought != "none"
            for matching in MATCHINGS:
                for term, value_of in task.terms(RewardOptions(matching=matching)).items():
                    least = float(has_form) if term == "format" else overlap_kept(row["gold"], frame)
                    assert least - 1e-9 <= value_of(parsed, row) <= 1
            for metric in task.metrics.values():
                value = metric(parsed, row)
                assert value is None or value >= overlap_kept(row["gold"], frame) - 1e-9


@pytest.mark.parametrize("thinking", THINKING)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TASKS)
def test_the_question_names_the_numbers_of_the_frame(name, shape, thinking):
    task, (image_wh, seen_wh) = load_task(name, thinking=thinking), SHAPES[shape]
    numbers = {
        "norm1000": ("0", "1000"),
        "seen_pixels": map(str, seen_wh),
        "pixels": map(str, image_wh),
        "norm1": ("0", "1"),
    }
    for row in rows_for(task, image_wh):
        questions = {frame_name: task.question(row, frame_of(frame_name, shape)) for frame_name in FRAMES}
        if isinstance(row["gold"], str | int):
            assert len(set(questions.values())) == 1  # a name has no frame
            continue
        for frame_name, wanted in numbers.items():
            words = questions[frame_name].replace(",", " ").replace(".", " ").split()
            assert set(wanted) <= set(words)
        assert ("<think>" in questions["norm1000"]) is (thinking == "think")


@pytest.mark.parametrize("thinking", THINKING)
@pytest.mark.parametrize("frame_name", FRAMES)
@pytest.mark.parametrize("name", TASKS)
def test_copying_the_question_earns_nothing_but_form(name, frame_name, thinking):
    task, frame = load_task(name, thinking=thinking), frame_of(frame_name, "landscape")
    for row in rows_for(task, frame.image_wh):
        form = f"<answer>{task.answer_form(frame)}</answer>"
        for text in (form, f"<think></think>{form}", task.question(row, frame), task.answer_form(frame)):
            parsed = task.parse(text, row, frame)
            assert parsed.answer is None or isinstance(row["gold"], str)
            assert {value_of(parsed, row) for term, value_of in _judging(task)} == {0.0}


@pytest.mark.parametrize("name", TASKS)
def test_an_unreadable_answer_earns_nothing(name):
    task, frame = load_task(name), frame_of("norm1000", "landscape")
    for row in rows_for(task, frame.image_wh):
        for text in (
            "",
            "<think></think><answer></answer>",
            "<think>the dog",
            f"<think>{task.gold(row, frame)}</think>",
        ):
            parsed = task.parse(text, row, frame)
            assert parsed.answer is None
            assert parsed.reason is not None
            assert {value_of(parsed, row) for _, value_of in _judging(task)} == {0.0}


TAGS = ["<think>", "</think>", "<answer>", "</answer>", "```"]
MARKS = ["[", "]", "{", "}", "(", ")", ",", ":", "'", '"', " ", "\n", "\x00", "\ud800", "（"]
WORDS = ["'Position'", "'Confidence'", "bbox_2d", "No Objects", "none", "Maine_Coon", "dog"]
NUMBERS = ["0", "1", "500", "1000", "-7", "0.25", "NaN", "Infinity", "1e309", "null", "true", "9" * 20, "９"]
FRAGMENTS = st.sampled_from([*TAGS, *MARKS, *WORDS, *NUMBERS])
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(FRAGMENTS, max_size=40).map("".join),
    st.lists(FRAGMENTS, max_size=30).map(lambda parts: f"<think></think><answer>{' '.join(parts)}</answer>"),
    st.lists(st.tuples(*[st.integers(-2000, 2000)] * 4), max_size=4).map(lambda boxes: f"<answer>{boxes}</answer>"),
)


@pytest.mark.parametrize("name", TASKS)
def test_no_text_raises_or_leaves_0_to_1(name):
    tasks = [load_task(name, thinking=thinking) for thinking in THINKING]
    rows = rows_for(tasks[0], (640, 427))

    @settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(TEXTS, st.sampled_from(rows), st.sampled_from(tasks), st.sampled_from(FRAMES), st.booleans())
    def judge_any(text, row, task, frame_name, is_truncated):
        parsed = task.parse(text, row, frame_of(frame_name, "landscape"), is_truncated=is_truncated)
        assert (parsed.answer is None) is (parsed.reason is not None)
        for matching in MATCHINGS:
            values = [value_of(parsed, row) for value_of in task.terms(RewardOptions(matching=matching)).values()]
            assert all(math.isfinite(value) and 0 <= value <= 1 for value in values)
        for metric in task.metrics.values():
            value = metric(parsed, row)
            assert value is None or 0 <= value <= 1

    judge_any()


def _judging(task):
    """The terms that judge the answer, not its form."""
    return [(term, value_of) for term, value_of in task.terms(RewardOptions()).items() if term != "format"]
