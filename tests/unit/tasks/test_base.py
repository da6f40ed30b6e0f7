"""The tasks: which rows they refuse, what they ask, read, pay and measure.

Boxes with labels: `test_labelled_boxes`; solutions: `test_solutions`; mixtures: `test_mixed`.
"""

import pytest

from vrft.errors import UserError
from vrft.tasks import load_task, task_names
from vrft.tasks.boxes import Frame

FRAME = Frame("norm1000", (200, 100), (196, 98))
LEFT, RIGHT = [0, 0, 100, 100], [100, 0, 200, 100]  # (0,0),(500,1000) and (500,0),(1000,1000)
SCENE = {"row_id": "r", "images": ["a.png"], "image_wh": [200, 100]}
DETECT = {**SCENE, "category": "dog", "gold": [LEFT]}
GROUND = {**SCENE, "phrase": "the dog", "gold": LEFT}
PICK = {**GROUND, "distractors": [RIGHT]}
CLASSIFY = {**SCENE, "gold": "Maine_Coon"}
COUNT = {**SCENE, "category": "dog", "gold": 4}
OPEN = {**DETECT, "category": "hydrant", "definition": "a street tap"}


def test_each_task_is_found_by_its_module():
    assert task_names() == (
        "classification",
        "counting",
        "detection",
        "grounding",
        "open_vocabulary_detection",
        "pointing",
        "reasoning_grounding",
    )
    for name in task_names():
        assert load_task(name).name == name


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("detektion", {}, "detektion.*known tasks: .*detection"),
        ("base", {}, "known tasks"),  # a module, but no task
        ("box_list", {}, "known tasks"),
        ("counting", {"labelled": True}, "labelled"),  # another task's option
        ("../os", {}, "trust_code"),  # a dot means code of one's own
        ("detection", {"thinking": "perhaps"}, "perhaps.*think, prefilled, none"),
        ("detection", {"thoughts": "think"}, "thoughts"),
    ],
)
def test_an_unknown_task_or_option_is_refused(name, options, words):
    with pytest.raises(UserError, match=words):
        load_task(name, **options)


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("detection", {**DETECT, "gold": []}, None),  # none there is a gold
        ("detection", {**DETECT, "category": ""}, "category"),
        ("detection", {**SCENE, "gold": [LEFT]}, "category"),
        ("detection", {**SCENE, "gold": [LEFT], "problem": "Where?"}, None),  # a problem asks by itself
        ("detection", {**DETECT, "gold": None}, "gold"),
        ("detection", {**DETECT, "gold": LEFT}, "four finite numbers"),  # a box in place of a list of boxes
        ("detection", {**DETECT, "gold": [LEFT, [0, 0, 201, 100]]}, "outside the image of 200 × 100"),
        ("detection", {**DETECT, "gold": [[100, 0, 0, 100]]}, "no area"),
        ("grounding", {**GROUND, "phrase": None}, "phrase"),
        ("grounding", {**GROUND, "gold": [LEFT]}, "four finite numbers"),
        ("grounding", {**GROUND, "gold": [0, 0, float("nan"), 1]}, "four finite numbers"),
        ("reasoning_grounding", {**GROUND, "gold": [0, 0, 10, 101]}, "outside"),
        ("open_vocabulary_detection", OPEN, None),
        ("open_vocabulary_detection", {**OPEN, "category": None}, "category"),
        ("open_vocabulary_detection", {**OPEN, "gold": [[0, 0, 201, 100]]}, "outside"),
        ("pointing", GROUND, None),
        ("pointing", {**GROUND, "phrase": ""}, "phrase"),
        ("pointing", {**GROUND, "gold": [50, 50]}, "four finite numbers"),  # a point is no gold
        ("counting", COUNT, None),
        ("counting", {**COUNT, "gold": 0}, None),
        ("counting", {**COUNT, "gold": -1}, "gold is -1; a whole number from 0"),
        ("counting", {**COUNT, "gold": 4.0}, "4.0"),
        ("counting", {**COUNT, "gold": True}, "True"),
        ("counting", {**COUNT, "gold": "4"}, "'4'"),
        ("classification", {**CLASSIFY, "candidates": ["Maine_Coon", "maine coon"]}, "the same name; rename one"),
        ("counting", {**COUNT, "gold": 10**9}, "whole number"),  # ten digits could not be read back
        ("counting", {**SCENE, "gold": 4}, "category"),
        ("counting", {**SCENE, "gold": 4, "problem": "How many?"}, None),
        ("classification", {**CLASSIFY, "aliases": ["Coon"]}, None),
        (
            "classification",
            {**CLASSIFY, "candidates": ["Sphynx", "Maine_Coon"], "aliases": ["Coon", "maine coon"]},
            None,
        ),
        (
            "classification",
            {**CLASSIFY, "candidates": ["Sphynx", "Maine_Coon"], "aliases": ["sphynx."]},
            "is a name of 'Sphynx' too",
        ),
        ("classification", {**CLASSIFY, "aliases": "Coon"}, "aliases"),
        ("classification", {**CLASSIFY, "aliases": ["Coon", 3]}, "a list of texts is needed"),
        ("classification", {**CLASSIFY, "gold": ""}, "gold"),
        ("classification", {**CLASSIFY, "gold": 3}, "a str is needed"),
        ("classification", {**CLASSIFY, "gold": "--"}, "no letter or digit"),  # equal to '_' and ' '
        ("classification", {**CLASSIFY, "instruction": ["Name it."]}, "instruction"),
        ("classification", {**CLASSIFY, "candidates": ["Sphynx"]}, "not among the candidates"),
        ("classification", {**CLASSIFY, "candidates": ["Sphynx", "Maine_Coon"]}, None),
        *(  # missing, not a box, count or name of the value None
            (name, {**row, "gold": None}, "column 'gold' is missing; the row has")
            for name, row in (("grounding", GROUND), ("pointing", GROUND), ("counting", COUNT), ("detection", DETECT))
        ),
    ],
)
def test_check(name, row, words):
    if words is None:
        load_task(name).check(row)
    else:
        with pytest.raises(ValueError, match=words):
            load_task(name).check(row)


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("detection", DETECT, ["'dog'", "0 to 1000", "No Objects", "<think>", "'Confidence'"]),
        ("grounding", GROUND, ["the dog", "(x1,y1),(x2,y2)"]),
        ("reasoning_grounding", GROUND, ["Work out", "the dog"]),
        ("open_vocabulary_detection", OPEN, ["'hydrant' (a street tap)", "No Objects", "'Confidence'"]),
        ("open_vocabulary_detection", DETECT, ["'dog'. Give"]),  # without a definition
        ("counting", COUNT, ["How many", "'dog'"]),
        ("pointing", GROUND, ["Point at", "the dog", "0 to 1000", "(x,y)"]),
        ("classification", CLASSIFY, ["class of the object"]),
        ("classification", {**CLASSIFY, "instruction": "Name the cat."}, ["Name the cat."]),
        ("classification", {**CLASSIFY, "candidates": ["A", "B"]}, ["Choose from: A, B."]),
    ],
)
def test_question(name, row, words):
    question = load_task(name).question(row, FRAME)
    assert [word for word in words if word not in question] == []
    assert "<think>" not in load_task(name, thinking="none").question(row, FRAME)
    assert load_task(name).question({**row, "problem": "Verbatim, {x}."}, FRAME) == "Verbatim, {x}."


