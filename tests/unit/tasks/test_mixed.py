"""A mixture of tasks: each row is asked, read and measured by its own."""

import pytest

from vrft.errors import UserError
from vrft.tasks import load_task
from vrft.tasks.boxes import Frame

FRAME = Frame("norm1000", (200, 100), (196, 98))
SCENE = {"row_id": "r", "images": ["a.png"], "image_wh": [200, 100]}
COUNT = {**SCENE, "task": "counting", "category": "dog", "gold": 4, "thought": "Two pairs."}
GROUND = {**SCENE, "task": "grounding", "phrase": "the dog", "gold": [0, 0, 100, 100]}
TASKS = {"grounding": {"weight": 3, "thinking": "none"}, "counting": {}}


@pytest.fixture
def task():
    return load_task("mixed", tasks=TASKS)


def test_each_task_has_its_options_and_its_weight(task):
    assert (task.name, list(task.tasks)) == ("mixed", ["grounding", "counting"])
    assert dict(task.weights) == {"grounding": 3, "counting": 1.0}
    assert [one.has_thought for one in task.tasks.values()] == [False, True]
    assert load_task("mixed", tasks={"counting": None}).weights == {"counting": 1.0}, "an empty block in YAML"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"task\.tasks.*None given"),
        ({"tasks": {}}, r"task\.tasks"),
        ({"tasks": TASKS, "thinking": "none"}, "thinking"),  # each task has its own
        ({"tasks": {"detektion": {}}}, "detektion.*known tasks: .*detection"),
        ({"tasks": {"mixed": {}}}, r"task\.tasks"),
        ({"tasks": {"counting": {"thoughts": "none"}}}, "task=counting does not take.*thoughts"),
        ({"tasks": {"counting": {"weight": 0}}}, r"task\.tasks\.counting\.weight is 0; a number above 0"),
        ({"tasks": {"counting": {}, "pointing": {"weight": -1}}}, r"pointing\.weight is -1"),
        ({"tasks": {"counting": {"weight": "2"}}}, "weight is '2'"),
        ({"tasks": {"counting": {"weight": True}}}, "weight is True"),
        ({"tasks": {"counting": {"weight": float("nan")}}}, "weight is nan"),
        ({"tasks": {"counting": {"thinking": "prefilled"}, "pointing": {}}}, "prefilled for some tasks"),
        ({"tasks": {"own_tasks.Bricks": {}}}, r"trust_code=\[own_tasks\]"),
    ],
)
def test_a_wrong_mixture_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        load_task("mixed", **options)


@pytest.mark.parametrize(
    "named", [{}, *({"task": name} for name in (None, "detection", "mixed", ["counting"], {"a": 1}))]
)
def test_a_row_of_no_task_of_the_mixture_is_refused(task, named):
    row = {**{key: value for key, value in COUNT.items() if key != "task"}, **named}
    for ask in (task.for_row, task.check, lambda row: task.question(row, FRAME), lambda row: task.gold(row, FRAME)):
        with pytest.raises(ValueError, match=r"column 'task' is .*; one of grounding, counting is needed"):
            ask(row)


def test_a_row_is_the_business_of_its_own_task(task):
    counting, grounding = load_task("counting"), load_task("grounding", thinking="none")
    assert (task.for_row(COUNT), task.for_row(GROUND)) == (counting, grounding)
    assert task.question(COUNT, FRAME) == counting.question(COUNT, FRAME)
    assert task.question(GROUND, FRAME) == grounding.question(GROUND, FRAME)
    assert task.gold(COUNT, FRAME) == "<think>Two pairs.</think><answer>4</answer>"
    assert task.gold(COUNT, FRAME, "empty") == "<think></think><answer>4</answer>"
    assert task.gold(GROUND, FRAME) == "<answer>(0,0),(500,1000)</answer>"
    task.check(COUNT)
    with pytest.raises(ValueError, match="four finite numbers"):
        task.check({**GROUND, "gold": 4})


@pytest.mark.parametrize(
    ("row", "answer", "read", "reason"),
    [
        (COUNT, "4", 4, None),
        (GROUND, "(0,0),(500,1000)", (0, 0, 100, 100), None),
        (COUNT, "(0,0),(500,1000)", None, "malformed"),  # another task's answer
        (GROUND, "4", None, "not_found"),
    ],
)
def test_parse(task, row, answer, read, reason):
    parsed = task.parse(f"<answer>{answer}</answer>", row, FRAME, is_truncated=True)
    assert (parsed.answer, parsed.reason, parsed.is_truncated) == (read, reason, True)


@pytest.mark.parametrize(
    ("row", "answer", "metrics"),
    [
        (COUNT, "3", {"score": 0, "counting/accuracy": 0, "counting/count": 0.75, "counting/absolute_error": 1}),
        (COUNT, "4", {"score": 1, "counting/accuracy": 1, "counting/count": 1, "counting/absolute_error": 0}),
        (COUNT, "dogs", {"score": 0, "counting/accuracy": 0, "counting/count": 0}),  # no number, no error
        (GROUND, "(0,0),(250,1000)", {"score": 1, "grounding/accuracy@0.5": 1, "grounding/iou": 0.5}),
        (GROUND, "4", {"score": 0, "grounding/accuracy@0.5": 0, "grounding/iou": 0}),
    ],
)
def test_metrics(task, row, answer, metrics):
    parsed = task.parse(f"<answer>{answer}</answer>", row, FRAME)
    found = {name: metric(parsed, row) for name, metric in task.metrics.items()}
    assert list(found) == [
        "score",
        *("grounding/accuracy@0.5", "grounding/iou", "grounding/pick_rate"),
        *("counting/accuracy", "counting/count", "counting/absolute_error"),
    ]
    assert {name: value for name, value in found.items() if value is not None} == pytest.approx(metrics)


def test_terms_are_those_of_all_tasks_each_once(task):
    assert task.term_names == ("iou", "giou", "format", "length", "repetition", "accuracy", "count")
