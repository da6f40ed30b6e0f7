"""Pictures of answers: enlarged where small, boxes where they belong, gold and prediction told apart."""

import pytest
from PIL import Image, ImageColor

from vrft.report.contact_sheet import contact_sheet, summary
from vrft.report.draw import GOLD_COLOUR, PREDICTED_COLOUR, draw_boxes

GOLD, PREDICTED = ImageColor.getrgb(GOLD_COLOUR), ImageColor.getrgb(PREDICTED_COLOUR)


def grey(wh):
    return Image.new("RGB", wh, (128, 128, 128))


def share_along(picture, y, x1, x2, colour):
    """The share of the pixels on a horizontal line that have the colour."""
    pixels = [picture.getpixel((x, y)) for x in range(x1, x2)]
    return sum(pixel == colour for pixel in pixels) / len(pixels)


@pytest.mark.parametrize(
    ("wh", "expected", "why"),
    [
        ((56, 56), (448, 448), "a small scene is enlarged by a whole number"),
        ((60, 30), (480, 240), "the longer side counts"),
        ((640, 480), (640, 480), "a photograph stays as it is"),
    ],
)
def test_small_images_are_enlarged(wh, expected, why):
    assert draw_boxes(grey(wh)).size == expected, why


def test_gold_is_solid_and_predictions_are_dashed():
    picture = draw_boxes(grey((56, 56)), gold=[([7, 7, 49, 21], "")], predicted=[([7, 28, 49, 49], "")])
    assert share_along(picture, 56, 60, 388, GOLD) == 1
    assert 0.3 < share_along(picture, 224, 60, 388, PREDICTED) < 0.7
    assert picture.getpixel((224, 300)) == (128, 128, 128), "the inside stays as it is"


@pytest.mark.parametrize(
    ("xyxy", "why"),
    [
        ([-50, -50, 500, 500], "larger than the image"),
        ([40, 40, 10, 10], "inverted"),
        ([20, 20, 20, 20], "no area: still seen"),
        ([60, 60, 90, 90], "outside: seen at the corner"),
        ([0, 0, 0.4, 56], "a sliver"),
    ],
)
def test_any_box_is_drawn_and_seen(xyxy, why):
    picture = draw_boxes(grey((56, 56)), predicted=[(xyxy, "seven 0.90")])
    assert PREDICTED in {colour for _, colour in picture.getcolors(1 << 20)}, why


def test_labels_that_the_font_cannot_draw_are_told_apart():
    pictures = [draw_boxes(grey((56, 56)), gold=[([7, 7, 49, 49], label)]).tobytes() for label in "猫狗éè😀"]
    assert len(set(pictures)) == 5
    known = [draw_boxes(grey((56, 56)), gold=[([7, 7, 49, 49], label)]) for label in ("猫", r"\u732b")]
    assert known[0].tobytes() == known[1].tobytes()


def test_the_original_stays_as_it_is_and_any_mode_is_taken():
    for mode in ("L", "RGBA", "P"):
        image = Image.new(mode, (56, 56))
        before = image.copy()
        assert draw_boxes(image, gold=[([1, 1, 9, 9], "gold")]).mode == "RGB"
        assert image.tobytes() == before.tobytes()


def test_questions_on_a_sheet_are_told_apart_too(tmp_path):
    grey((56, 56)).save(tmp_path / "a.png")
    sheets = [
        contact_sheet(
            {"train": [{"row_id": "r", "images": ["a.png"], "phrase": phrase, "gold": [7, 7, 49, 49]}]}, root=tmp_path
        ).tobytes()
        for phrase in "猫狗"
    ]
    assert sheets[0] != sheets[1]


@pytest.mark.parametrize("category", [7, {"id": 7}, ["cup"]])
def test_a_column_that_no_task_reads_is_no_obstacle(tmp_path, category):
    grey((56, 56)).save(tmp_path / "a.png")
    row = {"row_id": "r", "images": ["a.png"], "image_wh": [56, 56], "phrase": "a cup", "gold": [7, 7, 49, 49]}
    split = {"train": [row | {"category": category}]}
    contact_sheet(split, root=tmp_path)
    assert "1 rows" in next(iter(summary(split)))