@pytest.mark.parametrize(
    ("name", "row", "answer"),
    [
        ("detection", DETECT, "[{'Position': [0, 0, 500, 1000], 'Confidence': 1.00}]"),
        ("detection", {**DETECT, "gold": []}, "No Objects"),
        ("grounding", GROUND, "(0,0),(500,1000)"),
        ("open_vocabulary_detection", OPEN, "[{'Position': [0, 0, 500, 1000], 'Confidence': 1.00}]"),
        ("counting", COUNT, "4"),
        ("pointing", GROUND, "(250,500)"),  # the centre
        ("classification", CLASSIFY, "Maine_Coon"),
    ],
)
def test_gold(name, row, answer):
    row, task = {**row, "thought": "On the left."}, load_task(name)
    assert task.gold(row, FRAME) == f"<think>On the left.</think><answer>{answer}</answer>"
    assert task.gold(row, FRAME, "empty") == f"<think></think><answer>{answer}</answer>"
    assert task.gold(row, FRAME, "none") == f"<answer>{answer}</answer>"
    assert load_task(name, thinking="none").gold(row, FRAME) == f"<answer>{answer}</answer>"
    with pytest.raises(ValueError, match="gold, empty, none"):
        task.gold(row, FRAME, "silver")


@pytest.mark.parametrize(
    ("name", "answer", "pixels", "reason"),
    [
        ("detection", "[{'Position': [500, 0, 1000, 1000], 'Confidence': 0.5}]", [((100, 0, 200, 100), 0.5, "")], None),
        ("detection", "[{'Position': [500, 0, 9999, 1000], 'Confidence': 0.5}]", [((100, 0, 200, 100), 0.5, "")], None),
        ("detection", "[[0,0,500,500],[0,0,500,500]]", [((0, 0, 100, 50), 1, "")], None),  # one place, one box
        ("detection", "[{'Position': [0,0,500,500], 'Label': 'cat'}]", [((0, 0, 100, 50), 1, "")], None),  # not asked
        ("open_vocabulary_detection", "(0,0),(500,500)", [((0, 0, 100, 50), 1, "")], None),
        ("detection", "No Objects", [], None),
        ("detection", "a dog", None, "not_found"),
        ("grounding", "(500,0),(1000,1000)", (100, 0, 200, 100), None),
        ("grounding", "(500,-7),(1000,9999)", (100, 0, 200, 100), None),
        ("grounding", "(1,2),(3,4),(5,6),(7,8)", None, "several"),
        ("counting", "four", 4, None),
        ("counting", "4 or 5", None, "several"),
        ("pointing", "(250,500)", (50, 50), None),
        ("pointing", "(9999,-10)", (1999.8, -1), None),  # outside: not moved into the image
        ("pointing", "(0,0)", (0, 0), None),  # the corner is a point
        ("pointing", "(1,2),(3,4)", None, "several"),
        ("classification", "**Maine Coon**.", "Maine Coon", None),
        ("classification", "?", None, "not_found"),
        ("classification", " maine coon ", "maine coon", None),
        ("classification", " ", None, "empty_answer"),
    ],
)
def test_parse(name, answer, pixels, reason):
    text = f"<think>x</think><answer>{answer}</answer>"
    parsed = load_task(name).parse(text, {}, FRAME, is_truncated=True)
    assert (parsed.text, parsed.answer, parsed.reason, parsed.is_truncated) == (text, pixels, reason, True)


