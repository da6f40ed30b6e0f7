"""Readers of model text: what is read, what is not and why, and that no text is dear. Boxes: `test_box_answers`."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrft.tasks.answers import (
    REASONS,
    normal_name,
    read_answer_block,
    read_box,
    read_boxes,
    read_count,
    read_name,
    read_point,
)

READERS = (read_boxes, read_box, read_point, read_count, read_name)


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
    ("block", "point", "reason"),
    [
        ("(120,40)", (120, 40), None),
        (" ( 120 , 40 ) ", (120, 40), None),
        ("[120, 40]", (120, 40), None),
        ("[[120, 40]]", (120, 40), None),
        ('{"point_2d": [120, 40], "label": "cup"}', (120, 40), None),  # Qwen2.5-VL's own keys
        ("120, 40", (120, 40), None),  # bare
        ("The handle is at (120,40).", (120, 40), None),
        ("(-1.5,+2.)", (-1.5, 2), None),
        ('<points x1="120" y1="40" alt="cup">cup</points>', (120, 40), None),  # Qwen2.5-VL's cookbook
        ('<point x="120" y="40" alt="cup (1,2)">cup (1,2)</point>', (120, 40), None),
        ("<point>120, 40</point>", (120, 40), None),
        ('<points x1="1" y1="2" x2="3" y2="4" alt="cups">cups</points>', None, "several"),
        ("x: 120, y: 40", (120, 40), None),
        ("X=120 Y=40", (120, 40), None),
        ('{"y": 40, "x": 120}', (120, 40), None),  # by its names
        ('[{"x": 1, "y": 2}, {"x": 3, "y": 4}]', None, "several"),
        ('{"point_2d": [120, 40], "label": "cup (1,2)"}', (120, 40), None),  # a text holds no point
        ("（120，40）", (120, 40), None),  # Chinese marks
        ("x：120，y：40", (120, 40), None),
        ("x: 1e5, y: 40", None, "malformed"),
        ("x1: 1, y1: 2, x2: 3, y2: 4", None, "several"),  # a box
        ("(1,2) or (3,4)", None, "several"),
        ("(1,2) (1,2)", None, "several"),  # the same twice
        ("(1,2),(3,4)", None, "several"),  # a box
        ("[1, 2, 3, 4]", None, "malformed"),  # a box as well
        ("(1,2,3)", None, "malformed"),
        ("(1,NaN)", None, "malformed"),
        ("(1e3,2)", None, "malformed"),
        ("(1,2", None, "malformed"),  # cut: 2 may have been 234
        ("at 120, 40", None, "malformed"),  # bare, with words
        ("120 40", None, "malformed"),
        ("7", None, "malformed"),
        ("(1234567890,1)", None, "malformed"),  # ten digits
        ("(１,２)", None, "malformed"),  # other scripts' digits
        ("(x,y)", None, "not_found"),  # the form itself
        ("on the left", None, "not_found"),
        ("()", None, "not_found"),
    ],
)
def test_read_point(block, point, reason):
    assert read_point(block) == (point, reason)


@pytest.mark.parametrize(
    ("block", "count", "reason"),
    [
        ("3", 3, None),
        ("0", 0, None),
        ("There are 3.", 3, None),  # a stop is not part of it
        ("3 dogs, 2", None, "several"),
        ("3 of 5", None, "several"),
        ("3 or 3", None, "several"),
        ("3-4", None, "malformed"),  # a range
        ("three", 3, None),
        ("Zero.", 0, None),
        ("TEN", 10, None),
        ("3 dogs and one cat", None, "several"),
        ("3 or four", None, "several"),
        ("- 3", None, "malformed"),
        ("−3", None, "malformed"),  # a minus sign that is no hyphen
        ("3½", None, "malformed"),
        ("3²", None, "malformed"),
        ("two or three", None, "not_found"),
        ("There is no one here", None, "not_found"),  # a word counts alone
        ("twenty-one", None, "not_found"),
        ("**12**", 12, None),
        ("007", 7, None),
        ("999999999", 999_999_999, None),
        ("1234567890", None, "malformed"),  # ten digits
        ("-3", None, "malformed"),
        ("+3", None, "malformed"),
        ("2.0", None, "malformed"),
        ("1,000", None, "malformed"),  # 1000 or 1.0
        ("３", None, "malformed"),  # other scripts' digits
        ("eleven", None, "not_found"),  # words up to ten
        ("someone", None, "not_found"),  # no part of a word
        ("many", None, "not_found"),
        ("whole number in digits", None, "not_found"),  # the form itself
        ("3个", 3, None),  # with a Chinese measure word
        ("共3只。", 3, None),
        ("图中一共有3个杯子", 3, None),
        ("答案：3", 3, None),
        ("Answer:3", 3, None),
        ("【3】", 3, None),
        ("三", 3, None),
        ("两只", 2, None),
        ("答案是三个。", 3, None),
        ("第3个", None, "malformed"),  # the third
        ("3万", None, "malformed"),  # 30,000
        ("负3", None, "malformed"),
        ("3、4", None, "malformed"),
        ("3:4", None, "malformed"),
        ("3只猫和2只狗", None, "several"),
        ("3个半", None, "several"),  # 3.5
        ("十三", None, "malformed"),  # words up to ten
        ("几十个", None, "malformed"),
        ("３个", None, "malformed"),
    ],
)
def test_read_count(block, count, reason):
    assert read_count(block) == (count, reason)


@pytest.mark.parametrize(
    ("block", "name", "reason"),
    [
        ("Maine Coon", "Maine Coon", None),
        ("**Maine Coon**.", "Maine Coon", None),
        ("'Maine_Coon'", "Maine_Coon", None),
        ("```text\nMaine Coon\n```", "Maine Coon", None),
        ("(Maine Coon)!", "Maine Coon", None),
        ("St. John's wort", "St. John's wort", None),  # marks inside are kept
        ("737-300", "737-300", None),
        ("Maine Coon, Sphynx", "Maine Coon, Sphynx", None),  # a list is one wrong name
        ("猫", "猫", None),
        ("《猫》", "猫", None),
        ("「猫（黑）」。", "猫（黑", None),  # marks at the edge go, as for (Maine Coon)
        ("-", None, "not_found"),  # nothing to compare
        ("_ _", None, "not_found"),
        ("...", None, "not_found"),
        ("``````", None, "not_found"),
    ],
)
def test_read_name(block, name, reason):
    assert read_name(block) == (name, reason)


@pytest.mark.parametrize(
    ("a", "b", "is_same"),
    [
        ("Maine_Coon", "maine coon", True),
        ("DHC-8-100", "DHC 8 100", True),
        (" Rose\n", "rose", True),
        ("**Rose**.", "rose", True),  # marks around it
        ("(rose)", '"Rose"', True),
        ("St. John's wort", "St John's wort", False),  # marks inside count
        ("【玫瑰】", "玫瑰", True),
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
    "{'Position': [1,2,3,4]," + "'Label':'" * 11_000 + "}",
    "{'Position': [1,2,3,4], 'Label':" + " " * 100_000 + "}",
    "(1," + " " * 100_000,
    "1" + " " * 100_000 + "2",
    "1," * 50_000,
    "1 " * 50_000,
    "one " * 25_000,
    "*" * 100_000,
    "9" * 100_000,
    "<answer>" * 12_000,
    "<think>" * 12_000,
    "</think>" * 12_000,
    "_" * 100_000,
    "```" * 33_000,
    "{'Position': [1,2,3,4]," + '"a ' * 33_000 + "}",
    "{'Position': [1,2,3,4]," + "'\\" * 50_000 + "}",
    "{'a" * 33_000,
    "x1=1,y1=2," * 10_000 + "x2=3,y2=",
    "x1=" + " " * 100_000 + "y2",
    '="' * 50_000,
    '<point x="1' * 9_000,
    "<ref>" * 20_000 + "(1,2),(3,4)",
    "cat: [1,2,3,4] " * 6_000,
    "3个" * 50_000,
    "答案" * 50_000,
]


@pytest.mark.parametrize("text", DEAR_TEXTS, ids=lambda text: text[:12])
def test_no_text_is_dear_to_read(text):
    started = time.perf_counter()
    for read in (read_answer_block, normal_name, *READERS):
        read(text)
    assert time.perf_counter() - started < 2  # 0.05 s on one core


FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "[", "]", "{", "}", "(", ")", ",", "'Position':", "'Confidence':",
     "'Label':", "two", "1", "-2.5", "NaN", "No Objects", " ", "\n", "'", '"', "\x00", "\ud800", "９"]
)  # fmt: skip


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.one_of(st.text(), st.lists(FRAGMENTS, max_size=40).map("".join)))
def test_readers_give_an_answer_or_a_reason_and_never_raise(text):
    for read in (read_answer_block, *READERS):
        answer, reason = read(text)
        assert (answer is None) == (reason in REASONS)
