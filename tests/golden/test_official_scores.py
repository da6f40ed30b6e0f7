"""Real annotations and stored predictions against the figures that the official scorers gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vrft.evaluate.bootstrap import COCO_FIGURES, LVIS_FIGURES
from vrft.evaluate.box_files import score_coco_file, score_lvis_file
from vrft.evaluate.label_lists import score_label_file
from vrft.evaluate.masks import score_mask_file
from vrft.evaluate.truth import read_truth

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there: its oracles are not part of vrft")

TRUTH = DATA / "coco" / "instances_val2014_100.json"
FOUND = DATA / "coco" / "instances_val2014_fakebbox100_results.json"
LVIS_TRUTH = DATA / "lvis" / "lvis_val_100.json"
LVIS_FOUND = DATA / "lvis" / "synthetic_results_seed0.json"
COCO_EXPECTED = """
0.5045806987249628 0.6969727247299577 0.5729816669904824 0.5856257209410443 0.5193996948036719 0.5013978986347466
0.38681277964578054 0.5936795762842003 0.595352982877607 0.6398109626113442 0.5664205978994309 0.5642905982905982
"""
FEW_SHOT = "bus train fire_hydrant stop_sign cat dog bed toilet"
NEW = (
    "mouse fork hot_dog cat airplane suitcase parking_meter sandwich train hair_drier toilet toaster snowboard "
    "frisbee bear"
)


def written(folder, detections):
    path = folder / "found.json"
    path.write_text(json.dumps(detections))
    return [path]


def values(result):
    return {name: metric["value"] for name, metric in result["metrics"].items()}


def test_coco():
    result = score_coco_file(TRUTH, [FOUND], n_resamples=100)
    expected = dict(zip(COCO_FIGURES, map(float, COCO_EXPECTED.split()), strict=True))
    assert values(result) == pytest.approx(expected, abs=1e-12)
    assert len(result["per_class"]) == 70
    assert len(result["absent_classes"]) == 10
    low, high = result["metrics"]["AP"]["interval"]
    assert low < result["metrics"]["AP"]["value"] < high


@pytest.mark.parametrize(
    ("names", "mean", "n_present", "why"),
    [
        (FEW_SHOT, 0.5240452616690241, 7, "the 8 classes of the published few-shot set, fire hydrant absent"),
        (NEW, 0.4884124126698383, 11, "its 15 new classes"),
    ],
)
def test_mean_of_a_set_of_classes(names, mean, n_present, why):
    classes = [name.replace("_", " ") for name in names.split()]
    result = score_coco_file(TRUTH, [FOUND], classes=classes, n_resamples=1)
    assert result["metrics"]["AP"]["value"] == pytest.approx(mean, abs=1e-12), why
    assert len(result["per_class"]) == n_present
    assert len(result["absent_classes"]) == len(classes) - n_present


@pytest.mark.parametrize(
    ("change", "ap", "why"),
    [
        (lambda found: found * 2, 0.355974, "all predictions twice"),
        (lambda found: [{**one, "score": 1.0} for one in found], 0.51382, "equal scores keep the file's order"),
    ],
)
def test_coco_of_changed_predictions(tmp_path, change, ap, why):
    paths = written(tmp_path, change(json.loads(FOUND.read_text())))
    result = score_coco_file(TRUTH, paths, n_resamples=1)
    assert result["metrics"]["AP"]["value"] == pytest.approx(ap, abs=5e-6), why


def test_the_published_exist_map_is_read_as_it_is():
    path = DATA / "visual_rft" / "exist_map_coco_Qwen2_vl_2B_baseline.json.gz"
    counts = score_coco_file(TRUTH, [FOUND], asked="exist_map", exist_map=path, n_resamples=1)["counts"]
    assert counts["images"] - counts["images_not_in_exist_map"] == 11
    assert counts["exist_map_images_without_annotations"] == 5000 - 11
    assert 0 < counts["detections_not_asked"] < counts["detections"]


def test_lvis():
    result = score_lvis_file(LVIS_TRUTH, [LVIS_FOUND], n_resamples=50)
    expected = json.loads((DATA / "lvis" / "synthetic_results_seed0_expected.json").read_text())["lvis"]
    assert list(result["metrics"]) == list(LVIS_FIGURES)
    assert values(result) == pytest.approx(expected, abs=1e-12)
    assert len(result["per_class"]) + len(result["absent_classes"]) == 1230
    for name in ("AP", "APr", "APc", "APf"):
        assert len(result["metrics"][name]["interval"]) == 2


@pytest.mark.parametrize(
    ("where", "ap", "why"),
    [
        (None, 1.0, "the gold itself"),
        ("not verified", 1.0, "false boxes where nobody looked cost nothing"),
        ("negative", 0.7458477460082081, "surer false boxes where the category is known to be absent cost"),
    ],
)
def test_lvis_gold_as_detections(tmp_path, where, ap, why):
    truth = read_truth(LVIS_TRUTH, is_federated=True)
    right = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": 1.0}
        for one in truth.dataset["annotations"]
    ]
    false = []
    for image in truth.dataset["images"]:
        verified = {number for image_id, number in truth.present if image_id == image["id"]}
        absent = image["neg_category_ids"]
        elsewhere = [number for number in truth.class_names if number not in {*verified, *absent}][::10]
        for number in {None: [], "negative": absent, "not verified": elsewhere}[where]:
            false.append({"image_id": image["id"], "category_id": number, "bbox": [0, 0, 10, 10], "score": 2.0})
    if where == "not verified":  # of equal ones the earlier are kept: no gold may fall to the limit of 300
        false = [{**one, "score": 0.5} for one in false]
    result = score_lvis_file(LVIS_TRUTH, written(tmp_path, right + false), n_resamples=1)
    assert result["metrics"]["AP"]["value"] == pytest.approx(ap, abs=1e-12), why
    assert result["counts"]["detections_not_verified"] == (len(false) if where == "not verified" else 0)


@pytest.mark.parametrize(
    ("name", "n_right", "n_images"), [("fgvc_aircraft", 823, 3333), ("oxford_flowers", 1736, 2463)]
)
def test_stored_clip_predictions(name, n_right, n_images):
    path = DATA / "visual_rft" / f"{name}.pth"
    result = score_label_file(path, classes=str(path.with_suffix(".txt")), n_resamples=50)
    assert (result["counts"]["right"], result["counts"]["images"]) == (n_right, n_images)
    assert result["metrics"]["accuracy"]["value"] == n_right / n_images
    assert result["metrics"]["accuracy_substring"]["value"] >= n_right / n_images
    assert result["absent_classes"] == []


def test_reasonseg_cases_pixel_for_pixel():
    path = DATA / "reasonseg" / "mask_cases.json"
    result, cases = score_mask_file(path, n_resamples=100), json.loads(path.read_text())
    assert len(result["cases"]) == len(cases) == 100
    for ours, theirs in zip(result["cases"], cases, strict=True):
        assert ours == {key: theirs[key] for key in ours}
    assert result["metrics"]["gIoU"]["value"] == pytest.approx(0.318858, abs=1e-5)
    assert result["metrics"]["cIoU"]["value"] == pytest.approx(0.341014, abs=1e-5)
