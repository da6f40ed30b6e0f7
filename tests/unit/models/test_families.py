"""Model families: their frames, and the sizes that their own image processors give to real images."""

import json

import pytest
import qwen_vl_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from vrft.models.families import FAMILIES, frame_for, seen_size
from vrft.tasks import load_task

HUB = {  # what each family's `preprocessor_config.json` says on the hub
    "qwen2_vl": {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "merge_size": 2},
    "qwen2_5_vl": {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "merge_size": 2},
    "qwen3_vl": {
        "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216},
        "patch_size": 16,
        "merge_size": 2,
    },
}
FRAMES = {"qwen2_vl": "norm1000", "qwen2_5_vl": "seen_pixels", "qwen3_vl": "norm1000"}  # as the models' authors say

SIZES = [
    # (width, height), min_pixels, max_pixels
    ((28, 28), 3136, 401_408),  # below the least area: grown
    ((32, 32), 3136, 401_408),
    ((15, 17), 3136, 401_408),  # smaller than one merged patch
    ((20, 300), 3136, 401_408),
    ((56, 56), 3136, 401_408),
    ((57, 55), 3136, 401_408),
    ((64, 48), 65_536, 401_408),  # the hub's least area of Qwen3-VL
    ((255, 256), 65_536, 401_408),
    ((42, 70), 3136, 401_408),  # 1.5 and 2.5 merged patches of 28: rounded to even
    ((48, 80), 3136, 401_408),  # the same of 32
    ((224, 224), 3136, 401_408),
    ((512, 512), 3136, 401_408),
    ((633, 634), 3136, 401_408),  # hardly below the largest area
    ((634, 634), 3136, 401_408),  # hardly above it
    ((640, 427), 3136, 401_408),  # COCO
    ((640, 480), 3136, 401_408),
    ((427, 640), 3136, 401_408),
    ((800, 600), 3136, 401_408),
    ((1920, 1080), 3136, 401_408),
    ((1023, 769), 3136, 401_408),  # odd
    ((2000, 101), 3136, 401_408),  # wide
    ((101, 2000), 3136, 401_408),  # tall
    ((3000, 40), 3136, 401_408),
    ((33, 3300), 3136, 401_408),
    ((224, 224), 3136, 50_176),  # exactly the largest area
    ((225, 224), 3136, 50_176),
    ((640, 427), 3136, 50_176),
    ((1280, 720), 3136, 50_176),
    ((500, 375), 3136, 50_176),
    ((1200, 60), 3136, 50_176),  # 20 to 1
    ((640, 427), 3136, 200_704),
    ((640, 480), 3136, 200_704),
    ((480, 640), 3136, 200_704),
    ((1333, 800), 3136, 200_704),
    ((1600, 90), 3136, 200_704),
    ((50, 1500), 3136, 200_704),
    ((4000, 3000), 3136, 401_408),  # a camera's
    ((640, 427), 50_176, 50_176),  # both limits alike
]
THIN_SIZES = [
    ((1000, 10), 3136, 401_408),  # a side of less than half a merged patch
    ((10, 1000), 3136, 401_408),
    ((171, 8), 3136, 401_408),
    ((120, 3), 3136, 401_408),
    ((3440, 46), 3136, 50_176),  # shrunk to less than one merged patch
    ((31, 2480), 3136, 50_176),
    ((2000, 10), 3136, 401_408),  # exactly 200 to 1
]


def load_like_vrft(folder, name: str, *, min_pixels: int, max_pixels: int):
    """The image processor that transformers maps the family's model type to, from files as they lie on the hub."""
    (folder / "config.json").write_text(json.dumps({"model_type": FAMILIES[name].model_type}), encoding="utf-8")
    hub = json.dumps(HUB[name] | {"temporal_patch_size": 2})
    (folder / "preprocessor_config.json").write_text(hub, encoding="utf-8")
    return AutoImageProcessor.from_pretrained(folder, min_pixels=min_pixels, max_pixels=max_pixels)


@pytest.fixture(params=HUB)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def seen_by_processor(family, tmp_path):
    """A function of an image's size and the limits to the (width, height) that the processor makes of such an image."""
    processor_class = type(load_like_vrft(tmp_path, family.name, min_pixels=3136, max_pixels=50_176))
    sides = {key: HUB[family.name][key] for key in ("patch_size", "merge_size")}

    def seen(image_wh, min_pixels, max_pixels):
        size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
        processor = processor_class(**sides, temporal_patch_size=2, size=size)
        grid = processor(images=[Image.new("RGB", image_wh)], return_tensors="pt")["image_grid_thw"]
        _, n_high, n_wide = grid[0].tolist()
        return n_wide * processor.patch_size, n_high * processor.patch_size

    return seen


def test_every_real_family_has_the_frame_of_its_authors():
    assert {name: family.frame for name, family in FAMILIES.items() if name != "tiny"} == FRAMES
    assert {name: family.model_type for name, family in FAMILIES.items() if name != "tiny"} == {n: n for n in HUB}
    assert {family.coordinate_step for name, family in FAMILIES.items() if name != "tiny"} == {1}


