"""AP and its bootstrap against the official evaluator: on real COCO data, on resampled copies, and at the edges."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from vrft.evaluate.bootstrap import COCO_FIGURES, class_samples, coco_matches, mean_samples
from vrft.evaluate.coco import (
    NAMES,
    asked_boxes,
    average_precision,
    average_precision_change,
    evaluate_boxes,
    official_figures,
)

COCO_FOLDER = Path(__file__).parents[3] / ".." / "shared" / "data" / "coco"
OFFICIAL = """
0.5045806987249628 0.6969727247299577 0.5729816669904824 0.5856257209410443 0.5193996948036719 0.5013978986347466
0.38681277964578054 0.5936795762842003 0.595352982877607 0.6398109626113442 0.5664205978994309 0.5642905982905982
"""


def test_with_present_only_categories_with_gold_count():
    """As COCO's evaluation of what a model was asked only for categories that are there."""
    box, other = [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]
    rows = [
        {"images": ["a.png"], "category": "cat", "gold": [box]},
        {"images": ["a.png"], "category": "dog", "gold": []},
        {"images": ["b.png"], "categories": ["cat", "dog"], "gold": [{"label": "dog", "xyxy": box}]},
    ]
    found = [[(box, 0.5)], [(box, 0.9)], [(box, 0.5, "Dog"), (other, 0.9, "cat")]]
    assert asked_boxes(rows, found, asked="all") == found
    present = asked_boxes(rows, found, asked="present")
    assert present == [[(box, 0.5)], [], [(box, 0.5, "Dog")]]
    assert average_precision(rows, present, n_resamples=1)["AP"]["value"] == pytest.approx(1)


def coco_data():
    """Real COCO ground truth (100 images) and results (734 boxes)."""
    if not COCO_FOLDER.is_dir():
        pytest.skip(f"no COCO annotations: {COCO_FOLDER} is not there")
    truth = json.loads((COCO_FOLDER / "instances_val2014_100.json").read_text())
    found = json.loads((COCO_FOLDER / "instances_val2014_fakebbox100_results.json").read_text())
    return truth, found


def detection_rows(n_images, seed=0, n_categories=3):
    """Rows and found boxes at random: right, shifted, missed and invented ones; few distinct scores, so ties."""
    generator = np.random.default_rng(seed)
    rows, found = [], []
    for image in range(n_images):
        for category in generator.permutation(n_categories)[: generator.integers(1, n_categories + 1)]:
            corners = generator.uniform(0, 30, size=(generator.integers(0, 4), 2))
            gold = np.concatenate([corners, corners + generator.uniform(15, 25, size=corners.shape)], axis=1)
            boxes = [box + generator.normal(0, 1.5, 4) for box in gold if generator.random() < 0.8]
            boxes += [np.array([0, 0, *generator.uniform(5, 40, 2)]) for _ in range(generator.integers(0, 2))]
            rows.append({"images": [f"{image}.png"], "category": f"class {category}", "gold": gold.tolist()})
            found.append([(box.tolist(), round(float(generator.random()), 1)) for box in boxes])
    return rows, found


