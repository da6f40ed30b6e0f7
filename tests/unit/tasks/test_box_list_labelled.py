"""Boxes with labels: several categories asked for at once."""

import json

import pytest

from vrft.tasks import load_task
from vrft.tasks.boxes import Frame
from vrft.tasks.reward_terms import RewardOptions

FRAME = Frame("norm1000", (200, 100), (196, 98))
LEFT, RIGHT = [0, 0, 100, 100], [100, 0, 200, 100]  # (0,0),(500,1000) and (500,0),(1000,1000)
DOG, CAT = {"label": "dog", "xyxy": LEFT}, {"label": "cat", "xyxy": RIGHT}
SCENE = {"row_id": "r", "images": ["a.png"], "image_wh": [200, 100]}
PETS = {**SCENE, "categories": ["dog", "cat"], "gold": [DOG, CAT]}
ONE = {**PETS, "gold": [DOG]}
NAMES = ("detection", "open_vocabulary_detection")


def written(*boxes) -> str:
    """The inside of an answer: (side, label) each, of confidence 1; without a label where it is None."""
    sides = {"left": [0, 0, 500, 1000], "right": [500, 0, 1000, 1000]}
    labels = ["" if label is None else f", 'Label': {label!r}" for _, label in boxes]
    objects = [f"{{'Position': {sides[side]}{label}}}" for (side, _), label in zip(boxes, labels, strict=True)]
    return f"[{', '.join(objects)}]"


def terms(row, answer, *, labelled=True, **options):
    task = load_task("detection", labelled=labelled)
    parsed = task.parse(f"<think></think><answer>{answer}</answer>", row, FRAME)
    return {name: term(parsed, row) for name, term in task.terms(RewardOptions(**options)).items()}


@pytest.mark.parametrize(
    ("row", "answer", "iou", "precision", "giou"),
    [
        (PETS, written(("left", "dog"), ("right", "cat")), 1, 1, 1),
        (PETS, written(("right", "cat"), ("left", "dog")), 1, 1, 1),  # in any order
        (PETS, written(("left", "DOG"), ("right", "cat.")), 1, 1, 1),  # names as in classification
        (PETS, written(("left", "cat"), ("right", "dog")), 0, 0, 1 / 2),  # swapped: touching boxes have GIoU 0
        (PETS, written(("left", "dog"), ("right", "dog")), 1 / 2, 1 / 2, 1 / 2),  # one label wrong
        (PETS, written(("left", "cow"), ("right", "cow")), 0, 0, 0),  # a label of no gold
        (PETS, written(("left", None), ("right", None)), 0, 0, 0),  # no labels
        (PETS, written(("left", "dog, cat"), ("right", "dog, cat")), 0, 0, 0),  # a list of all is one wrong label
        (ONE, written(("left", "dog"), ("left", "cat")), 1 / 2, 1 / 2, 1 / 2),  # under each label a prediction
        (ONE, written(("left", "dog"), ("left", "Dog")), 1, 1, 1),  # one label, one place: one prediction
        (ONE, "No Objects", 0, 0, 0),
        ({**PETS, "gold": []}, "No Objects", 1, 1, 1),
        ({**ONE, "aliases": {"dog": ["puppy", "hound"]}}, written(("left", "Puppy")), 1, 1, 1),  # an alias counts
        ({**ONE, "aliases": {"dog": ["puppy"]}}, written(("left", "dog")), 1, 1, 1),  # beside the name itself
        ({**ONE, "aliases": {"cat": ["puppy"]}}, written(("left", "puppy")), 0, 0, 0),  # another's alias does not
        ({**ONE, "aliases": None}, written(("left", "dog")), 1, 1, 1),
    ],
)
def test_a_box_earns_only_with_its_label(row, answer, iou, precision, giou):
    found = terms(row, answer)
    assert (found["iou"], found["precision"], found["giou"]) == pytest.approx((iou, precision, giou))
    assert found["format"] == 1


@pytest.mark.parametrize("matching", ["greedy", "hungarian"])
def test_labels_do_not_matter_where_the_options_say_so(matching):
    answer = written(("left", "cat"), ("right", None))
    assert terms(PETS, answer, matching=matching)["iou"] == 0
    assert terms(PETS, answer, matching=matching, label_aware=False)["iou"] == 1
    two = written(("left", "dog"), ("left", "cat"))
    assert terms(ONE, two, matching=matching, label_aware=False)["iou"] == 1 / 2, "still two predictions"


