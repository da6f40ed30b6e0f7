"""ReasonSeg folders: one row a text, the box of all targets, and pairs that are refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vrft.data.reasonseg import Options, build, clip_by_a_pixel, read
from vrft.errors import UserError
from vrft.tasks import load_task
from vrft.tasks.rows import box_fault

CASES = Path(__file__).parents[4] / "shared" / "data" / "reasonseg" / "mask_cases.json"
TARGET = [[3, 4], [30, 8.5], [20, 40]]
OTHER = [[40, 2], [50.25, 2], [45, 30]]


def shape(label, points):
    return {"label": label, "labels": [label], "shape_type": "polygon", "points": points}


def pair(folder, name, label, *, size=(64, 48), encoding="utf-8", suffix=".jpg", **options):
    """Write NAME.jpg of its own content and NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(name.encode())).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / f"{name}{suffix}", **options)
    text = label if isinstance(label, str) else json.dumps(label, ensure_ascii=False)
    (folder / f"{name}.json").write_bytes(text.encode(encoding))


def labelled(*shapes, text=("what one drinks from",), **more):
    return {"text": list(text), "is_sentence": True, "shapes": list(shapes), **more}


def rows_of(folder, *, is_test=False, **options):
    faults = []
    located, _ = read(Options(path=str(folder), **options), is_test=is_test, faults=faults)
    return [columns for _, _, columns in located], faults


def built(folder, tmp_path, *, task="reasoning_grounding", **options):
    options = {"path": str(folder), "n_processes": 1, **options}
    return build(options, task=load_task(task), out_dir=tmp_path / "run", seed=0)


def test_a_row_for_each_text(tmp_path):
    flag, ignore = shape("flag", [[1, 1]]), shape("Ignore_this", OTHER)
    label = labelled(shape("target", TARGET), ignore, flag, shape("target", OTHER), text=["the cup", "what holds tea"])
    pair(tmp_path / "set", "a", label)
    rows, faults = rows_of(tmp_path / "set")
    assert faults == []
    shared = {
        "image": "a.jpg",
        "gold": [3, 2, 50.25, 40],
        "target_polygons": [TARGET, OTHER],
        "ignore_polygons": [OTHER],
        "is_sentence": True,
    }
    assert rows == [
        {"row_id": "a-1", "phrase": "the cup", **shared},
        {"row_id": "a-2", "phrase": "what holds tea", **shared},
    ]


@pytest.mark.parametrize("task", ["reasoning_grounding", "grounding", "pointing"])
def test_splits_that_are_folders(tmp_path, task):
    for split, names in (("train", "ab"), ("val", "c"), ("test", "de")):
        for name in names:
            pair(tmp_path / "set" / split, name, labelled(shape("target", TARGET)))
    splits = built(tmp_path / "set", tmp_path, task=task, split="train", test_split="val")
    assert [row["row_id"] for row in splits["train"]] == ["train/a-1", "train/b-1"]
    assert [row["row_id"] for row in splits["test"]] == ["val/c-1"]
    assert splits["test"][0]["target_polygons"] == [TARGET]
    splits = built(tmp_path / "set" / "train", tmp_path, test_path=str(tmp_path / "set" / "test"))
    assert [row["row_id"] for row in splits["test"]] == ["test:d-1", "test:e-1"]
    with pytest.raises(UserError, match=r"the split 'dev' give .* no such folder; for pairs in the folder itself"):
        built(tmp_path / "set", tmp_path, split="dev")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "latin-1"])
def test_old_files_are_read_in_their_encoding(tmp_path, encoding):
    pair(tmp_path / "set", "a", labelled(shape("target", TARGET), text=["le café"]), encoding=encoding)
    rows, faults = rows_of(tmp_path / "set")
    assert ([row["phrase"] for row in rows], faults) == (["le café"], [])


@pytest.mark.parametrize(
    ("xyxy", "clipped"),
    [
        ([3, 4, 50, 40], [3, 4, 50, 40]),
        ([-1, -0.25, 65, 48.5], [0, 0, 64, 48]),  # within a pixel
        ([-1.5, 4, 50, 49.5], [-1.5, 4, 50, 49.5]),  # further out: left as it is, for the task to refuse
    ],
)
def test_a_pixel_outside_is_cut(xyxy, clipped):
    assert clip_by_a_pixel(xyxy, (64, 48)) == clipped
    assert clip_by_a_pixel(xyxy, None) == xyxy


def test_boxes_refer_to_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°: stored 64 × 48, seen 48 × 64
    pair(tmp_path / "set", "a", labelled(shape("target", [[3, 4], [48.5, 10], [20, 64]])), exif=exif)
    [row] = built(tmp_path / "set", tmp_path, n_test=0)["train"]
    assert (row["image_wh"], row["gold"]) == ([48, 64], [3, 4, 48, 64])
    outside = labelled(shape("target", [[3, 4], [60, 10], [20, 40]]))  # inside only if it were lying
    pair(tmp_path / "set", "a", outside, exif=exif)
    with pytest.raises(UserError, match=r"a\.json, row 1: box .* lies outside the image of 48 × 64"):
        built(tmp_path / "set", tmp_path)


