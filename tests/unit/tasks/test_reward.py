"""What a completion earns under a preset: which terms, with what weights, and which presets are refused."""

import sys

import pytest

from vrft.errors import UserError
from vrft.tasks import box_list, load_task
from vrft.tasks.boxes import Frame
from vrft.tasks.reward import RewardFunction, weights_for

FRAME = Frame("norm1000", (200, 100), (196, 98))
SCENE = {"row_id": "r", "images": ["a.png"], "image_wh": [200, 100]}
GROUND = {**SCENE, "task": "grounding", "phrase": "the dog", "gold": [0, 0, 100, 100]}
COUNT = {**SCENE, "task": "counting", "category": "dog", "gold": 4}
HALF = "<think></think><answer>(0,0),(250,1000)</answer>"


def verdict(task, row, text, reward, **given):
    return RewardFunction(task, reward, **given)(task.parse(text, row, FRAME), row)


@pytest.mark.parametrize(
    ("text", "weights", "terms", "total"),
    [
        (HALF, {"iou": 2, "format": 0.5}, {"iou": 0.5, "format": 1}, 1.5),  # terms as they are, the total weighted
        (HALF, {"iou": 2, "format": 0}, {"iou": 0.5, "format": 1}, 1),  # weight 0: seen, not paid
        (HALF, {"iou": 2, "accuracy": 1}, {"iou": 0.5}, 1),  # accuracy is not its term
        (HALF, {"iou": 1, "giou": -1}, {"iou": 0.5, "giou": 0.75}, -0.25),  # a fine
        ("the dog", {"iou": 2, "format": 0.5, "length": 1}, {"iou": 0, "format": 0, "length": 0}, 0),
    ],
)
def test_judge_weighs_terms_and_keeps_them_apart(text, weights, terms, total):
    assert verdict(load_task("grounding"), GROUND, text, {"weights": weights}) == {"terms": terms, "total": total}


def test_a_term_of_ones_own_task_stays_in_its_range():
    class Generous(type(load_task("grounding"))):
        def answer_terms(self, options):
            return {"iou": lambda answer, row: 1.5}

    with pytest.raises(UserError, match=r"the term iou of task=grounding is 1\.5 on row r; a number in \[0, 1\]"):
        verdict(Generous(), GROUND, HALF, {"weights": {"iou": 1}})


@pytest.mark.parametrize(
    ("options", "iou"),
    [
        (None, (0.9 + 0.8) / 2),  # greedy: the confident box takes the gold of the other
        ({}, (0.9 + 0.8) / 2),
        ({"matching": "hungarian"}, (8 / 9 + 1) / 2),
        ({"matching": "hungarian", "iou_threshold": 0.9}, 1 / 2),
    ],
)
def test_the_options_are_used(options, iou):
    row = {**SCENE, "category": "dog", "gold": [[0, 0, 100, 100], [0, 0, 100, 80]]}
    first, second = "'Position': [0,0,500,900], 'Confidence': 0.9", "'Position': [0,0,500,1000], 'Confidence': 0.8"
    text = f"<answer>[{{{first}}}, {{{second}}}]</answer>"
    reward = {"weights": {"iou": 1}, "options": options}
    assert verdict(load_task("detection"), row, text, reward)["total"] == pytest.approx(iou)


def test_the_boxes_of_an_answer_are_matched_once_for_all_terms(monkeypatch):
    matchings, match_boxes = [], box_list.match_boxes
    monkeypatch.setattr(
        box_list, "match_boxes", lambda *args, **options: matchings.append(args) or match_boxes(*args, **options)
    )
    row, task = {**SCENE, "category": "dog", "gold": [[0, 0, 100, 100]]}, load_task("detection")
    reward = RewardFunction(task, {"weights": dict.fromkeys(task.term_names, 1)})
    half = "<think></think><answer>[{'Position': [0,0,250,1000], 'Confidence': 0.8}]</answer>"
    parsed = [task.parse(text, row, FRAME) for text in (half, half.replace("250", "500"), "the dog")]
    found = [reward(one, row)["terms"] for one in parsed]
    assert len(matchings) == 2, "once for each answer that was read"
    assert found == [{name: term(one, row) for name, term in task.terms(reward.options).items()} for one in parsed]
    assert [terms["iou"] for terms in found] == [0, 1, 0]  # an IoU of 0.5 does not exceed the threshold


