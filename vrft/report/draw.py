"""Boxes drawn on images: gold in solid orange, predicted in dashed blue, each with a dark edge.

The two colours differ for every common kind of colour vision (Okabe & Ito 2008). Without colour, the dashes differ.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vrft.errors import UserError
from vrft.files import written_whole
from vrft.tasks.boxes import clip_to_image

GOLD_COLOUR = "#E69F00"
PREDICTED_COLOUR = "#56B4E9"
EDGE_COLOUR = "#10151C"
_FARTHEST = 1e15  # of a coordinate

LabelledBox = tuple[Sequence[float], str]
"""A box, xyxy in pixels of the original image, and the text beside it ("" for none)."""


def draw_boxes(
    image: Image.Image, *, gold: Sequence[LabelledBox] = (), predicted: Sequence[LabelledBox] = (), min_side: int = 448
) -> Image.Image:
    """An RGB copy of the image with the boxes drawn. min_side: smaller images are enlarged by a whole factor.

    Boxes are clipped to the image. A box without area is drawn as a line or a dot, so that it is visible.
    """
    scale = max(1, -(-min_side // max(image.size)))
    image_wh = image.size
    picture = image.convert("RGB").resize([side * scale for side in image_wh], Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    width = max(2, round(max(picture.size) / 150))
    for boxes, colour, dash in ((gold, GOLD_COLOUR, 0), (predicted, PREDICTED_COLOUR, 4 * width)):
        for xyxy, label in boxes:
            corners = [value * scale for value in clip_to_image(_upright(xyxy), image_wh)]
            _draw_outline(pen, corners, EDGE_COLOUR, width + 2, 0)
            _draw_outline(pen, corners, colour, width, dash)
            if label:
                _draw_label(pen, label, corners, colour, picture.size)
    return picture


def save_image(image: Image.Image, path: Path) -> None:
    """Write the image to a file, whole or not at all, in the format that the file's ending names.

    Raises `UserError` if the ending names none.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise UserError(f"{path} does not end in the name of an image format; choose a name such as {path.stem}.png")
    with written_whole(path) as file:
        image.save(file, kind)


def boxes_of(answer: Any) -> list[LabelledBox]:
    """The boxes and labels of an answer (as in scored rows) or of a gold; a point is a box without area.

    Empty for a name, a count, an unreadable answer, or anything else that holds no boxes.

    >>> boxes_of([{"xyxy": [0, 0, 9, 9], "confidence": 0.5, "label": ""}]), boxes_of([4, 5])
    ([([0, 0, 9, 9], '0.50')], [([4, 5, 4, 5], '')])
    >>> boxes_of({"count": 3}), boxes_of([[0, 0, 9, 9], "seven"])
    ([], [])
    """
    return [(one["xyxy"], _label_of(one)) for one in found_boxes(answer)]


def found_boxes(answer: Any) -> list[dict]:
    """As `boxes_of`, each box as `{"xyxy", "label", "confidence"}`, of which all but the first may be missing."""
    if not isinstance(answer, list | tuple) or not answer:
        return []
    several = answer if isinstance(answer[0], dict | list | tuple) else [answer]
    found = [one if isinstance(one, dict) else {"xyxy": one} for one in several]
    found = [one | {"xyxy": [*one["xyxy"]] * 2} if _are_numbers(one.get("xyxy"), 2) else one for one in found]
    is_boxes = all(_are_numbers(one.get("xyxy"), 4) and _are_numbers([one.get("confidence", 0)], 1) for one in found)
    return found if is_boxes else []


def _are_numbers(values: Any, n: int) -> bool:
    is_list = isinstance(values, list | tuple) and len(values) == n
    return is_list and all(type(value) in (int, float) and abs(value) < _FARTHEST for value in values)


def drawable(text: str) -> str:
    r"""The text with escapes for characters that Pillow's font lacks; it would draw the same empty box for all of them.

    >>> drawable("cat 猫")
    'cat \\u732b'
    """
    return "".join(map(_drawable, text))


@functools.cache
def _drawable(character: str) -> str:
    glyph, missing = (bytes(ImageFont.load_default(size=16).getmask(one)) for one in (character, "\uffff"))
    return character if glyph != missing else character.encode("ascii", "backslashreplace").decode()


def _label_of(box: dict) -> str:
    confidence = f"{box['confidence']:.2f}" if "confidence" in box else ""
    return f"{box.get('label', '')} {confidence}".strip()


def _upright(xyxy: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = xyxy
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]


def _draw_outline(pen: ImageDraw.ImageDraw, xyxy: Sequence[float], colour: str, width: int, dash: int) -> None:
    """Draw the four sides. dash: length of dashes and gaps in pixels of the picture; 0 for a solid line."""
    x1, y1, x2, y2 = xyxy
    for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
        length = abs(end[0] - start[0]) + abs(end[1] - start[1])
        n_parts = max(1, round(length / dash)) | 1 if dash else 1  # odd: both ends are dashes, so that corners show
        for part in range(0, n_parts, 2):
            pieces = [
                tuple(a + (b - a) * share for a, b in zip(start, end, strict=True))
                for share in (part / n_parts, (part + 1) / n_parts)
            ]
            pen.line(pieces, fill=colour, width=width)


def _draw_label(
    pen: ImageDraw.ImageDraw, label: str, xyxy: Sequence[float], colour: str, picture_wh: tuple[int, int]
) -> None:
    """Draw dark text on a plate of the box's colour, above the box, or inside it if there is no room."""
    label = drawable(label)
    font = ImageFont.load_default(size=max(12, round(max(picture_wh) / 32)))
    left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
    plate_wh = (right - left + 8, bottom - top + 6)
    x = max(0, min(xyxy[0], picture_wh[0] - plate_wh[0]))
    y = xyxy[1] - plate_wh[1] if xyxy[1] >= plate_wh[1] else xyxy[1]
    y = max(0, min(y, picture_wh[1] - plate_wh[1]))
    pen.rectangle((x, y, x + plate_wh[0], y + plate_wh[1]), fill=colour)
    pen.text((x + 4 - left, y + 3 - top), label, fill=EDGE_COLOUR, font=font)
