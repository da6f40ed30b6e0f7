"""The four tasks: which rows they refuse, what they ask, read, pay and measure."""

import pytest

from vrft.boxes import Frame
from vrft.errors import UserError
from vrft.rewards import RewardOptions
from vrft.tasks import load_task, task_names
from vrft.tasks.judge import chosen_terms, judge

FRAME = Frame("norm1000", (200, 100), (196, 98))
LEFT, RIGHT = [0, 0, 100, 100], [100, 0, 200, 100]  # (0,0),(500,1000) and (500,0),(1000,1000)
SCENE = {"row_id": "r", "images": ["a.png"], "image_wh": [200, 100]}
DETECT = {**SCENE, "category": "dog", "gold": [LEFT]}
GROUND = {**SCENE, "phrase": "the dog", "gold": LEFT}
PICK = {**GROUND, "distractors": [RIGHT]}
CLASSIFY = {**SCENE, "gold": "Maine_Coon"}


def terms(name, row, answer, *, text="<think></think><answer>{}</answer>", **options):
    task = load_task(name)
    parsed = task.parse(text.format(answer), row, FRAME)
    return {name: term(parsed, row) for name, term in task.terms(RewardOptions(**options)).items()}


def test_each_task_is_found_by_its_module():
    assert task_names() == ["classification", "detection", "grounding", "reasoning_grounding"]
    for name in task_names():
        assert load_task(name).name == name


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("detektion", {}, "detektion.*known tasks: .*detection"),
        ("base", {}, "known tasks"),  # a module, but no task
        ("../os", {}, "known tasks"),
        ("detection", {"thinking": "perhaps"}, "perhaps.*think, none"),
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
        ("classification", {**CLASSIFY, "gold": ""}, "gold"),
        ("classification", {**CLASSIFY, "gold": 3}, "a str is needed"),
        ("classification", {**CLASSIFY, "gold": "--"}, "no letter or digit"),  # equal to '_' and ' '
        ("classification", {**CLASSIFY, "candidates": ["Sphynx"]}, "not among the candidates"),
        ("classification", {**CLASSIFY, "candidates": ["Sphynx", "Maine_Coon"]}, None),
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
        ("detection", "[{'Position': [500, 0, 1000, 1000], 'Confidence': 0.5}]", [((100, 0, 200, 100), 0.5)], None),
        ("detection", "[{'Position': [500, 0, 9999, 1000], 'Confidence': 0.5}]", [((100, 0, 200, 100), 0.5)], None),
        ("detection", "[[0,0,500,500],[0,0,500,500]]", [((0, 0, 100, 50), 1)], None),  # one place, one box
        ("detection", "No Objects", [], None),
        ("detection", "a dog", None, "no_box"),
        ("grounding", "(500,0),(1000,1000)", (100, 0, 200, 100), None),
        ("grounding", "(500,-7),(1000,9999)", (100, 0, 200, 100), None),
        ("grounding", "(1,2),(3,4),(5,6),(7,8)", None, "malformed_box"),
        ("classification", " maine coon ", "maine coon", None),
        ("classification", " ", None, "empty_answer"),
    ],
)
def test_parse(name, answer, pixels, reason):
    text = f"<think>x</think><answer>{answer}</answer>"
    parsed = load_task(name).parse(text, {}, FRAME, is_truncated=True)
    assert (parsed.text, parsed.answer, parsed.reason, parsed.is_truncated) == (text, pixels, reason, True)


TWO = {**DETECT, "gold": [LEFT, RIGHT]}
NONE = {**DETECT, "gold": []}
BOTH = "[{'Position': [0, 0, 500, 1000], 'Confidence': 0.9}, {'Position': [500, 0, 1000, 1000], 'Confidence': 0.7}]"


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
    assert terms("detection", row, answer) == pytest.approx({"iou": iou, "confidence": confidence, "format": 1})


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
    assert terms(name, GROUND, answer) == pytest.approx({"iou": iou, "giou": giou, "format": 1})


