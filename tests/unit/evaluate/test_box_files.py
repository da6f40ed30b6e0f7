"""COCO and LVIS result files: the official libraries' own figures, and what each protocol leaves out."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from two_boxes import RIGHT, TRUTH, write

from vrft.errors import UserError
from vrft.evaluate.bootstrap import COCO_FIGURES, LVIS_FIGURES, class_samples, mean_samples
from vrft.evaluate.box_files import score_coco_file, score_lvis_file
from vrft.evaluate.coco import evaluate_coco
from vrft.evaluate.lvis import evaluate_lvis


def annotated(n_images=12, n_classes=5, seed=0):
    """An annotation file in both forms at once, and detections with ties, misses, inventions and all sizes of boxes.

    The last class has no gold, the one before it only crowds; classes are found that were not looked for.
    """
    generator = np.random.default_rng(seed)
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 * k + 2, "name": f"class {k}", "frequency": "rcf"[k % 3]} for k in range(n_classes)],
    }
    ids, detections = [one["id"] for one in truth["categories"]], []
    for i in range(n_images):
        image_id = 50 - i
        absent, partly = generator.permutation(ids)[:2].tolist(), generator.permutation(ids)[:1].tolist()
        image = {"id": image_id, "neg_category_ids": [], "not_exhaustive_category_ids": partly}
        truth["images"].append(image)
        for k, number in enumerate(ids):
            n_gold = int(generator.integers(0, 4)) if k < n_classes - 1 else 0
            image["neg_category_ids"] += [number] if number in absent and not n_gold else []
            for _ in range(n_gold):
                x, y, w, h = generator.uniform(10, 200, 4).tolist()
                gold = {"id": len(truth["annotations"]) + 1, "image_id": image_id, "category_id": number}
                crowd = {"iscrowd": int(k == n_classes - 2)}
                truth["annotations"].append({**gold, "bbox": [x, y, w, h], "area": w * h * 0.7, **crowd})
                if generator.random() < 0.8:
                    box = (np.array([x, y, w, h]) + generator.normal(0, 4, 4)).tolist()
                    detections.append({"image_id": image_id, "category_id": number, "bbox": box})
            if generator.random() < 0.5:
                box = generator.uniform(5, 300, 4).tolist()
                detections.append({"image_id": image_id, "category_id": number, "bbox": box})
    for one in detections:
        one["score"] = round(float(generator.random()), 1)
    return truth, [detections[i] for i in generator.permutation(len(detections))]


@pytest.fixture
def files(tmp_path):
    truth, detections = annotated()
    return write(tmp_path, truth, detections)


def official_coco(truth_path, detections_path):
    """The twelve figures by the official library from the files themselves."""
    gold = COCO(str(truth_path))
    evaluator = COCOeval(gold, gold.loadRes(str(detections_path)), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return dict(zip(COCO_FIGURES, evaluator.stats.tolist(), strict=True))


def official_lvis(truth_path, detections_path, monkeypatch):
    """The thirteen figures by the official library from the files themselves."""
    import lvis

    monkeypatch.setattr(np, "float", float, raising=False)
    evaluator = lvis.LVISEval(str(truth_path), str(detections_path), "bbox")
    evaluator.run()
    monkeypatch.undo()
    return {name: float(value) for name, value in evaluator.get_results().items()}


def values(result):
    return {name: -1.0 if metric["value"] is None else metric["value"] for name, metric in result["metrics"].items()}


def test_coco_figures_are_those_of_the_official_library(files):
    truth, [found] = files
    result = score_coco_file(truth, [found], n_resamples=20)
    assert values(result) == pytest.approx(official_coco(truth, found), abs=1e-12)
    assert result["absent_classes"] == ["class 3", "class 4"]
    assert list(result["per_class"]) == ["class 0", "class 1", "class 2"]
    mean = np.mean([one["AP"]["value"] for one in result["per_class"].values()])
    assert result["metrics"]["AP"]["value"] == pytest.approx(mean, abs=1e-12)
    assert result["metrics"]["AP"]["interval"] is not None


def test_lvis_figures_are_those_of_the_official_library(files, monkeypatch):
    truth, [found] = files
    result = score_lvis_file(truth, [found], n_resamples=20)
    assert values(result) == pytest.approx(official_lvis(truth, found, monkeypatch), abs=1e-12)
    assert result["counts"]["detections_not_verified"] > 0
    assert result["absent_classes"] == ["class 4"]  # LVIS knows no crowds


def test_lvis_takes_the_300_surest_of_an_image_over_all_classes(tmp_path, monkeypatch):
    truth, detections = annotated(n_images=3)
    crowd = [{**one, "score": one["score"] - 0.05} for one in detections] * 80
    gold_path, [found] = write(tmp_path, truth, crowd)
    result = score_lvis_file(gold_path, [found], n_resamples=1)
    assert result["counts"]["detections_beyond_limit"] > 100
    assert values(result) == pytest.approx(official_lvis(gold_path, found, monkeypatch), abs=1e-12)


@pytest.mark.parametrize("score", [score_coco_file, score_lvis_file])
def test_an_empty_list_scores_0(tmp_path, score):
    truth, [found] = write(tmp_path, annotated()[0], [])
    result = score(truth, [found], n_resamples=5)
    assert result["metrics"]["AP"]["value"] == 0.0
    assert result["counts"]["detections"] == 0
    assert result["counts"]["images_without_detections"] == 12


def copied(truth, detections, counts):
    """The files of a resample: image number i, by rising id, `counts[i]` times; equal scores made different."""
    scored = [{**one, "score": one["score"] + 1e-5 * i} for i, one in enumerate(detections)]
    more = {"images": [], "annotations": [], "categories": truth["categories"]}
    found = []
    for image, count in zip(sorted(truth["images"], key=lambda one: one["id"]), counts, strict=True):
        for _ in range(count):
            number = len(more["images"]) + 1
            more["images"].append({**image, "id": number})
            for one in truth["annotations"]:
                if one["image_id"] == image["id"]:
                    more["annotations"].append({**one, "image_id": number, "id": len(more["annotations"]) + 1})
            found += [{**one, "image_id": number} for one in scored if one["image_id"] == image["id"]]
    return more, found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("evaluate", "figures"), [(evaluate_coco, COCO_FIGURES), (evaluate_lvis, LVIS_FIGURES)])
def test_a_resample_is_what_the_official_code_says_of_copied_images(seed, evaluate, figures):
    truth, detections = annotated(seed=seed)
    ids = [one["id"] for one in truth["categories"]]
    counts = np.random.default_rng(seed).multinomial(12, [1 / 12] * 12)
    expected = evaluate(*copied(truth, detections, counts), ids)
    matches = evaluate(*copied(truth, detections, [1] * 12), ids).matches
    by_class = class_samples(matches, counts[None].astype(float), figures)
    means = mean_samples(by_class, figures, [one["frequency"] for one in truth["categories"]])
    found = {name: None if np.isnan(sample[0]) else sample[0] for name, sample in means.items()}
    assert found == pytest.approx(expected.figures, abs=1e-12)
    for name, sample in by_class.items():
        assert sample[:, 0] == pytest.approx(expected.by_class[name], abs=1e-12, nan_ok=True), name


def test_present_asks_only_for_what_is_there(files):
    truth, [found] = files
    everything, present = score_coco_file(truth, [found]), score_coco_file(truth, [found], asked="present")
    gold = {(one["image_id"], one["category_id"]) for one in json.loads(truth.read_text())["annotations"]}
    outside = [one for one in json.loads(found.read_text()) if (one["image_id"], one["category_id"]) not in gold]
    assert present["counts"]["detections_not_asked"] == len(outside) > 0
    assert present["metrics"]["AP"]["value"] > everything["metrics"]["AP"]["value"]


@pytest.mark.parametrize(
    ("exist_map", "ap", "left_out", "why"),
    [
        ({"1": ["cat"], "2": ["cat"]}, 1.0, 1, "asked in both: the dog was not asked for"),
        ({"1": ["cat"], "2": []}, 51 / 101, 2, "gold that was not asked for stays, and cannot be found"),
        ({"1": ["cat", "dog"]}, 51 / 101, 1, "of an image that the map lacks nothing was asked"),
        ({"1": ["cat"], "2": ["cat"], "9": ["dog"]}, 1.0, 1, "an image without annotations is counted"),
        ({}, 0.0, 3, "nothing was asked"),
    ],
)
def test_an_exist_map_says_what_was_asked(tmp_path, exist_map, ap, left_out, why):
    found = [*RIGHT, {**RIGHT[0], "category_id": 2}]
    truth, shards = write(tmp_path, TRUTH, found)
    path = tmp_path / "map.json"
    path.write_text(json.dumps(exist_map))
    result = score_coco_file(truth, shards, asked="exist_map", exist_map=path, n_resamples=1)
    assert result["metrics"]["AP"]["value"] == pytest.approx(ap), why
    assert result["counts"]["detections_not_asked"] == left_out, why
    assert result["counts"]["exist_map_images_without_annotations"] == ("9" in exist_map)
    assert result["absent_classes"] == ["dog"]


def test_the_annotation_id_0_counts_as_any_other(tmp_path):
    truth, shards = write(tmp_path, TRUTH, RIGHT)
    assert score_coco_file(truth, shards, n_resamples=1)["metrics"]["AP"]["value"] == pytest.approx(1.0)
    assert official_coco(truth, shards[0])["AP"] < 0.6  # whose 0 means "not matched"


def test_shards_are_one_list(tmp_path, files):
    truth, [found] = files
    detections = json.loads(found.read_text())
    halves = [[one for one in detections if one["image_id"] % 2 == rest] for rest in (0, 1)]
    _, shards = write(tmp_path / "shards", {}, *halves)
    (gold, together), expected = (truth, shards), score_coco_file(truth, [found], n_resamples=50)
    for order in (together, together[::-1]):  # ties within an image keep their order, images are sorted
        assert score_coco_file(gold, order, n_resamples=50) == expected


def test_duplicates_stay_and_are_counted(files, tmp_path):
    truth, [found] = files
    twice = json.loads(found.read_text()) * 2
    _, [path] = write(tmp_path / "twice", {}, twice)
    result = score_coco_file(truth, [path], n_resamples=1)
    assert result["counts"]["duplicate_detections"] == len(twice) // 2
    assert values(result) == pytest.approx(official_coco(truth, path), abs=1e-12)


def test_figures_of_chosen_classes(files, tmp_path):
    truth, [found] = files
    everything = score_coco_file(truth, [found], n_resamples=20)["per_class"]
    names = tmp_path / "names.txt"
    names.write_text("class 1\nclass 2\nclass 4")  # no newline at the end
    for classes in (str(names), ["class 1", "class 2", "class 4"]):
        result = score_coco_file(truth, [found], classes=classes, n_resamples=20)
        assert result["per_class"] == {name: everything[name] for name in ("class 1", "class 2")}
        assert result["absent_classes"] == ["class 4"]
        mean = np.mean([everything[name]["AP"]["value"] for name in ("class 1", "class 2")])
        assert result["metrics"]["AP"]["value"] == pytest.approx(mean, abs=1e-12)
    assert result["counts"]["detections_of_other_classes"] > 0
    with pytest.raises(UserError, match=r"'clas 1' is no class of gt.json; did you mean class 1?"):
        score_coco_file(truth, [found], classes=["clas 1"])


def test_importing_lvis_leaves_logging_as_it_was_and_gives_it_its_float():
    code = """
import logging
import numpy as np
from vrft.evaluate.lvis import import_lvis
before = list(logging.root.handlers), logging.root.level
lvis = import_lvis()
print((list(logging.root.handlers), logging.root.level) == before, lvis.__name__, np.float is float)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["True", "lvis", "True"], done.stderr
