"""Readers of model text: the answer block, and the boxes, box, point, count or name inside of it.

Model text is untrusted. A reader returns `(answer, None)`, or `(None, reason)` with a reason of `REASONS`. It never
raises. All patterns run in linear time: training reads whatever a model samples, and 100,000 blanks once took 26 s.

An ambiguous text is unreadable. A guess would pay for text that says nothing: `...` was once read as "No Objects".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from vrft.tasks.written_objects import FOUR_NUMBERS, NUMBER, PAIR, Span, WrittenBox, kind_of_key, object_boxes

REASONS = ("no_answer", "empty_answer", "not_found", "malformed", "several")
"""Why an answer is unreadable. no_answer: no answer block after the thought. empty_answer: an empty block. not_found:
nothing of the right kind in the block. malformed: a box, point, count or confidence that is not made of plain numbers,
or a label that cannot be distinguished from other text. several: more than one, where one was asked for."""

# Chinese marks become ASCII ones, one for one: every place in the text stays. Digits of other scripts are not read.
_ASCII_MARKS = str.maketrans("（）【】「」『』《》〈〉｛｝，、；：", "()[][][][][]{},,;:")
_FOUR_NUMBERS = re.compile(FOUR_NUMBERS)
_CODE_FENCE = re.compile(r"```(?:[a-z]+(?=\s))?")
_BRACKETS = re.compile(r"[\[(]([^\[\]()]*)[\])]|<b?box>([^\[\]()<>]*)</b?box>")
_CORNER_PAIR = re.compile(rf"{PAIR}\s*(?:(?:,|and|to)\s*)?{PAIR}")


def _named(*names: str) -> str:
    """A pattern of numbers behind these names, as in `x=1, y=2`, `"x": 1, "y": 2` and `x="1" y="2"`."""
    return r"[\s,;]*+".join(rf"[\"']?\b(?:{name})[\"']?\s*[:=]\s*[\"']?({NUMBER})(?![\w.%])[\"']?" for name in names)


_LAST_CORNERS = ("y2", "y_2", "max", "bottom")
_NAMED_CORNERS = re.compile(
    _named("x_?1|x_?min|left", "y_?1|y_?min|top", "x_?2|x_?max|right", "y_?2|y_?max|bottom"), re.IGNORECASE
)
_POINT = re.compile(PAIR)
_BARE_POINT = re.compile(rf"\s*({NUMBER})\s*,\s*({NUMBER})\s*")
_X, _Y = "x_?[0-9]{0,2}", "y_?[0-9]{0,2}"
_NAMED_POINT = re.compile(f"{_named(_X, _Y)}|{_named(_Y, _X)}", re.IGNORECASE)
_TEXT_VALUE = re.compile(rf"([:=]\s*)(?!([\"']){NUMBER}\2)(?:\"(?:[^\"\\]|\\.)*+\"|'(?:[^'\\]|\\.)*+')", re.DOTALL)
_REFERENCE = re.compile(r"<\|?(?:object_)?ref(?:_start)?\|?>([^<>]*)<")
_TAG = re.compile(r"<[^<>]*>")
_LABEL_BEFORE = re.compile(r"\"([^\"]+)\"\s*[:：]?|'([^'\"]+)'\s*[:：]?|([^:：\"']+)[:：]")
_LONGEST_LABEL = 300
_COUNT = re.compile(r"[0-9]{1,9}")
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_CHINESE_NUMERALS = "零一二三四五六七八九十"
_CHINESE_COUNT = re.compile(
    r"(?:答案|答|一共|总共|共计|共|有|是|为|[:\s])*+([零〇一二两三四五六七八九十])"
    r"[个個只隻条條头匹辆张把件位人名台架艘棵株朵支枝块片颗粒根瓶杯盘碗栋座间扇幅顶本]?[。.!！\s]*"
)
# Where a word of a script without blanks ends or begins at a number: 共3只. Not 第3 (the third), 3万 or 3多.
_SCRIPT = r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]"
_WORD_EDGE = re.compile(
    rf"一共|(?<={_SCRIPT})(?<![第负几])(?=[0-9])|(?<=[0-9])(?={_SCRIPT})(?![十百千万亿半多几余分倍成点])|(?<![0-9]):"
)
_SIGNS = "-+−–"
_MARKS = "\"'`*.,;:!?()[]{}“”‘’。、，！？；：（）【】「」『』《》〈〉\u200b"
_EDGE_MARKS = f"{_MARKS}_- \t\r\n"
_NO_PART_OF_NAME = re.compile(r"[\s_\-]+")
_NO_OBJECTS = ("noobjects", "noobject", "none", "noobjectsfound", "therearenoobjects")


def read_answer_block(text: str) -> tuple[str | None, str | None]:
    """The text inside the last `<answer>` block after the thought, stripped.

    Text inside `<think>` never counts, and a thought that is not closed leaves no answer. A block without `</answer>`
    (cut by the length limit) ends with the text.

    >>> read_answer_block("<think>maybe <answer>no</answer></think><answer> yes </answer>")
    ('yes', None)
    >>> read_answer_block("<answer></answer>")
    (None, 'empty_answer')
    """
    span = answer_span(text)
    if span is None:
        return None, "no_answer"
    block = text[slice(*span)].strip()
    return (block, None) if block else (None, "empty_answer")


def answer_span(text: str) -> tuple[int, int] | None:
    """Start and end of the text inside the answer block, as in `read_answer_block` but not stripped."""
    begin = text.rfind("</think>") + 1  # 0 if there is no thought; +1 is enough, because no tag starts inside a tag
    end = text.find("<think>", begin)
    end = len(text) if end < 0 else end
    tag = text.rfind("<answer>", begin, end)
    if tag < 0:
        return None
    begin = tag + len("<answer>")
    closing = text.find("</answer>", begin, end)
    return begin, end if closing < 0 else closing


def box_spans(block: str, *, with_labels: bool = False) -> list[Span]:
    """Start and end in the block of what each box of `read_boxes` is written in, in its order, each once.

    Each piece read alone gives its boxes, with their confidences and labels.
    """
    return list(dict.fromkeys(span for _, span in _boxes(block, with_labels=with_labels)))


def read_boxes(block: str, *, with_labels: bool = False) -> tuple[list[WrittenBox] | None, str | None]:
    """The boxes of a detection answer, in the order written; `[]` for 'No Objects' or an empty list.

    Reads objects `{'Position': [x1, y1, x2, y2], 'Confidence': c, 'Label': 'name'}` in all dialects that
    `vrft.tasks.written_objects` lists, also in a code fence. Without an object it reads pairs `(x1,y1),(x2,y2)`, else
    lists of four numbers, in brackets, in <box> tags or alone, and then a label stands before its box: `cat: [1, 2, 3,
    4]`, `["cat", [1, 2, 3, 4]]` or `<ref>cat</ref>`. A last object that the length limit cut is ignored.
    with_labels: False leaves every label "".

    >>> read_boxes("[{'Position': [0, 20, 40, 60], 'Confidence': 0.90}, {'Position': [1, 2")
    ([WrittenBox(xyxy=(0.0, 20.0, 40.0, 60.0), confidence=0.9, label='')], None)
    >>> read_boxes("No Objects")
    ([], None)
    """
    found = [box for box, _ in _boxes(block, with_labels=with_labels)]
    # One unreadable box makes the whole answer unreadable: else a model could hide a wrong box by writing it badly.
    if any(box is None for box in found):
        return None, "malformed"
    # No box is not "no objects": `[[[[` or a cut first object must not earn what an empty image earns.
    if not found and not _says_none(block):
        return None, "not_found"
    return found, None


def read_box(block: str) -> tuple[tuple[float, ...] | None, str | None]:
    """The one box of a grounding answer, as written; two boxes are unreadable. Reads all forms of `read_boxes`.

    >>> read_box("(100,200),(300,400)")
    ((100.0, 200.0, 300.0, 400.0), None)
    >>> read_box("(1,2),(3,4) (5,6),(7,8)")
    (None, 'several')
    """
    boxes, reason = read_boxes(block)
    if not boxes:
        return None, reason or "not_found"
    return (boxes[0].xyxy, None) if len(boxes) == 1 else (None, "several")


def read_point(block: str) -> tuple[tuple[float, float] | None, str | None]:
    """The one point of a pointing answer, (x, y) as written.

    Reads `{"x": x, "y": y}`, `x: 1, y: 2` and `<point x="1" y="2" alt="cup">` in either order, else `(x, y)` and
    `[x, y]` (also as the value of a key, such as `point_2d`), and bare `x, y`. Texts in quotes do not count.

    >>> read_point('{"point_2d": [120, 40], "label": "cup (1,2)"}'), read_point("(1,2) or (3,4)")
    (((120.0, 40.0), None), (None, 'several'))
    """
    text = _TEXT_VALUE.sub(r"\1", block.translate(_ASCII_MARKS))
    points = [(x or x_last, y or y_last) for x, y, y_last, x_last in _NAMED_POINT.findall(text)] or _POINT.findall(text)
    if not points and (bare := _BARE_POINT.fullmatch(_TAG.sub("", text))):
        points = [bare.groups()]
    if not points:
        return None, "malformed" if re.search(r"\d", block) else "not_found"
    return (_floats(points[0]), None) if len(points) == 1 else (None, "several")


def read_count(block: str) -> tuple[int | None, str | None]:
    """The count of a counting answer, a whole number from 0.

    Written in digits, with or without words around it, or as one English word up to ten, or a Chinese one with its
    measure word. A second number (also a word), a sign or a fraction makes the answer unreadable: "3 of 5" and "0-1000"
    would hold the right count too often.

    >>> read_count("There are 3."), read_count("three"), read_count("3 of 5"), read_count("-3")
    ((3, None), (3, None), (None, 'several'), (None, 'malformed'))
    >>> read_count("共3只。"), read_count("三个")
    ((3, None), (3, None))
    """
    text = block.translate(_ASCII_MARKS)
    if chinese := _CHINESE_COUNT.fullmatch(text):
        return _CHINESE_NUMERALS.index({"〇": "零", "两": "二"}.get(chinese[1], chinese[1])), None
    tokens = [token.strip(_MARKS) for token in _WORD_EDGE.sub(" ", text).split()]
    written = [token for token in tokens if any(map(_is_number, token))]
    words = [token.lower() for token in tokens if token.lower() in _NUMBER_WORDS]
    if not written and len(tokens) == 1:
        written, words = [str(_NUMBER_WORDS.index(word)) for word in words], []
    if len(written) != 1 or words:
        return None, "several" if written else "not_found"
    if not _COUNT.fullmatch(written[0]) or any(token and not token.strip(_SIGNS) for token in tokens):
        return None, "malformed"
    return int(written[0]), None


def read_name(block: str) -> tuple[str | None, str | None]:
    """The class name, without a code fence, and without quotes, full stops, stars and brackets around it.

    >>> read_name("**Maine Coon**."), read_name("-")
    (('Maine Coon', None), (None, 'not_found'))
    """
    name = _CODE_FENCE.sub("", block).strip(_EDGE_MARKS)
    return (name, None) if normal_name(name) else (None, "not_found")


def normal_name(name: str) -> str:
    """The form in which class names are compared: lower case, no blanks, underscores, hyphens or marks around it.

    >>> normal_name("Maine_Coon."), normal_name("maine coon")
    ('mainecoon', 'mainecoon')
    """
    return _NO_PART_OF_NAME.sub("", unicodedata.normalize("NFC", name).strip(_EDGE_MARKS)).lower()


def _is_number(character: str) -> bool:
    return character.isnumeric() or character == "半"  # 3个半 is 3.5


def _boxes(block: str, *, with_labels: bool) -> list[tuple[WrittenBox | None, Span]]:
    """The boxes of `read_boxes` and where they are written; None in place of an unreadable one."""
    text = block.translate(_ASCII_MARKS)
    is_object = "{" in text
    if any(name in text for name in _LAST_CORNERS):
        text = _NAMED_CORNERS.sub(lambda corners: _as_list(corners, key="box:" if is_object else ""), text)
    if is_object:
        return object_boxes(text, block, with_labels=with_labels)
    found = _bare_boxes(text)
    labels = _labels_before([span for _, span in found], block) if with_labels else [("", span) for _, span in found]
    if labels is None:
        return [(None, span) for _, span in found]
    return [(box and box._replace(label=label), span) for (box, _), (label, span) in zip(found, labels, strict=True)]


def _as_list(corners: re.Match, *, key: str) -> str:
    """`x1=1, y1=2, x2=3, y2=4` as a list of the same length, so that every place in the text stays."""
    return f"{key}[{','.join(corners.groups())}".ljust(len(corners.group()) - 1) + "]"


def _bare_boxes(text: str) -> list[tuple[WrittenBox | None, Span]]:
    if pairs := list(_CORNER_PAIR.finditer(text)):
        return [(WrittenBox(_floats(pair.groups()), 1.0), pair.span()) for pair in pairs]
    if alone := _FOUR_NUMBERS.fullmatch(text):
        return [(WrittenBox(_floats(alone.groups()), 1.0), alone.span())]
    found = []
    for match in _BRACKETS.finditer(text):
        inside = match[1] or match[2] or ""
        if any(map(str.isnumeric, inside)):
            four = _FOUR_NUMBERS.fullmatch(inside)
            found.append((four and WrittenBox(_floats(four.groups()), 1.0), match.span()))
    return found


def _labels_before(spans: Sequence[Span], block: str) -> list[tuple[str, Span]] | None:
    """The label of each bare box and where both stand; "" where nothing is written, None where it is unclear.

    A box without a label directly before it has that of the box before.
    """
    found: list[tuple[str, Span]] = []
    end, label, start = 0, "", None
    for first, last in spans:
        before = _label_in(block[end:first])
        if before is None or (before and found and not label):
            return None
        if before:
            label, start = before, end
        found.append((label, (first if start is None else start, last)))
        end = last
    return None if not label and found and _label_in(block[end:]) != "" else found


def _label_in(gap: str) -> str | None:
    """The label in the text before a bare box: "" if there is none, None if the text may be one or not."""
    if len(gap) > _LONGEST_LABEL:
        return None
    if references := _REFERENCE.findall(gap):
        return references[0].strip() if len(references) == 1 else None
    text = _TAG.sub("", _CODE_FENCE.sub("", gap)).strip(" \t\r\n,;.[](){}，、；。（）【】「」《》")
    if not any(map(str.isalnum, text)) or text in ("and", "to", "or"):
        return ""
    label = _LABEL_BEFORE.fullmatch(text)
    name = label and next(filter(None, label.groups())).strip()
    return "" if name and kind_of_key(name) == "box" else name


def _floats(texts: Sequence[str]) -> tuple[float, ...]:
    return tuple(map(float, texts))


def _says_none(block: str) -> bool:
    text = _CODE_FENCE.sub("", block)
    return normal_name(text) in _NO_OBJECTS or "".join(text.split()) == "[]"
