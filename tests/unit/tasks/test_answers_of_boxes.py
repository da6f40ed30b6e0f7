"""Boxes in model text: which are read, with what confidence and label, and why others are not."""

import pytest

from vrft.tasks.answers import REASONS, read_box, read_boxes


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
        ("(1,2),(3,4)", [(1, 2, 3, 4, 1)]),  # corner pairs, where there is no list
        ("(1,2),(3,4) and ( 5, 6 )( 7, 8 )", [(1, 2, 3, 4, 1), (5, 6, 7, 8, 1)]),
        ("[1, 2, 3, 4] or (5,6),(7,8)", [(5, 6, 7, 8, 1)]),  # pairs come before a list
        ("[(5,6),(7,8)]", [(5, 6, 7, 8, 1)]),  # as brackets may stand around them
        ("{'Position': [1, 2, 3, 4]} (5,6),(7,8)", [(1, 2, 3, 4, 1)]),  # and an object before both
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


@pytest.mark.parametrize(
    ("rest", "label"),
    [
        ("", ""),
        (", 'Label': 'dog'", "dog"),
        (', "label": "dog"', "dog"),
        (", 'Category': 'dog'", "dog"),
        (", 'category' : 'dog' ", "dog"),
        (", 'Label': \"driver's seat\"", "driver's seat"),  # as repr writes it
        (", 'Label': 'driver's seat'", "driver's seat"),  # as a model may write it
        (", 'Label': 'driver's seat', 'Confidence': 0.5", "driver's seat"),  # not up to the last quote
        (', "Label": "12" pipe"', '12" pipe'),
        (", 'Label': ''", ""),
        (", 'Label': dog", "dog"),  # no quotes
        (f", 'Label': '{'a' * 201}'", "a" * 201),
    ],
)
def test_read_boxes_reads_the_label(rest, label):
    found, reason = read_boxes(f"[{{'Position': [1, 2, 3, 4]{rest}}}]", with_labels=True)
    assert reason is None
    assert [(box.xyxy, box.label) for box in found] == [((1, 2, 3, 4), label)]


@pytest.mark.parametrize("rest", [", 'Label': 'dog\"", ", 'Label': 'dog', 'Label': 'cat'", ", 'Label': null"])
def test_a_label_that_cannot_be_told_spoils_the_answer_only_where_it_counts(rest):
    text = f"[{{'Position': [1, 2, 3, 4]{rest}}}]"
    assert read_boxes(text, with_labels=True) == (None, "malformed")
    assert (read_boxes(text)[0] is None) == ('dog"' in rest)  # where the quote ends nobody knows


UNREADABLE_BOXES = [
    ("there are no dogs", "not_found"),
    ("...", "not_found"),  # dots are not 'No Objects'
    ("''", "not_found"),
    ("[[[[", "not_found"),
    ("[{'Position': [1, 2, 3, 4], 'Confi", "not_found"),  # the only object was cut: not a bare box of confidence 1
    ("[{'Position': [1, 2, 3, 4], 'Confidence': NaN}]", "malformed"),
    ("[{'Position': [1, 2, 3, 4], 'Confidence': 1e309}]", "malformed"),
    ("[{'Position': [1, 2, 3, 4], 'Confidence': 'certain'}]", "malformed"),
    ("[{'Position': [1, 2, 3, NaN], 'Confidence': 1}]", "malformed"),
    ("[{'Position': [1, 2, 3, Infinity], 'Confidence': 1}]", "malformed"),
    ("[{'Position': [1, 2, 3, 1e309], 'Confidence': 1}]", "malformed"),
    ("[{'Position': [1, 2, 3], 'Confidence': 1}]", "malformed"),  # three numbers
    ("[{'Position': [1, 2, 3, 4, 5], 'Confidence': 1}]", "malformed"),
    ("[{'Position': [x1, y1, x2, y2], 'Confidence': number}, ...]", "malformed"),  # the form itself
    ("[{'Position': [1, 2, 3, 4], 'Confidence': 1}, {}]", "malformed"),  # one bad object spoils the answer
    ("[{'Position': ['1', '2', '3', '4'], 'Confidence': 1}]", "malformed"),
    ("[{'Position': null, 'Confidence': 1}]", "malformed"),
    ("[{'Position': {'x1': 1, 'y1': 2}, 'Confidence': 1}]", "malformed"),
    (f"[{{'Position': [1, 2, 3, {'9' * 5000}], 'Confidence': 1}}]", "malformed"),  # 5,000 digits
    ("[{'Position': [１, ２, ３, ４], 'Confidence': 1}]", "malformed"),  # other scripts' digits
    ("__import__('os').system('true')", "not_found"),
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
        ("(100,200,300,400)", (100, 200, 300, 400)),
        ("100, 200, 300, 400", (100, 200, 300, 400)),  # alone
        ("[[100,200],[300,400]]", (100, 200, 300, 400)),
        ("(100,200) and (300,400)", (100, 200, 300, 400)),
        ("the dog [left] is at [100, 200, 300, 400]", (100, 200, 300, 400)),
        ("{'label': 'bow (tie)', 'bbox_2d': (100, 200, 300, 400)}", (100, 200, 300, 400)),
        ("{'Position': [1, 2, 3, 4], 'Label': 'a'} (5,6),(7,8)", (1, 2, 3, 4)),  # objects come first
        ("(300,400),(100,200)", (300, 400, 100, 200)),  # swapped corners: read, earn nothing
    ],
)
def test_read_box(block, box):
    assert read_box(block) == (box, None)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("(1,2),(3,4),(5,6),(7,8)", "several"),  # two boxes
        ("(1,2),(3,4),(1,2),(3,4)", "several"),  # the same twice
        ("[1,2,3,4],[5,6,7,8]", "several"),
        ("(x1,y1),(x2,y2)", "malformed"),  # the form itself
        ("(1,2),(3,NaN)", "malformed"),
        (f"(0,0),({'9' * 5000},1)", "malformed"),
        ("No Objects", "not_found"),
        ("(１,2),(3,4)", "malformed"),  # another script's digit
        ("(46e0,242),(892,844)", "malformed"),
    ],
)
def test_read_box_says_why_not(block, reason):
    assert read_box(block) == (None, reason)
