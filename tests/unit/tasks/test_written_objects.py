"""The dialects in which models write boxes: each is read in full, or unreadable; nothing of one is lost in silence."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrft.tasks import load_task
from vrft.tasks.answers import REASONS, box_spans, read_box, read_boxes
from vrft.tasks.boxes import Frame

A, B = (1, 2, 3, 4), (5, 6, 7, 8)
FRAME = Frame("pixels", (20, 20), (20, 20))

DIALECTS = [  # (text, its boxes as (xyxy, confidence, label), or why it is unreadable)
    # several boxes in one object
    ('{"label": "cat", "bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}', [(A, 1, "cat"), (B, 1, "cat")]),
    ('{"name": "cat", "bbox": [1, 2, 3, 4], "name": "dog", "bbox": [5, 6, 7, 8]}', [(A, 1, "cat"), (B, 1, "dog")]),
    ('{"label": "cat", "bbox": [1, 2, 3, 4], "bbox": [5, 6, 7, 8]}', [(A, 1, "cat"), (B, 1, "cat")]),
    ('{"cat": [[1, 2, 3, 4], [5, 6, 7, 8]]}', [(A, 1, "cat"), (B, 1, "cat")]),  # classes as keys
    ('{"cat": [1, 2, 3, 4], "dog": [[5, 6, 7, 8]], "score": 0.5}', [(A, 0.5, "cat"), (B, 0.5, "dog")]),
    ('{"labels": ["cat", "dog"], "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "scores": [0.5, 0.25]}',
     [(A, 0.5, "cat"), (B, 0.25, "dog")]),
    ('{"labels": ["cat", "dog"], "boxes": [[1, 2, 3, 4]]}', "malformed"),  # two labels for one box
    ('{"label": "cat", "bbox_2d": [[1, 2, 3, 4], [5, 6, 7]]}', "malformed"),  # one badly written box spoils the answer
    ('{"label": "cat", "bbox_2d": [1, 2, 3, 4], "bbox_2d": [5, 6, 7, NaN]}', "malformed"),
    ('{"label": "cat", "bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]], "score": [0.5, 0.25, 1]}', "malformed"),
    # a box in quotes
    ('{"bbox_2d": "[1, 2, 3, 4]", "label": "cat"}', [(A, 1, "cat")]),
    ("{'Position': '(1,2),(3,4)', 'Confidence': 0.5}", [(A, 0.5, "")]),
    ('{"bbox_2d": ["[1, 2, 3, 4]", "5, 6, 7, 8"], "label": "cat"}', [(A, 1, "cat"), (B, 1, "cat")]),
    ('{"bbox_2d": "at [1, 2, 3, 4]", "label": "cat"}', "malformed"),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "[5, 6, 7, 8]"}', [(A, 1, "[5, 6, 7, 8]")]),  # a name
    # objects inside of objects
    ('{"objects": [{"name": "cat", "bbox": [1, 2, 3, 4]}, {"name": "dog", "bbox": [5, 6, 7, 8]}]}',
     [(A, 1, "cat"), (B, 1, "dog")]),
    ('{"objects": [{"name": "cat", "bbox": [1, 2, 3, 4]}, {"name": "dog", "bbox": [5,', [(A, 1, "cat")]),  # cut
    ('{"label": "cat", "score": 0.5, "box": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}}', [(A, 0.5, "cat")]),
    ('{"label": "cat", "bbox": [1, 2, 3, 4], "attributes": {"colour": "red"}}', [(A, 1, "cat")]),
    ('{"label": "cat", "bbox": [1, 2, 3, 4], "parts": [{"label": "paw", "bbox": [5, 6, 7, 8]}]}',
     [(A, 1, "cat"), (B, 1, "paw")]),
    ('{"cat": {"bbox": [1, 2, 3, 4]}}', "malformed"),  # cat may be the label, or only a name of the part
    ('{"objects": [{"name": "cat", "bbox": [1, 2, 3, 4]}, {"name": "dog"}]}', "malformed"),
    ('{"a": ' * 17 + "[1, 2, 3, 4]" + "}" * 17, "malformed"),
    # a label under another usual key
    *((f'{{"bbox_2d": [1, 2, 3, 4], "{key}": "cat"}}', [(A, 1, "cat")]) for key in (
        "label", "name", "class", "category", "object", "object_name", "category_name", "class_name", "Class Name",
        "label_name", "object_ref", "ref", "phrase", "objectName", "class-label")),
    ('{"bbox_2d": [1, 2, 3, 4], "item": "cat"}', "malformed"),  # any other text may be its label, or not
    ('{"bbox_2d": [1, 2, 3, 4], "text_content": "SCORE: 3-1"}', "malformed"),
    ('{"bbox_2d": [1, 2, 3, 4], "label": null}', "malformed"),
    ('{"bbox_2d": [1, 2, 3, 4], "id": 7, "crowd": false}', [(A, 1, "")]),  # no text, so no label
    ('{"bbox_2d": [1, 2, 3, 4], "label": 7}', [(A, 1, "7")]),
    ('{"class_id": 3, "label": "cat", "box": [1, 2, 3, 4]}', [(A, 1, "cat")]),
    ("{bbox: [1, 2, 3, 4], label: cat}", [(A, 1, "cat")]),  # no quotes
    ("{“bbox_2d”: [1, 2, 3, 4], “label”: “cat”}", [(A, 1, "“cat”")]),  # compared without these quotes
    # a label before a box without an object
    ('["cat", [1, 2, 3, 4]], ["dog", [5, 6, 7, 8]]', [(A, 1, "cat"), (B, 1, "dog")]),
    ("cat: [1, 2, 3, 4]\ndog: [5, 6, 7, 8]", [(A, 1, "cat"), (B, 1, "dog")]),
    ("<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>", [(A, 1, "cat")]),
    ("<ref>cat</ref><box>(1,2),(3,4)</box><box>(5,6),(7,8)</box>", [(A, 1, "cat"), (B, 1, "cat")]),
    ("<ref>a</ref><ref>b</ref><box>(1,2),(3,4)</box>", "malformed"),
    ('["cat", 1, 2, 3, 4]', "malformed"),
    ("cat (1,2),(3,4)", "malformed"),  # or a word of a sentence
    ("[1, 2, 3, 4] cat", "malformed"),
    ('[1, 2, 3, 4]: "cat", [5, 6, 7, 8]: "dog"', "malformed"),  # not the dog's box as the cat's
    (f"{'a' * 301}: [1, 2, 3, 4]", "malformed"),
    ("(1,2),(3,4) and (5,6),(7,8)", [(A, 1, ""), (B, 1, "")]),
    ("<|box_start|>(1,2),(3,4)<|box_end|>", [(A, 1, "")]),
    # JSON's and Python's escapes
    (r'{"bbox_2d": [1, 2, 3, 4], "label": "\u5145\u7535\u53e3"}', [(A, 1, "充电口")]),
    (r'{"bbox_2d": [1, 2, 3, 4], "label": "5\" disk"}', [(A, 1, '5" disk')]),
    (r"{'bbox_2d': [1, 2, 3, 4], 'label': 'driver\'s seat'}", [(A, 1, "driver's seat")]),
    (r'{"bbox_2d": [1, 2, 3, 4], "label": "\ud83d\ude00 a\/b"}', [(A, 1, "😀 a/b")]),
    (r'{"bbox_2d": [1, 2, 3, 4], "label": "\ud83d"}', [(A, 1, "\ufffd")]),  # half of a pair, which no file can hold
    (r'{"\u732b": [1, 2, 3, 4]}', [(A, 1, "猫")]),
    # confidences
    ('{"bbox_2d": [1, 2, 3, 4], "label": "high score: 0.3"}', [(A, 1, "high score: 0.3")]),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "cat", "text": "SCORE: 3-1"}', [(A, 1, "cat")]),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "cat", "score": null}', [(A, 1, "cat")]),  # none is written
    ('{"bbox_2d": [1, 2, 3, 4], "label": "cat", "score": "95%"}', [(A, 0.95, "cat")]),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "cat", "score": "high"}', "malformed"),  # neither 1 nor any other number
    ('{"bbox_2d": [1, 2, 3, 4], "label": "cat", "score": }', "malformed"),
    # Chinese marks; labels keep their own
    ('{"bbox_2d"：【1，2，3，4】，"label"："猫，黑（1）"}', [(A, 1, "猫，黑（1）")]),
    ("猫：【1，2，3，4】", [(A, 1, "猫")]),
    ("（1，2），（3，4）", [(A, 1, "")]),
    ("「1、2、3、4」", [(A, 1, "")]),
    ("（１，２），（３，４）", "malformed"),  # digits of other scripts
    # other notations of four numbers
    ('{"label": "cat", "bbox_2d": [[1, 2], [3, 4]]}', [(A, 1, "cat")]),
    ('{"label": "cat", "bbox_2d": [[1, 2], [3, 4], [5, 6], [7, 8]]}', "malformed"),  # a polygon, or two boxes
    ('{"label": "cat 2", "xmin": "1", "ymin": "2", "xmax": "3", "ymax": "4"}', [(A, 1, "cat 2")]),
    ('{"x": 1, "y": 2, "width": 3, "height": 4}', "malformed"),
    ("x1=1, y1=2, x2=3, y2=4", [(A, 1, "")]),
    ("cat: x1=1, y1=2, x2=3, y2=4", [(A, 1, "cat")]),
    ("1 2 3 4", [(A, 1, "")]),
    ("[1 2 3 4]", [(A, 1, "")]),
    ("<bbox>1, 2, 3, 4</bbox>", [(A, 1, "")]),
    ("1 2 3 4 5", "not_found"),
]  # fmt: skip
READ = [(text, boxes) for text, boxes in DIALECTS if not isinstance(boxes, str)]


@pytest.mark.parametrize(("text", "boxes"), DIALECTS)
def test_a_dialect_is_read_in_full_or_refused(text, boxes):
    found, reason = read_boxes(text, with_labels=True)
    assert (reason if isinstance(boxes, str) else found) == boxes
    assert (found is None) == isinstance(boxes, str)


@pytest.mark.parametrize(("text", "boxes"), READ)
def test_each_piece_read_alone_gives_its_boxes(text, boxes):
    pieces = [text[first:last] for first, last in box_spans(text, with_labels=True)]
    alone = [box for piece in pieces for box in read_boxes(piece, with_labels=True)[0]]
    assert list(dict.fromkeys(alone)) == boxes


@pytest.mark.parametrize(("text", "boxes"), READ)
def test_a_grounding_answer_is_one_of_one_box_alone(text, boxes):
    assert read_box(text) == ((A, None) if len(boxes) == 1 else (None, "several"))


@pytest.mark.parametrize(("text", "boxes"), READ)
def test_a_solution_keeps_all_its_boxes(text, boxes):
    if text.endswith("[5,"):
        with pytest.raises(ValueError, match="cut"):
            load_task("detection").gold_of(text, FRAME)
    else:
        assert load_task("detection").gold_of(text, FRAME) == [list(xyxy) for xyxy, _, _ in boxes]


@pytest.mark.parametrize("label", ["充电口", '5" disk', "driver's seat", "chat, noir", "bow (tie)", "a: b"])
def test_a_label_is_read_as_json_writes_it(label):
    for ascii_only in (True, False):
        text = json.dumps([{"bbox_2d": A, "label": label}], ensure_ascii=ascii_only)
        assert read_boxes(text, with_labels=True) == ([(A, 1, label)], None)


def test_several_boxes_in_one_object_are_several_predictions():
    """A hedge is paid as if each of its boxes had an object of its own."""
    task, row = load_task("detection"), {"image_wh": [20, 20], "category": "cat", "gold": [[1, 2, 3, 4]]}
    hedges = ('{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}', '[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6, 7, 8]}]')
    in_one, apart = (task.parse(f"<answer>{text}</answer>", row, FRAME) for text in hedges)
    assert in_one.answer == apart.answer
    assert task.metrics["iou"](in_one, row) == 0.5


PIECES = st.sampled_from(
    [*(text for text, _ in DIALECTS), "[", "]", "{", "}", "(", ")", '"', "'", ",", ":", "\\", "，"]
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(PIECES, min_size=1, max_size=3), st.integers(0, 200), st.integers(0, 9), st.booleans())
def test_what_is_read_of_a_damaged_dialect_is_written_there(pieces, start, n_lost, with_labels):
    whole = " ".join(pieces)
    text = whole[:start] + whole[start + n_lost :]
    boxes, reason = read_boxes(text, with_labels=with_labels)
    assert (boxes is None) == (reason in REASONS)
    numbers = set(map(float, re.findall(r"[0-9]+", text)))
    for box in boxes or []:
        assert set(box.xyxy) <= numbers
        assert box.confidence in {1, *numbers, *(number / 100 for number in numbers), 0.5, 0.25, 0.3}
        assert with_labels or not box.label
    for first, last in box_spans(text, with_labels=with_labels) if boxes else []:
        assert set(read_boxes(text[first:last], with_labels=with_labels)[0]) <= set(boxes)