BAD = {
    "cut": ('{"text": ["x"], "sha', "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "list": ([], "holds a list"),
    "no_text": ({"shapes": [shape("target", TARGET)]}, "text is None"),
    "empty_text": (labelled(shape("target", TARGET), text=[]), "text is a list"),
    "blank_text": (labelled(shape("target", TARGET), text=["x", " "]), "none of them blank"),
    "no_shapes": ({"text": ["x"]}, "shapes is None"),
    "no_target": (labelled(shape("ignore", OTHER), shape("flag", OTHER)), "no shape has the label target"),
    "label": (labelled(shape("target", TARGET), shape("dog", OTHER)), "shape 2 has the label 'dog'"),
    "shape": (labelled(3), "shape 1 has the label None"),
    "two_points": (labelled(shape("target", TARGET[:2])), "shape 1 has the points a list; a polygon of at least 3"),
    "text_point": (labelled(shape("target", [*TARGET, ["1", 2]])), "shape 1 has the point a list"),
    "nan": (labelled(shape("target", [*TARGET, [float("nan"), 2]])), "two finite numbers"),
    "flat_point": (labelled(shape("target", [1, 2, 3])), "shape 1 has the point 1;"),
}


def test_a_pair_that_cannot_be_used_is_named(tmp_path):
    pair(tmp_path / "set", "good", labelled(shape("target", TARGET)))
    for name, (label, _) in BAD.items():
        pair(tmp_path / "set", name, label)
    pair(tmp_path / "set", "twice", labelled(shape("target", TARGET)))
    (tmp_path / "set" / "twice.PNG").write_bytes((tmp_path / "set" / "twice.jpg").read_bytes())
    pair(tmp_path / "set", "lonely", labelled(shape("target", TARGET)))
    (tmp_path / "set" / "lonely.jpg").unlink()
    pair(tmp_path / "set", "bare", labelled(shape("target", TARGET)))
    (tmp_path / "set" / "bare.json").unlink()
    rows, faults = rows_of(tmp_path / "set")
    assert {row["row_id"] for row in rows} == {"good-1", "twice-1"}
    expected = {f"{name}.json: ": words for name, (_, words) in BAD.items()} | {
        "twice.PNG and twice.jpg": "both belong to twice.json",
        "lonely.json: ": "there is no image lonely.jpg",
        "bare.jpg": "has no bare.json",
    }
    for start, words in expected.items():
        assert sum(fault.startswith(start) and words in fault for fault in faults) == 1, (start, faults)
    assert len(faults) == len(expected)


def test_bad_pairs_stop_the_build_or_are_skipped(tmp_path):
    for name in ("good", "outside", "damaged"):
        pair(tmp_path / "set", name, labelled(shape("target", TARGET)))
    pair(tmp_path / "set", "outside", labelled(shape("target", [*TARGET, [70, 3]])))
    (tmp_path / "set" / "damaged.jpg").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        built(tmp_path / "set", tmp_path)
    assert "outside.json, row 1: box [3, 3, 70, 40] lies outside the image of 64 × 48" in str(caught.value)
    assert "damaged.json, row 1: image 'damaged.jpg' is empty" in str(caught.value)
    splits = built(tmp_path / "set", tmp_path, on_bad_row="skip", n_test=0)
    assert [row["row_id"] for row in splits["train"]] == ["good-1"]


def test_an_image_outside_the_folder_is_not_even_opened(tmp_path):
    pair(tmp_path / "set", "a", labelled(shape("target", [*TARGET, [64.5, 3]])))
    (tmp_path / "set" / "a.jpg").rename(tmp_path / "a.jpg")
    (tmp_path / "set" / "a.jpg").symlink_to(tmp_path / "a.jpg")
    rows, faults = rows_of(tmp_path / "set")
    assert (rows[0]["gold"][2], faults) == (64.5, [])  # its size is not known
    with pytest.raises(UserError, match=r"a\.json, row 1: image 'a\.jpg' is .* outside of"):
        built(tmp_path / "set", tmp_path)


def test_what_does_not_fit_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match=r"has no \.json file"):
        rows_of(tmp_path / "set")
    for task in ("detection", "classification", "counting"):
        with pytest.raises(UserError, match=f"task={task} has no rows in ReasonSeg; right are grounding"):
            built(tmp_path / "set", tmp_path, task=task)


@pytest.mark.skipif(not CASES.is_file(), reason="the generated cases (../shared/data/reasonseg) are absent")
def test_the_generated_cases_are_read(tmp_path):
    cases = json.loads(CASES.read_text())
    for case in cases:
        label = {"text": ["it"], "shapes": case["shapes"]}
        pair(tmp_path / "set", f"{case['id']:03d}", label, size=(case["width"], case["height"]))
    rows, faults = rows_of(tmp_path / "set")
    with_target = [case for case in cases if any(shape["label"] == "target" for shape in case["shapes"])]
    assert (len(cases), len(rows), len(faults)) == (100, len(with_target), 100 - len(with_target)) == (100, 81, 19)
    for row, case in zip(rows, with_target, strict=True):
        points = np.concatenate([shape["points"] for shape in case["shapes"] if shape["label"] == "target"])
        limit = [case["width"], case["height"]]
        assert np.allclose(row["gold"], [*points.min(0).clip(0), *points.max(0).clip(max=limit)], atol=1e-9)
        assert box_fault(row["gold"], limit) is None
        assert len(row["ignore_polygons"]) == sum(shape["label"] == "ignore" for shape in case["shapes"])
