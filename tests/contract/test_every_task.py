"""What every task promises, in every frame: found by globbing, so that a new task is held to it."""

import importlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vrft.tasks
from vrft.evaluate.protocols import SCORERS
from vrft.tasks import load_task, task_names
from vrft.tasks.answers import REASONS
from vrft.tasks.base import THINKING, THOUGHTS
from vrft.tasks.boxes import FRAMES, Frame
from vrft.tasks.reward_terms import MATCHINGS, RewardOptions

MODULES = sorted(path.stem for path in Path(vrft.tasks.__file__).parent.glob("[a-z]*.py"))
TASKS = [name for name in MODULES if hasattr(importlib.import_module(f"vrft.tasks.{name}"), "TASK")]

CONF = Path(__file__).parents[2] / "conf"
SHAPES = {"landscape": ((640, 480), (532, 392)), "portrait": ((427, 640), (364, 532)), "tiny": ((56, 56), (56, 56))}
"""(width, height) of the original image, and as the model sees it."""


def frame_of(name: str, shape: str, *, step: int = 1) -> Frame:
    return Frame(name, *SHAPES[shape], coordinate_step=step)


def variants(name: str, **options) -> list:
    """The task as its config file has it and, where it can ask for labels, with labels."""
    config = yaml.safe_load((CONF / "task" / f"{name}.yaml").read_text(encoding="utf-8")) | options
    return [load_task(**config), *([load_task(**config | {"labelled": True})] if "labelled" in config else [])]


def rows_for(task, image_wh) -> list[dict]:
    """The task's examples, their boxes moved from an image of 640 × 480 to one of another size."""
    scale = np.array([image_wh[0] / 640, image_wh[1] / 480] * 2)

    def moved(gold):
        if isinstance(gold, dict):
            return gold | {"xyxy": moved(gold["xyxy"])}
        if isinstance(gold, list) and gold and not isinstance(gold[0], list | dict):
            return (np.array(gold, float) * scale).tolist()
        return [moved(one) for one in gold] if isinstance(gold, list) else gold

    rows = []
    for number, example in enumerate(task.examples):
        row = {
            "row_id": f"r{number}",
            "images": ["a.png"],
            "image_wh": list(image_wh),
            "thought": "I see it.",
            **example,
        }
        rows.append(row | {"gold": moved(row["gold"])})
        task.check(rows[-1])
    return rows


def overlap_kept(gold, frame: Frame) -> float:
    """The IoU that rounding leaves at least, for the worst of the boxes of a gold: every corner half a step off."""
    if not gold or isinstance(gold, str | int):
        return 1.0
    boxes = (
        gold if isinstance(gold[0], list) else [one["xyxy"] for one in gold] if isinstance(gold[0], dict) else [gold]
    )
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
    assert len(TASKS) >= 7
    assert set(TASKS) == set(task_names()) == {path.stem for path in (CONF / "task").glob("*.yaml")} - {"mixed", "own"}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_what_it_is(name):
    for task in variants(name):
        assert task.name == name
        assert {"format", "length", "repetition"} < set(task.term_names)
        assert task.metrics
        assert set(task.protocol_scorers) <= set(SCORERS)
        assert len(rows_for(task, (640, 480))) >= 2


@pytest.mark.parametrize("thinking", THINKING)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("frame_name", "step"), [*((name, 1) for name in FRAMES), ("norm1000", 20)])
@pytest.mark.parametrize("name", TASKS)
def test_the_gold_earns_the_most_that_rounding_allows(name, frame_name, shape, step, thinking):
    frame = frame_of(frame_name, shape, step=step)
    for task in variants(name, thinking=thinking):
        for row, thought in itertools.product(rows_for(task, frame.image_wh), THOUGHTS):
            written = task.gold(row, frame, thought)
            written = written.removeprefix("<think>") if task.is_prefilled else written  # which the prompt has
            parsed = task.parse(written, row, frame)
            assert parsed.reason is None
            least = overlap_kept(row["gold"], frame)
            has_form = thinking != "think" or thought != "none"
            for matching in MATCHINGS:
                soft = RewardOptions(matching=matching, iou_threshold=0)  # a coarse frame may leave less than a half
                for term, value_of in task.terms(soft).items():
                    assert (float(has_form) if term == "format" else least) - 1e-9 <= value_of(parsed, row) <= 1
            for metric, value_of in task.metrics.items():
                value = value_of(parsed, row)
                assert value == 0 if metric == "absolute_error" else value is None or value >= least - 1e-9