def test_where_one_category_was_asked_for_labels_do_not_matter():
    row = {**SCENE, "category": "dog", "gold": [LEFT]}
    assert terms(row, written(("left", "cat")), labelled=False)["iou"] == 1
    assert terms(row, written(("left", "cat"), ("left", "dog")), labelled=False)["iou"] == 1, "one place, one box"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (PETS, None),
        ({**PETS, "gold": []}, None),
        ({**PETS, "gold": [{**DOG, "label": "Dog."}]}, None),  # compared as names are
        ({**SCENE, "category": "dog", "gold": [DOG]}, "'categories' is missing"),
        ({**PETS, "problem": "Where?", "categories": None}, "categories"),  # labels are judged by them
        ({**PETS, "gold": [LEFT]}, "label"),  # no label
        ({**PETS, "gold": [{"xyxy": LEFT}]}, "one of the categories"),
        ({**PETS, "gold": [{**DOG, "label": "cow"}]}, "cow.*one of the categories"),
        ({**PETS, "gold": [{"label": "dog"}]}, "4 numbers"),
        ({**PETS, "gold": [{"label": "dog", "xyxy": None}]}, "None is not four finite numbers"),
        ({**PETS, "categories": ["dog", "cat", "driver's 12\" pipe"]}, "not both kinds of quotes"),
        ({**PETS, "categories": ["dog", "cat", "x{1}"]}, "no brackets"),
        ({**PETS, "categories": ["dog", "cat", "a" * 201]}, "at most 200 characters"),
        ({**PETS, "categories": [3]}, "a list of texts"),
        ({**PETS, "categories": ["dog", "cat", "Dog "]}, "'dog' and 'Dog '.*count as the same name; rename one"),
        ({**PETS, "aliases": ["puppy"]}, "a mapping of labels"),
        ({**PETS, "aliases": {"dog": "puppy"}}, "a list is needed"),
        ({**PETS, "aliases": {"dog": ["puppy", "Dog"], "cat": ["kitten"]}}, None),  # its own name is no other
        ({**PETS, "aliases": {"dog": ["CAT"]}}, "alias 'CAT' of 'dog' is a name of 'cat' too"),
        ({**PETS, "aliases": {"dog": ["pet"], "cat": ["Pet"]}}, "alias 'Pet' of 'cat' is a name of 'dog' too"),
        ({**PETS, "gold": [DOG, {**CAT, "xyxy": [0, 0, 201, 100]}]}, "outside the image"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_check(name, row, words):
    task = load_task(name, labelled=True)
    if words is None:
        task.check(row)
    else:
        with pytest.raises(ValueError, match=words):
            task.check(row)


def test_the_question_names_the_categories_and_the_form_has_a_label():
    for name in NAMES:
        question = load_task(name, labelled=True).question(PETS, FRAME)
        assert "'dog', 'cat'" in question
        assert "'Label': 'category'" in question
        assert "Label" not in load_task(name).question({**SCENE, "category": "dog"}, FRAME)


@pytest.mark.parametrize("label", ["dog", "driver's seat", '12" pipe', "chat, noir", "猫"])
@pytest.mark.parametrize("name", NAMES)
def test_the_gold_is_written_as_it_is_read(name, label):
    row = {**SCENE, "categories": [label], "gold": [{"label": label, "xyxy": LEFT}]}
    task = load_task(name, labelled=True)
    parsed = task.parse(task.gold(row, FRAME), row, FRAME)
    assert parsed.answer == [((0, 0, 100, 100), 1.0, label)]
    assert task.gold_of(task.gold(row, FRAME), FRAME) == row["gold"]


def test_a_gold_with_labels():
    box = "{'Position': [500, 0, 1000, 1000], 'Confidence': 1.00, 'Label': 'cat'}"
    assert load_task("detection", labelled=True).gold({**PETS, "gold": [CAT]}, FRAME, "none") == (
        f"<answer>[{box}]</answer>"
    )


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        ("<answer>" + written(("left", "dog"), ("right", "cat")) + "</answer>", [DOG, CAT]),
        (written(("left", "dog"), ("left", "dog")), [DOG]),  # listed twice
        (written(("left", "dog"), ("left", "cat")), [DOG, {**CAT, "xyxy": LEFT}]),  # one box of two kinds
        (written(("left", None)), [{**DOG, "label": ""}]),  # read, and refused by check
        ("No Objects", []),
        (json.dumps([{"bbox_2d": [0, 0, 500, 1000], "label": "充电口"}]), [{"label": "充电口", "xyxy": LEFT}]),  # \\u…
        ('{"dog": [[0, 0, 500, 1000]], "cat": [[500, 0, 1000, 1000]]}', [DOG, CAT]),
    ],
)
def test_gold_of_a_solution(solution, gold):
    assert load_task("detection", labelled=True).gold_of(solution, FRAME) == gold


def test_picking_reads_labelled_golds():
    task = load_task("detection", labelled=True)
    for side, picked in (("left", 1), ("right", 0)):
        parsed = task.parse(f"<answer>{written((side, 'dog'))}</answer>", ONE, FRAME)
        assert task.metrics["pick_rate"](parsed, {**ONE, "distractors": [RIGHT]}) == picked