def as_coco(rows, found, counts):
    """COCO data in which image number i stands `counts[i]` times, written independently of the code under test."""
    truth, detections = {"images": [], "annotations": [], "categories": []}, []
    names = sorted({row["category"] for row in rows})
    truth["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    paths = list(dict.fromkeys(row["images"][0] for row in rows))
    for path, count in zip(paths, counts, strict=True):
        for _ in range(count):
            image_id = len(truth["images"]) + 1
            truth["images"].append({"id": image_id})
            for row, boxes in zip(rows, found, strict=True):
                if row["images"][0] != path:
                    continue
                place = {"image_id": image_id, "category_id": names.index(row["category"]) + 1}
                for x1, y1, x2, y2 in row["gold"]:
                    box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                    truth["annotations"].append({**place, **box, "id": len(truth["annotations"]) + 1})
                for (x1, y1, x2, y2), score in boxes:
                    detections.append({**place, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
    return truth, detections


def resampled(evaluator, counts):
    """The twelve figures of one resample in which image number i stands `counts[i]` times."""
    samples = class_samples(coco_matches(evaluator), np.asarray(counts, float)[None], COCO_FIGURES)
    means = mean_samples(samples, COCO_FIGURES)
    return {name: None if np.isnan(values[0]) else values[0] for name, values in means.items()}


def test_the_official_figures_of_real_coco_data():
    truth, found = coco_data()
    figures = official_figures(evaluate_boxes(truth, found))
    assert list(figures.values()) == pytest.approx([float(value) for value in OFFICIAL.split()], abs=1e-12)


def test_equal_scores_keep_file_order():
    truth, found = coco_data()
    figures = official_figures(evaluate_boxes(truth, [{**box, "score": 1.0} for box in found]))
    assert figures["AP"] == pytest.approx(0.51382, abs=5e-6)


def test_the_identity_resample_is_the_official_figure_on_real_coco_data():
    evaluator = evaluate_boxes(*coco_data())
    official = official_figures(evaluator)
    assert len(official) == 12
    assert resampled(evaluator, np.ones(100)) == pytest.approx(official, abs=1e-12)


def test_rows_give_the_official_figures():
    rows, found = detection_rows(40)
    official = official_figures(evaluate_boxes(*as_coco(rows, found, [1] * 40)))
    figures = average_precision(rows, found, n_resamples=0)
    assert {name: figures[name]["value"] for name in NAMES} == pytest.approx({n: official[n] for n in NAMES}, abs=1e-12)
    assert figures["AP"]["n"] == 40


@pytest.mark.parametrize("seed", range(5))
def test_a_resample_is_what_the_official_code_says_of_copied_images(seed):
    rows, found = detection_rows(12, seed)
    # distinct scores: with ties the order among copies of an image would be a choice
    found = [[(xyxy, score + 1e-4 * i + 1e-3 * j) for j, (xyxy, score) in enumerate(b)] for i, b in enumerate(found)]
    counts = np.random.default_rng(seed).multinomial(12, [1 / 12] * 12)
    official = official_figures(evaluate_boxes(*as_coco(rows, found, counts)))
    evaluator = evaluate_boxes(*as_coco(rows, found, [1] * 12))
    assert resampled(evaluator, counts) == pytest.approx(official, abs=1e-12)


def test_a_thousand_resamples_of_300_images_take_seconds():
    rows, found = detection_rows(300, n_categories=10)
    start = time.process_time()
    figures = average_precision(rows, found, n_resamples=1000)
    assert time.process_time() - start < 10
    low, high = figures["AP"]["interval"]
    assert low < figures["AP"]["value"] < high


BOX = [0.0, 0.0, 10.0, 10.0]


@pytest.mark.parametrize(
    ("gold", "found", "expected", "why"),
    [
        ([[BOX]], [[(BOX, 0.9)]], 1.0, "the right box"),
        ([[BOX]], [[]], 0.0, "nothing found: the official reader of results would raise"),
        ([[]], [[(BOX, 0.9)]], None, "nothing to find: no figure"),
        ([[]], [[]], None, "nothing at all"),
        ([[BOX], []], [[(BOX, 0.5)], [(BOX, 0.9)]], 0.5, "a surer box in an image without any counts against"),
        ([[BOX]], [[((9.0, 9.0, 3.0, 3.0), 0.9)]], 0.0, "an inverted box is no box"),
        ([], [], None, "no rows"),
    ],
)
def test_edges(gold, found, expected, why):
    rows = [{"images": [f"{i}.png"], "category": "cup", "gold": boxes} for i, boxes in enumerate(gold)]
    figures = average_precision(rows, found, n_resamples=20)
    assert figures["AP"]["value"] == (None if expected is None else pytest.approx(expected)), why
    assert figures["AP"]["n"] == len(gold)
    assert (figures["AP"]["interval"] is None) == (expected is None)


def test_a_repeated_question_counts_as_a_further_image():
    rows = [{"images": ["0.png"], "problem": text, "gold": [BOX]} for text in ("find cups", "find cats")]
    figures = average_precision(rows, [[(BOX, 1.0)], []], n_resamples=0)
    assert (figures["AR100"]["value"], figures["AR100"]["n"]) == (0.5, 2)


def test_the_change_is_taken_on_the_same_resamples():
    rows, found = detection_rows(30)
    same = average_precision_change(rows, found, found, n_resamples=50)
    assert same["AP"] == {"value": 0.0, "n": 30, "interval": [0.0, 0.0]}
    nothing = average_precision_change(rows, [[] for _ in rows], found, n_resamples=50)
    assert nothing["AP"]["value"] == average_precision(rows, found, n_resamples=0)["AP"]["value"]


@pytest.mark.parametrize(
    ("change", "why"),
    [({"score": float("nan")}, "pycocotools takes NaN in silence"), ({"image_id": 7}, "an image that is not there")],
)
def test_a_broken_detection_is_refused(change, why):
    truth, detections = as_coco(*detection_rows(3), [1] * 3)
    with pytest.raises(ValueError, match="detection 0"):
        evaluate_boxes(truth, [{**detections[0], **change}])
