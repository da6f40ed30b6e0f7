"""What answers earn, task by task: the right ones, the wrong ones, and those that try to be both."""

import pytest

from vrft.tasks import load_task
from vrft.tasks.boxes import Frame
from vrft.tasks.reward_terms import RewardOptions

FRAME = Frame("norm1000", (200, 100), (196, 98))
LEFT, RIGHT = [0, 0, 100, 100], [100, 0, 200, 100]  # (0,0),(500,1000) and (500,0),(1000,1000)
SCENE = {"row_id": "r", "images": ["a.png"], "image_wh": [200, 100]}
DETECT = {**SCENE, "category": "dog", "gold": [LEFT]}
TWO = {**DETECT, "gold": [LEFT, RIGHT]}
NONE = {**DETECT, "gold": []}
BOTH = "[{'Position': [0, 0, 500, 1000], 'Confidence': 0.9}, {'Position': [500, 0, 1000, 1000], 'Confidence': 0.7}]"
GROUND = {**SCENE, "phrase": "the dog", "gold": LEFT}
CLASSIFY = {**SCENE, "gold": "Maine_Coon"}
COUNT = {**SCENE, "category": "dog", "gold": 4}


def terms(name, row, answer, *, text="<think></think><answer>{}</answer>", **options):
    task = load_task(name)
    parsed = task.parse(text.format(answer), row, FRAME)
    return {name: term(parsed, row) for name, term in task.terms(RewardOptions(**options)).items()}


@pytest.mark.parametrize(
    ("row", "answer", "iou", "confidence"),
    [
        (TWO, BOTH, 1, 0.8),
        (DETECT, BOTH, 0.5, 0.6),  # (0.9 + 1 - 0.7) / 2
        (DETECT, "No Objects", 0, 0),
        (NONE, "No Objects", 1, 1),  # a right 'No Objects' is paid, unlike in the original
        (NONE, "...", 0, 0),
        (NONE, BOTH, 0, 0.2),
        (DETECT, "[{'Position': [500, 1000, 0, 0], 'Confidence': 0.9}]", 0, 0.1),  # swapped corners
        (DETECT, "[{'Position': [0, 0, 500, 1000], 'Confidence': NaN}]", 0, 0),
        (DETECT, "[{'Position': [0, 0, 500, NaN], 'Confidence': 1}]", 0, 0),
        (DETECT, "[{'Position': [0, 0, 500, 1000], 'Confidence': -100}]", 1, 0),
        (DETECT, ", ".join(["[0, 0, 500, 1000]"] * 50), 1, 1),  # the same box often is one box
        (DETECT, "[[0, 0, 500, 1000], [0, 0, 499, 1000]]", 0.5, 0.5),  # nearly the same is a second one
        (DETECT, "[[500, 0, 777, 777]]", 0, 0),  # y1 of the gold: 3.0 in the original
    ],
)
def test_detection_pays_what_is_right(row, answer, iou, confidence):
    for name in ("detection", "open_vocabulary_detection"):
        found = terms(name, row, answer)
        assert (found["iou"], found["confidence"], found["format"]) == pytest.approx((iou, confidence, 1))


@pytest.mark.parametrize(
    ("row", "answer", "values"),
    [  # calibration, precision, recall, f1, count, giou; LEFT and RIGHT touch: GIoU 0, 1/2 as a term
        (TWO, BOTH, (1 - (0.01 + 0.09) / 4, 1, 1, 1, 1, 1)),  # of two golds 2c - c² = 1 - (1 - c)² each
        (DETECT, BOTH, ((1 + 0.99 - 0.49) / 2, 1 / 2, 1, 2 / 3, 1 / 2, 1 / 2)),  # one too many
        (DETECT, "No Objects", (1 / 2, 0, 0, 0, 0, 0)),
        (NONE, "No Objects", (1, 1, 1, 1, 1, 1)),
        (NONE, BOTH, (0, 0, 0, 0, 0, 0)),  # 1 - 0.81 - 0.49 is cut at 0
        (DETECT, "[[500, 0, 1000, 1000]]", (0, 0, 0, 0, 1, 1 / 2)),  # a sure miss; the count alone is right
        (TWO, "[[0, 0, 500, 1000]]", (3 / 4, 1, 1 / 2, 2 / 3, 1 / 2, 1 / 2)),  # one missed
        (NONE, "...", (0, 0, 0, 0, 0, 0)),  # unreadable earns nothing, also where there is none
    ],
)
def test_detection_pays_by_its_further_terms(row, answer, values):
    found = terms("detection", row, answer)
    names = ("calibration", "precision", "recall", "f1", "count", "giou")
    assert [found[name] for name in names] == pytest.approx(values)