def test_the_processor_is_the_one_of_the_model_type(family, tmp_path):
    processor = load_like_vrft(tmp_path, family.name, min_pixels=4000, max_pixels=50_000)
    assert type(processor).__name__ == "Qwen2VLImageProcessor"  # by transformers' own mapping, for all three
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (4000, 50_000)
    assert processor.patch_size * processor.merge_size == family.pixel_factor


def test_seen_size_is_what_the_processor_makes_of_an_image(family, seen_by_processor):
    seen = {size: seen_by_processor(*size) for size in SIZES}
    assert {
        (image_wh, least, most): seen_size(image_wh, family, min_pixels=least, max_pixels=most)
        for image_wh, least, most in SIZES
    } == seen
    areas = [(w * h, seen[(w, h), least, most]) for (w, h), least, most in SIZES]
    assert len(seen) == 38
    for (wh, least, most), by_processor in seen.items():  # Qwen's own helper agrees, but for thin images
        limits = {"factor": family.pixel_factor, "min_pixels": least, "max_pixels": most}
        assert qwen_vl_utils.smart_resize(wh[1], wh[0], **limits) == by_processor[::-1]
    assert sum(seen_w * seen_h < 0.95 * area for area, (seen_w, seen_h) in areas) >= 15  # really shrunk
    assert sum(seen_w * seen_h > 1.05 * area for area, (seen_w, seen_h) in areas) >= 5  # really grown


@pytest.mark.parametrize(("image_wh", "least", "most"), THIN_SIZES)
def test_seen_size_of_a_thin_image_is_what_the_processor_makes_of_it(family, seen_by_processor, image_wh, least, most):
    seen = seen_by_processor(image_wh, least, most)
    assert min(seen) >= family.pixel_factor
    assert seen_size(image_wh, family, min_pixels=least, max_pixels=most) == seen


@pytest.mark.parametrize("image_wh", [(2010, 10), (10, 2010), (201, 1), (1, 5000)])
def test_more_than_200_to_1_is_refused_as_the_processor_refuses_it(family, seen_by_processor, image_wh):
    with pytest.raises(ValueError, match=r"absolute aspect ratio must be smaller than 200, got (201|5000)"):
        seen_size(image_wh, family, min_pixels=3136, max_pixels=401_408)
    with pytest.raises(ValueError, match="absolute aspect ratio must be smaller than 200"):
        seen_by_processor(image_wh, 3136, 401_408)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("qwen2_vl", "(250,500),(750,1000)"),
        ("qwen2_5_vl", "(154,308),(462,616)"),  # 1000 × 1000 is seen as 616 × 616
        ("qwen3_vl", "(250,500),(750,1000)"),
        ("tiny", "(240,500),(760,1000)"),  # multiples of 20: 250 and 750 lie between two, and go to the even one
    ],
)
def test_families_write_one_answer_each_in_its_frame(name, written):
    task, row = load_task("grounding"), {"image_wh": [1000, 1000], "phrase": "it", "gold": [250, 500, 750, 1000]}
    frame = frame_for(FAMILIES[name], (1000, 1000), min_pixels=3136, max_pixels=401_408)
    text = task.gold(row, frame, "none")
    assert text == f"<answer>{written}</answer>"
    expected = (240, 500, 760, 1000) if name == "tiny" else (250, 500, 750, 1000)
    assert task.parse(text, row, frame).answer == pytest.approx(expected)


SIDE = st.integers(28, 5000)
SHARE = st.floats(0, 1)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.tuples(SIDE, SIDE), st.lists(SHARE, min_size=4, max_size=4), st.sampled_from([50_176, 200_704, 401_408]))
def test_one_answer_in_two_families_is_one_box(image_wh, shares, max_pixels):
    """To within half a unit of either frame."""
    if max(image_wh) > 40 * min(image_wh):  # thinner ones have a test of their own
        image_wh = (max(image_wh), max(image_wh))
    task, side_wh = load_task("grounding"), [*image_wh, *image_wh]
    x1, x2, y1, y2 = *sorted(shares[:2]), *sorted(shares[2:])
    gold = [share * side for share, side in zip((x1, y1, x2, y2), side_wh, strict=True)]
    row = {"image_wh": list(image_wh), "phrase": "it", "gold": gold}
    boxes, half_units = [], []
    for name in HUB:
        frame = frame_for(FAMILIES[name], image_wh, min_pixels=3136, max_pixels=max_pixels)
        boxes.append(task.parse(task.gold(row, frame), row, frame).answer)
        unit_wh = {"norm1000": (1000, 1000), "seen_pixels": frame.seen_wh}[frame.name]
        half_units.append([side / units / 2 for side, units in zip(side_wh, [*unit_wh, *unit_wh], strict=True)])
    assert boxes[0] == boxes[2]  # both in thousandths
    for a, b, right, half_a, half_b in zip(boxes[0], boxes[1], gold, half_units[0], half_units[1], strict=True):
        assert abs(a - right) <= half_a + 1e-6
        assert abs(b - right) <= half_b + 1e-6
        assert abs(a - b) <= half_a + half_b + 1e-6