@pytest.mark.parametrize(
    ("name", "reward", "weights"),
    [
        ("grounding", {"weights": {"format": 1, "iou": 2}}, {"iou": 2, "format": 1}),  # in the task's order
        ("counting", {"weights": {"format": 1, "iou": 2}}, {"format": 1}),  # it has no IoU
        ("counting", {"weights": {"format": 1}, "weights_for": {"counting": {"count": 3}}}, {"count": 3, "format": 1}),
        ("counting", {"weights": {"format": 1}, "weights_for": {"counting": {"format": 0}}}, {"format": 0}),
        ("counting", {"weights": {"format": 1}, "weights_for": {"grounding": {"format": 0}}}, {"format": 1}),
        ("counting", {"weights": {"format": 1}, "weights_for": None}, {"format": 1}),
        ("counting", {"weights": {"my.term": 2, "format": 1}}, {"format": 1, "my.term": 2}),  # one's own come last
    ],
)
def test_weights_for(name, reward, weights):
    found = weights_for(load_task(name), reward)
    assert list(found.items()) == list(weights.items())


def test_a_mixture_is_judged_row_by_row():
    task = load_task("mixed", tasks={"grounding": {}, "counting": {}})
    reward = {"weights": {"iou": 2, "accuracy": 1, "format": 1}, "weights_for": {"counting": {"count": 2, "format": 0}}}
    judge = RewardFunction(task, reward)
    assert judge.weights(GROUND) == {"iou": 2, "format": 1}
    assert judge.weights(COUNT) == {"accuracy": 1, "count": 2, "format": 0}
    assert verdict(task, GROUND, HALF, reward) == {"terms": {"iou": 0.5, "format": 1}, "total": 2}
    three = {"terms": {"accuracy": 0, "count": 0.75, "format": 1}, "total": 1.5}
    assert verdict(task, COUNT, "<think></think><answer>3</answer>", reward) == three
    columns = [("iou", 2), ("format", 1), ("accuracy", 1), ("count", 2), ("format", 0)]
    assert judge.columns == columns, "a term with two weights is two columns"


@pytest.mark.parametrize(
    ("tasks", "reward", "words"),
    [
        ({"detection": {}}, {"weights": {"proximity": 1.0}}, "no term of task=detection; its terms are iou, giou"),
        ({"detection": {}}, {"weights": {}}, "task=detection"),
        (
            {"grounding": {}, "counting": {}},
            {"weights": {"iou": 1}},
            "no term of task=counting",
        ),  # every task needs one
        ({"counting": {}}, {"weights": {"own_terms.half": 1}}, r"reward\.weights names own_terms\.half.*trust_code"),
    ],
)
def test_a_preset_that_cannot_judge_is_refused(tasks, reward, words):
    with pytest.raises(UserError, match=words):
        RewardFunction(load_task("mixed", tasks=tasks), reward)


def test_a_term_of_ones_own_is_paid_with_the_rest(tmp_path, monkeypatch):
    (tmp_path / "own_terms.py").write_text(
        "def half(parsed, row, images):\n    return 0.5\n\n\ndef broken(parsed, row, images):\n    return None\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    trusted, task = {"trust_code": ["own_terms"], "root": tmp_path}, load_task("grounding")
    reward = {"weights": {"own_terms.half": 4, "iou": 1, "own_terms.broken": 1}, "options": {"on_fault": "zero"}}
    try:
        judge = RewardFunction(task, reward, **trusted)
        found = judge(task.parse(HALF, GROUND, FRAME), GROUND)
        assert found == {"terms": {"iou": 0.5, "own_terms.half": 0.5, "own_terms.broken": 0}, "total": 2.5}
        assert judge.faults == {"own_terms.broken": 1}
        with pytest.raises(UserError, match=r"own_terms\.broken failed on row r"):
            verdict(task, GROUND, HALF, {"weights": reward["weights"]}, **trusted)
    finally:
        sys.modules.pop("own_terms", None)