@pytest.mark.parametrize(
    ("answer", "iou", "giou"),
    [
        ("(0,0),(500,1000)", 1, 1),
        ("(0,0),(250,1000)", 0.5, 0.75),
        ("(500,1000),(0,0)", 0, 0),  # swapped: 101.0 in the original
        ("(0,0),(500,1000),(0,0),(500,1000)", 0, 0),  # two boxes, -84 … 198 there
        ("(500,0),(1000,1000)", 0, 0.5),
        ("(0,0),(9999,9999)", 0.5, 0.75),  # cut to the image, twice the gold
        ("the dog", 0, 0),
    ],
)
@pytest.mark.parametrize("name", ["grounding", "reasoning_grounding"])
def test_grounding_pays_what_is_right(name, answer, iou, giou):
    found = terms(name, GROUND, answer)
    assert (found["iou"], found["giou"], found["format"]) == pytest.approx((iou, giou, 1))


@pytest.mark.parametrize(
    ("answer", "accuracy", "exact"),
    [
        ("maine coon", 1, 1),
        ("**MAINE_COON**", 1, 1),
        ("Coon-Cat", 1, 0),  # an alias
        ("Sphynx", 0, 0),
        ("Maine_Coon, Sphynx", 0, 0),
        ("maine", 0, 0),
        ("_", 0, 0),
    ],
)
def test_classification_pays_what_is_right(answer, accuracy, exact):
    found = terms("classification", {**CLASSIFY, "aliases": ["coon cat"]}, answer)
    assert (found["accuracy"], found["exact"], found["format"]) == (accuracy, exact, 1)


@pytest.mark.parametrize(
    ("gold", "answer", "accuracy", "count"),
    [
        (4, "4", 1, 1),
        (4, "Four.", 1, 1),
        (4, "3", 0, 0.75),
        (4, "8", 0, 0.5),
        (4, "0", 0, 0),
        (4, "4 or 5", 0, 0),  # a guess at several
        (0, "0", 1, 1),
        (0, "7", 0, 0),
        (0, "none", 0, 0),  # no number
    ],
)
def test_counting_pays_what_is_right(gold, answer, accuracy, count):
    found = terms("counting", {**SCENE, "category": "dog", "gold": gold}, answer)
    assert (found["accuracy"], found["count"], found["format"]) == pytest.approx((accuracy, count, 1))


@pytest.mark.parametrize(
    ("answer", "accuracy", "proximity"),
    [
        ("(250,500)", 1, 1),
        ("(500,1000)", 1, 1),  # on the corner
        ("(550,500)", 0, 1 - 10 / 50_000**0.5),  # 10 pixels to the right; the diagonal of 200 × 100
        ("(1000,1000)", 0, 1 - 100 / 50_000**0.5),
        ("(9999,9999)", 0, 0),
        ("(250,500),(250,500)", 0, 0),
    ],
)
def test_pointing_pays_what_is_right(answer, accuracy, proximity):
    found = terms("pointing", GROUND, answer)
    assert (found["accuracy"], found["proximity"], found["format"]) == pytest.approx((accuracy, proximity, 1))


@pytest.mark.parametrize(
    ("thought", "answer", "length", "repetition"),
    [
        ("", "4", 1, 1),
        ("a" * 57, "4", 0.5, 1),  # 90 characters with 33 of tags and the answer, where 60 are free
        ("a" * 87, "4", 0, 1),  # twice as many
        (" a a a a a ", "4", 1, 3 / 4),  # four runs, '<think> a a a', twice 'a a a a', and 'a a a </think>'
        ("", "no dog", 0, 0),  # unreadable earns nothing
    ],
)
def test_every_task_pays_for_length_and_repetition(thought, answer, length, repetition):
    text = f"<think>{thought}</think><answer>{{}}</answer>"
    found = terms("counting", COUNT, answer, text=text, length_limit=60)
    assert (found["length"], found["repetition"]) == pytest.approx((length, repetition))


def test_the_answer_does_not_count_as_repetition():
    answer = ", ".join(["{'Position': [0, 0, 500, 1000], 'Confidence': 1.00}"] * 9)
    assert terms("detection", DETECT, f"[{answer}]")["repetition"] == 1


def test_an_answer_in_the_thought_earns_nothing():
    text = "<think><answer>{}</answer></think><answer>perhaps</answer>"
    assert terms("classification", CLASSIFY, "Maine_Coon", text=text)["accuracy"] == 0
    assert terms("grounding", GROUND, "(0,0),(500,1000)", text=text)["iou"] == 0
    assert terms("detection", DETECT, "[[0, 0, 500, 1000]]", text=text)["iou"] == 0


def test_the_matching_of_the_options_is_used():
    row = {**SCENE, "category": "dog", "gold": [[0, 0, 100, 100], [0, 0, 100, 80]]}
    answer = "[{'Position': [0,0,500,900], 'Confidence': 0.9}, {'Position': [0,0,500,1000], 'Confidence': 0.8}]"
    assert terms("detection", row, answer)["iou"] == pytest.approx((0.9 + 0.8) / 2)
    assert terms("detection", row, answer, matching="hungarian")["iou"] == pytest.approx((8 / 9 + 1) / 2)
    assert terms("detection", row, answer, matching="hungarian", iou_threshold=0.9)["iou"] == pytest.approx(1 / 2)