NONE = {**DETECT, "gold": []}
BOTH = "[{'Position': [0, 0, 500, 1000], 'Confidence': 0.9}, {'Position': [500, 0, 1000, 1000], 'Confidence': 0.7}]"


@pytest.mark.parametrize(
    ("name", "row", "answer", "metrics"),
    [
        ("grounding", GROUND, "(0,0),(250,1000)", {"accuracy@0.5": 1, "iou": 0.5, "pick_rate": None}),  # 0.5 is enough
        ("grounding", GROUND, "(0,0),(249,1000)", {"accuracy@0.5": 0, "iou": 0.498, "pick_rate": None}),
        ("grounding", PICK, "(0,0),(9,9)", {"accuracy@0.5": 0, "iou": 0.000162, "pick_rate": 1}),
        ("grounding", PICK, "(500,0),(990,990)", {"accuracy@0.5": 0, "iou": 0, "pick_rate": 0}),
        ("grounding", PICK, "dog", {"accuracy@0.5": 0, "iou": 0, "pick_rate": 0}),
        ("detection", {**DETECT, "distractors": [RIGHT]}, BOTH, {"iou": 0.5, "f1": 2 / 3, "pick_rate": 1}),  # surest
        (
            "detection", {**DETECT, "gold": [RIGHT], "distractors": [LEFT]}, BOTH,
            {"iou": 0.5, "f1": 2 / 3, "pick_rate": 0},
        ),
        ("detection", {**DETECT, "distractors": [RIGHT]}, "No Objects", {"iou": 0, "f1": 0, "pick_rate": 0}),
        ("detection", {**NONE, "distractors": [RIGHT]}, BOTH, {"iou": 0, "f1": 0, "pick_rate": None}),
        ("counting", COUNT, "3", {"accuracy": 0, "count": 0.75, "absolute_error": 1}),
        ("counting", COUNT, "4", {"accuracy": 1, "count": 1, "absolute_error": 0}),
        ("counting", COUNT, "4 or 5", {"accuracy": 0, "count": 0, "absolute_error": None}),  # no number, no error
        ("pointing", GROUND, "(500,1000)", {"accuracy": 1, "proximity": 1}),  # the box's own corner
        ("pointing", GROUND, "left", {"accuracy": 0, "proximity": 0}),
        ("classification", CLASSIFY, "sphynx", {"accuracy": 0}),
    ],
)  # fmt: skip
def test_metrics(name, row, answer, metrics):
    task = load_task(name)
    parsed = task.parse(f"<answer>{answer}</answer>", row, FRAME)
    found = {name: metric(parsed, row) for name, metric in task.metrics.items()}
    assert found == {name: value if value is None else pytest.approx(value) for name, value in metrics.items()}