@pytest.mark.parametrize(
    ("answer", "accuracy"),
    [("maine coon", 1), ("MAINE_COON", 1), ("Sphynx", 0), ("Maine_Coon, Sphynx", 0), ("maine", 0), ("_", 0)],
)
def test_classification_pays_what_is_right(answer, accuracy):
    assert terms("classification", CLASSIFY, answer) == {"accuracy": accuracy, "format": 1}


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


@pytest.mark.parametrize(
    ("name", "row", "answer", "metrics"),
    [
        ("grounding", GROUND, "(0,0),(250,1000)", {"accuracy@0.5": 1, "iou": 0.5, "pick_rate": None}),  # 0.5 is enough
        ("grounding", GROUND, "(0,0),(249,1000)", {"accuracy@0.5": 0, "iou": 0.498, "pick_rate": None}),
        ("grounding", PICK, "(0,0),(9,9)", {"accuracy@0.5": 0, "iou": 0.000162, "pick_rate": 1}),
        ("grounding", PICK, "(500,0),(990,990)", {"accuracy@0.5": 0, "iou": 0, "pick_rate": 0}),
        ("grounding", PICK, "dog", {"accuracy@0.5": 0, "iou": 0, "pick_rate": 0}),
        ("detection", {**DETECT, "distractors": [RIGHT]}, BOTH, {"iou": 0.5, "pick_rate": 1}),  # the most confident
        ("detection", {**DETECT, "gold": [RIGHT], "distractors": [LEFT]}, BOTH, {"iou": 0.5, "pick_rate": 0}),
        ("detection", {**DETECT, "distractors": [RIGHT]}, "No Objects", {"iou": 0, "pick_rate": 0}),
        ("detection", {**NONE, "distractors": [RIGHT]}, BOTH, {"iou": 0, "pick_rate": None}),
        ("classification", CLASSIFY, "sphynx", {"accuracy": 0}),
    ],
)  # fmt: skip
def test_metrics(name, row, answer, metrics):
    task = load_task(name)
    parsed = task.parse(f"<answer>{answer}</answer>", row, FRAME)
    found = {name: metric(parsed, row) for name, metric in task.metrics.items()}
    assert found == {name: value if value is None else pytest.approx(value) for name, value in metrics.items()}


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
        ("classification", "<answer>Maine_Coon</answer>", "Maine_Coon"),
        ("classification", "toad (lily", "toad (lily"),
    ],
)
def test_gold_of_a_solution(name, solution, gold):
    assert load_task(name).gold_of(solution, FRAME) == gold


@pytest.mark.parametrize(
    ("name", "solution", "words"),
    [
        ("detection", "a dog", "no_box.*right: .*Position"),
        ("detection", "", "empty_answer"),
        ("detection", "<answer></answer>", "empty_answer"),
        ("detection", "[{'Position': [0, 0, 500], 'Confidence': 1}]", "malformed_box"),
        ("detection", "[{'Position': [0, 0, 5, 5], 'Confidence': 1}, {'Pos", "cut"),  # a gold box would be lost
        ("detection", "<answer>[{'Position': [0, 0, 5, 5], 'Confidence': 1}]", "cut"),
        ("grounding", "(0,0),(1,1),(2,2),(3,3)", "malformed_box"),
        ("grounding", "<think>(0,0),(1,1)</think>", "no_answer"),
        ("classification", "<answer>rose", "cut"),
    ],
)
def test_an_unreadable_solution_is_refused(name, solution, words):
    with pytest.raises(ValueError, match=words):
        load_task(name).gold_of(solution, FRAME)


def test_judge_weighs_terms_and_keeps_them_apart():
    task = load_task("grounding")
    parsed = task.parse("<think></think><answer>(0,0),(250,1000)</answer>", GROUND, FRAME)
    judged = judge(task, parsed, GROUND, weights={"iou": 2, "format": 0, "accuracy": 1}, options=RewardOptions())
    assert judged == {
        "terms": {"iou": 0.5, "format": 1.0},
        "total": 1.0,
    }  # weight 0: seen, not paid; accuracy is not its term


def test_a_preset_without_a_term_of_the_task_is_refused():
    with pytest.raises(UserError, match=r"count.*task=detection.*iou, confidence, format"):
        chosen_terms(load_task("detection"), {"count": 1.0}, RewardOptions())