@pytest.mark.parametrize("thinking", THINKING)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TASKS)
def test_the_question_names_the_numbers_of_the_frame(name, shape, thinking):
    image_wh, seen_wh = SHAPES[shape]
    numbers = {
        "norm1000": ("0", "1000"),
        "seen_pixels": map(str, seen_wh),
        "pixels": map(str, image_wh),
        "norm1": ("0", "1"),
    }
    for task in variants(name, thinking=thinking):
        for row in rows_for(task, image_wh):
            questions = {frame_name: task.question(row, frame_of(frame_name, shape)) for frame_name in FRAMES}
            assert ("<think>" in questions["norm1000"]) is (thinking != "none")
            if isinstance(row["gold"], str | int):
                assert len(set(questions.values())) == 1  # a name has no frame
                continue
            for frame_name, wanted in numbers.items():
                words = questions[frame_name].replace(",", " ").replace(".", " ").split()
                assert set(wanted) <= set(words)


@pytest.mark.parametrize("thinking", THINKING)
@pytest.mark.parametrize("frame_name", FRAMES)
@pytest.mark.parametrize("name", TASKS)
def test_copying_the_question_earns_nothing_but_form(name, frame_name, thinking):
    frame = frame_of(frame_name, "landscape")
    for task in variants(name, thinking=thinking):
        for row in rows_for(task, frame.image_wh):
            form = f"<answer>{task.answer_form(frame)}</answer>"
            for text in (form, f"<think></think>{form}", task.question(row, frame), task.answer_form(frame)):
                parsed = task.parse(text, row, frame)
                assert parsed.answer is None or isinstance(row["gold"], str)
                assert {value_of(parsed, row) for value_of in _about_the_answer(task)} <= {0.0}


@pytest.mark.parametrize("name", TASKS)
def test_an_unreadable_answer_earns_nothing(name):
    frame = frame_of("norm1000", "landscape")
    for task in variants(name):
        for row in rows_for(task, frame.image_wh):
            gold = task.gold(row, frame)
            for text in ("", "<think></think><answer></answer>", "<think>the dog", f"<think>{gold}</think>"):
                parsed = task.parse(text, row, frame)
                assert parsed.answer is None
                assert parsed.reason is not None
                assert {function(parsed, row) for name, function in _terms(task) if name != "format"} == {0.0}


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


N_EXAMPLES = 10_000


@pytest.mark.parametrize("name", TASKS)
def test_no_text_raises_or_leaves_0_to_1(name):
    tasks = [task for thinking in THINKING for task in variants(name, thinking=thinking)]
    cases = [(task, row) for task in tasks for row in rows_for(task, (640, 480))]

    @settings(
        max_examples=N_EXAMPLES // len(TASKS) + 1,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(TEXTS, st.sampled_from(cases), st.sampled_from(FRAMES), st.booleans())
    def judge_any(text, case, frame_name, is_truncated):
        task, row = case
        parsed = task.parse(text, row, frame_of(frame_name, "landscape"), is_truncated=is_truncated)
        assert (parsed.answer is None) is (parsed.reason is not None)
        assert parsed.reason is None or parsed.reason in REASONS
        for matching in MATCHINGS:
            values = [value_of(parsed, row) for value_of in task.terms(RewardOptions(matching=matching)).values()]
            assert all(math.isfinite(value) and 0 <= value <= 1 for value in values)
        for metric, value_of in task.metrics.items():
            value = value_of(parsed, row)
            assert value is None or (value >= 0 and (value <= 1 or metric == "absolute_error"))

    judge_any()


def _terms(task):
    return task.terms(RewardOptions()).items()


def _about_the_answer(task):
    """The terms that compare the answer with the gold."""
    return [value_of for name, value_of in _terms(task) if name in task.answer_terms(RewardOptions())]
