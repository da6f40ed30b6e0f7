"""Readers of model text: what is read, what is not and why, and that no text is dear."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrft.answers import REASONS, normal_name, read_answer_block, read_box, read_boxes


@pytest.mark.parametrize(
    ("text", "block", "reason"),
    [
        ("<think>a</think><answer>b</answer>", "b", None),
        ("<answer>\n b \n</answer>", "b", None),  # several lines
        ("<think>a</think>\n\n<answer>b</answer> as asked", "b", None),  # words after it
        ("b", None, "no_answer"),  # no tags
        ("", None, "no_answer"),
        ("<answer></answer>", None, "empty_answer"),
        ("<answer> \n</answer>", None, "empty_answer"),
        ("<think><answer>a</answer></think>", None, "no_answer"),  # an answer inside the thought is none
        ("<think>maybe <answer>a</answer>", None, "no_answer"),  # nor in a thought that was not closed
        ("<think><answer>a</answer></think><answer>b</answer>", "b", None),
        ("<answer>a</answer><answer>b</answer>", "b", None),  # two answers: the last counts
        ("<think>x</think><answer>a</answer><think>y</think>", None, "no_answer"),  # nothing after the last thought
        ("<answer>a</answer><think>then it was cut", "a", None),
        ("<think>x</think><answer>a, b", "a, b", None),  # cut inside the answer
        ("</answer>a<answer>", None, "empty_answer"),
        ("<answer><answer>a</answer></answer>", "a", None),  # nested: the inner one
        ("<ANSWER>a</ANSWER>", None, "no_answer"),  # tags are lower case
        ("< answer >a</ answer >", None, "no_answer"),
        ("<think>redacted</think></think><answer>a</answer>", "a", None),
    ],
)
def test_read_answer_block(text, block, reason):
    assert read_answer_block(text) == (block, reason)


@pytest.mark.parametrize(
    ("block", "boxes"),
    [
        ("[{'Position': [1, 2, 3, 4], 'Confidence': 0.50}]", [(1, 2, 3, 4, 0.5)]),
        ('[{"Position": [1, 2, 3, 4], "Confidence": 0.5}]', [(1, 2, 3, 4, 0.5)]),  # JSON's quotes
        ("{'Position': [1, 2, 3, 4], 'Confidence': 0.5}", [(1, 2, 3, 4, 0.5)]),  # one object, no list
        ("[{'Confidence': 0.5, 'Position': [1, 2, 3, 4]}]", [(1, 2, 3, 4, 0.5)]),  # order of keys
        (
            "[{'Position': [1, 2, 3, 4], 'Confidence': 1}, {'Position': [5, 6, 7, 8], 'Confidence': 0}]",
            [(1, 2, 3, 4, 1), (5, 6, 7, 8, 0)],
        ),
        ("[\n {'Position':\n [1,\n 2, 3, 4],\n 'Confidence': 0.5\n }\n]", [(1, 2, 3, 4, 0.5)]),  # several lines
        ("```json\n[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}]\n```", [(1, 2, 3, 4, 0.5)]),  # a code fence
        ("[{'bbox_2d': [1, 2, 3, 4], 'label': 'dog'}]", [(1, 2, 3, 4, 1)]),  # Qwen2.5-VL's own keys
        ("[{'bbox_2d': [1, 2, 3, 4], 'score': 0.25}]", [(1, 2, 3, 4, 0.25)]),
        ("[{'position': [1, 2, 3, 4], 'confidence': '0.5'}]", [(1, 2, 3, 4, 0.5)]),
        ("[{'Position': [1, 2, 3, 4], 'Confidence': 0.5, 'label': \"dog's\"}]", [(1, 2, 3, 4, 0.5)]),
        ("[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}, ...]", [(1, 2, 3, 4, 0.5)]),  # the form's ... copied
        ("[{'Position': [1, 2, 3, 4,], 'Confidence': 0.5},]", [(1, 2, 3, 4, 0.5)]),  # trailing commas
        ("They are: [{'Position': [1, 2, 3, 4], 'Confidence': 0.5}] as asked.", [(1, 2, 3, 4, 0.5)]),
        (
            "[{'Position': [-1.5, +2.25, 3., 4.00000000000001], 'Confidence': 0.5}]",
            [(-1.5, 2.25, 3, 4.00000000000001, 0.5)],
        ),
        ("[1, 2, 3, 4]", [(1, 2, 3, 4, 1)]),  # a bare list
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [(1, 2, 3, 4, 1), (5, 6, 7, 8, 1)]),
        ("[{'Position': [1, 2, 3, 4], 'Confidence': -100}]", [(1, 2, 3, 4, 0)]),  # clipped into [0, 1]
        ("[{'Position': [1, 2, 3, 4], 'Confidence': 90}]", [(1, 2, 3, 4, 1)]),
        ("[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}, {'Position': [5, 6", [(1, 2, 3, 4, 0.5)]),  # the last was cut
        ("[{'Position': [4, 3, 2, 1], 'Confidence': 0.5}]", [(4, 3, 2, 1, 0.5)]),  # inverted: read, earns nothing
        ("No Objects", []),
        ("'no objects.'", []),
        ("none", []),
        ("[]", []),
        ("```json\n[]\n```", []),
    ],
)
def test_read_boxes(block, boxes):
    found, reason = read_boxes(block)
    assert reason is None
    assert [(*box.xyxy, box.confidence) for box in found] == boxes


UNREADABLE_BOXES = [
    ("there are no dogs", "no_box"),
    ("...", "no_box"),  # dots are not 'No Objects'
    ("''", "no_box"),
    ("[[[[", "no_box"),
    ("[{'Position': [1, 2, 3, 4], 'Confi", "no_box"),  # the only object was cut: not a bare box of confidence 1
    ("[{'Position': [1, 2, 3, 4], 'Confidence': NaN}]", "malformed_box"),
    ("[{'Position': [1, 2, 3, 4], 'Confidence': 1e309}]", "malformed_box"),
    ("[{'Position': [1, 2, 3, 4], 'Confidence': null}]", "malformed_box"),
    ("[{'Position': [1, 2, 3, NaN], 'Confidence': 1}]", "malformed_box"),
    ("[{'Position': [1, 2, 3, Infinity], 'Confidence': 1}]", "malformed_box"),
    ("[{'Position': [1, 2, 3, 1e309], 'Confidence': 1}]", "malformed_box"),
    ("[{'Position': [1, 2, 3], 'Confidence': 1}]", "malformed_box"),  # three numbers
    ("[{'Position': [1, 2, 3, 4, 5], 'Confidence': 1}]", "malformed_box"),
    ("[{'Position': [x1, y1, x2, y2], 'Confidence': number}, ...]", "malformed_box"),  # the form itself
    ("[{'Position': [1, 2, 3, 4], 'Confidence': 1}, {}]", "malformed_box"),  # one bad object spoils the answer
    ("[{'Position': ['1', '2', '3', '4'], 'Confidence': 1}]", "malformed_box"),
    ("[{'Position': null, 'Confidence': 1}]", "malformed_box"),
    ("[{'Position': {'x1': 1, 'y1': 2}, 'Confidence': 1}]", "malformed_box"),
    (f"[{{'Position': [1, 2, 3, {'9' * 5000}], 'Confidence': 1}}]", "malformed_box"),  # 5,000 digits
    ("[{'Position': [１, ２, ３, ４], 'Confidence': 1}]", "malformed_box"),  # other scripts' digits
    ("__import__('os').system('true')", "no_box"),
]


@pytest.mark.parametrize(("block", "reason"), UNREADABLE_BOXES)
def test_read_boxes_says_why_not(block, reason):
    assert reason in REASONS
    assert read_boxes(block) == (None, reason)


@pytest.mark.parametrize(
    ("block", "box"),
    [
        ("(100,200),(300,400)", (100, 200, 300, 400)),
        (" ( 100 , 200 ) , ( 300 , 400 ) ", (100, 200, 300, 400)),
        ("(100,200)(300,400)", (100, 200, 300, 400)),
        ("The box is (100,200),\n(300,400).", (100, 200, 300, 400)),
        ("(1.5,2.5),(3.5,4.5)", (1.5, 2.5, 3.5, 4.5)),
        ("[100, 200, 300, 400]", (100, 200, 300, 400)),  # other notations of one box
        ("[{'bbox_2d': [100, 200, 300, 400]}]", (100, 200, 300, 400)),
        ("(300,400),(100,200)", (300, 400, 100, 200)),  # swapped corners: read, earn nothing
    ],
)
def test_read_box(block, box):
    assert read_box(block) == (box, None)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("(1,2),(3,4),(5,6),(7,8)", "malformed_box"),  # two boxes
        ("(1,2),(3,4),(1,2),(3,4)", "malformed_box"),  # the same twice
        ("[1,2,3,4],[5,6,7,8]", "malformed_box"),
        ("(x1,y1),(x2,y2)", "no_box"),  # the form itself
        ("(1,2),(3,NaN)", "no_box"),
        (f"(0,0),({'9' * 5000},1)", "no_box"),
        ("No Objects", "no_box"),
        ("(1,2,3,4)", "no_box"),
        ("（1,2）,（3,4）", "no_box"),  # full-width brackets
        ("(46e0,242),(892,844)", "no_box"),
    ],
)
def test_read_box_says_why_not(block, reason):
    assert read_box(block) == (None, reason)


@pytest.mark.parametrize(
    ("a", "b", "is_same"),
    [
        ("Maine_Coon", "maine coon", True),
        ("DHC-8-100", "DHC 8 100", True),
        (" Rose\n", "rose", True),
        ("rose", "primrose", False),  # no substrings
        ("rose", "rose, lily", False),  # no lists
        ("", "rose", False),
        ("ROSE", "róse", False),
    ],
)
def test_normal_name(a, b, is_same):
    assert (normal_name(a) == normal_name(b)) is is_same


DEAR_TEXTS = [  # 100,000 characters each; read in quadratic time they take from 5 s to minutes
    "(" * 100_000,
    "[" * 100_000,
    "{" * 100_000,
    "(1," * 33_000,
    "[1,2,3,4" * 12_000,
    "(1,1)" + " " * 100_000,
    "(1,1)" + " " * 50_000 + "," + " " * 50_000,
    "[1,2,3,4" + " " * 100_000 + "x]",
    "{'Position': [1,2,3,4], 'Confidence':" + " " * 100_000 + "}",
    "{'Position': [1,2,3,4]," + "'Confidence': 1 " * 6_000 + "}",
    "9" * 100_000,
    "<answer>" * 12_000,
    "<think>" * 12_000,
    "</think>" * 12_000,
    "_" * 100_000,
    "```" * 33_000,
]


@pytest.mark.parametrize("text", DEAR_TEXTS, ids=lambda text: text[:12])
def test_no_text_is_dear_to_read(text):
    started = time.perf_counter()
    for read in (read_answer_block, read_boxes, read_box, normal_name):
        read(text)
    assert time.perf_counter() - started < 2  # 0.05 s on one core


FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "[", "]", "{", "}", "(", ")", ",", "'Position':", "'Confidence':",
     "1", "-2.5", "NaN", "No Objects", " ", "\n", "'", '"', "\x00", "\ud800", "９"]
)  # fmt: skip


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.one_of(st.text(), st.lists(FRAGMENTS, max_size=40).map("".join)))
def test_readers_give_an_answer_or_a_reason_and_never_raise(text):
    for read in (read_answer_block, read_boxes, read_box):
        answer, reason = read(text)
        assert (answer is None) == (reason in REASONS)
