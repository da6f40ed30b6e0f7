"""Annotations, results, exist maps and class names that are refused by name, all faults together."""

from __future__ import annotations

import copy
import json
import re

import pytest
from two_boxes import RIGHT, TRUTH, write

from vrft.data.class_names import read_class_names
from vrft.errors import UserError
from vrft.evaluate.box_files import score_coco_file, score_lvis_file
from vrft.evaluate.truth import read_truth


def broken(**changes):
    """TRUTH with changes of its first entries: `annotations={…}`, `images={…}`, `categories={…}`."""
    truth = copy.deepcopy(TRUTH)
    for part, change in changes.items():
        truth[part][0].update(change)
    return truth


@pytest.mark.parametrize(
    ("exist_map", "words"),
    [
        ({"1": ["cta"]}, ["image 1", "'cta'", "did you mean cat?"]),
        (["cat"], ["{image id: [category name, …]}"]),
        ({"1": "cat"}, ["{image id: [category name, …]}"]),
    ],
)
def test_a_wrong_exist_map_is_refused(tmp_path, exist_map, words):
    truth, shards = write(tmp_path, TRUTH, RIGHT)
    path = tmp_path / "map.json"
    path.write_text(json.dumps(exist_map))
    with pytest.raises(UserError) as refused:
        score_coco_file(truth, shards, asked="exist_map", exist_map=path)
    assert all(word in str(refused.value) for word in words)


def test_without_a_word_a_box_is_no_crowd(tmp_path):
    silent = broken()
    for one in silent["annotations"]:
        del one["iscrowd"]
    truth, shards = write(tmp_path, silent, RIGHT)
    assert score_coco_file(truth, shards, n_resamples=1)["metrics"]["AP"]["value"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": float("nan")}, ["detection 1", "score is 'nan'", "finite"]),
        ({"score": float("inf")}, ["score is 'inf'"]),
        ({"score": "0.5"}, ["score is '0.5'"]),
        ({"score": True}, ["score is 'True'"]),
        ({"score": None}, ["score is 'None'"]),
        ({"bbox": [0, 0, float("nan"), 1]}, ["bbox is [0, 0, nan, 1]", "four finite numbers"]),
        ({"bbox": [0, 0, -1, 1]}, ["bbox is [0, 0, -1, 1]", "not below 0"]),
        ({"bbox": [0, 0, 10**400, 1]}, ["four finite numbers"]),
        ({"bbox": [0, 0, 1]}, ["bbox is [0, 0, 1]"]),
        ({"bbox": None}, ["bbox is None"]),
        ({"image_id": 3}, ["image_id is '3'", "gt.json does not have"]),
        ({"image_id": "1"}, ["image_id is '1'"]),
        ({"image_id": [1]}, ["image_id is '[1]'"]),
        ({"category_id": 99}, ["category_id is '99'"]),
    ],
)
def test_a_wrong_detection_is_refused_by_number(tmp_path, change, words):
    truth, shards = write(tmp_path, TRUTH, [RIGHT[0], {**RIGHT[1], **change}])
    with pytest.raises(UserError) as refused:
        score_coco_file(truth, shards)
    assert all(word in str(refused.value) for word in ["dt0.json", *words])


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        ([{"annotations": RIGHT}], ["holds a dict with annotations", "a list is needed"]),
        ([[{"image_id": 1, "score": 1}]], ["detection 0: category_id, bbox missing", "image_id, score"]),
        ([[[1, 2]]], ["an object is needed"]),
        ([RIGHT, RIGHT[1:]], ["dt1.json: all its detections are in other files too"]),
    ],
)
def test_a_results_file_of_another_form_is_refused(tmp_path, shards, words):
    truth, paths = write(tmp_path, TRUTH, *shards)
    with pytest.raises(UserError) as refused:
        score_coco_file(truth, paths)
    assert all(word in str(refused.value) for word in words)


def test_a_file_that_is_given_twice_is_refused(tmp_path):
    truth, [found] = write(tmp_path, TRUTH, RIGHT)
    with pytest.raises(UserError, match=r"dt0.json is given 2 times"):
        score_coco_file(truth, [found, found])


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ([], ["holds a list", "an object with images, categories, annotations is right"]),
        (
            {"images": [], "annotations": [], "categories": "x"},
            ["categories is x", "images is []; a list with at least one entry"],
        ),
        (broken(annotations={"image_id": 5}), ["annotations[0] (id 0), image_id 5, category_id 1: image_id is 5"]),
        (
            broken(annotations={"category_id": 5}),
            ["annotations[0] (id 0), image_id 1, category_id 5: category_id is 5"],
        ),
        (
            broken(annotations={"bbox": [0, 0, 1, float("inf")]}),
            ["annotations[0] (id 0), image_id 1, category_id 1: bbox is [0, 0, 1, inf]"],
        ),
        (broken(annotations={"area": None}), ["annotations[0] (id 0), image_id 1, category_id 1: area is None"]),
        (broken(annotations={"iscrowd": 2}), ["annotations[0] (id 0), image_id 1, category_id 1: iscrowd is 2"]),
        (broken(annotations={"id": 7}), ["annotations[1]: an earlier entry has the id 7 too"]),
        (broken(images={"id": 2}), ["images[1]: an earlier entry has the id 2 too"]),
        (broken(images={"id": "a"}), ["images[0]: id is 'a'"]),
        (broken(categories={"name": "dog"}), ["categories[1] (id 2): category 1 has the name 'dog' too"]),
    ],
)
def test_wrong_annotations_are_refused_by_id(tmp_path, truth, words):
    path, shards = write(tmp_path, truth, RIGHT)
    with pytest.raises(UserError) as refused:
        score_coco_file(path, shards)
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_all_faults_are_shown_together_and_lvis_needs_its_own_fields(tmp_path):
    path, shards = write(tmp_path, TRUTH, RIGHT)
    with pytest.raises(UserError) as refused:
        score_lvis_file(path, shards)
    assert len(str(refused.value).splitlines()) == 1 + 2 + 2  # a frequency a category, two lists an image
    lists = "neg_category_ids is None; .*; not_exhaustive_category_ids is None"
    for position, number in ((0, 1), (1, 2)):
        assert f"gt.json, categories[{position}] (id {number}): frequency is None" in str(refused.value)
        assert re.search(rf"gt.json, images\[{position}\] \(id {number}\): {lists}", str(refused.value))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8 \\(byte 0"),
        (b"[" * 100_000, "not JSON"),
        (None, "no such"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, content, words):
    path = tmp_path / "gt.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as refused:
        read_truth(path, is_federated=False)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ("nowhere.txt", "no list and no file"),
        ([], "names no class"),
        (["cat", "dog", "cat"], "name 3: 'cat' is the class of name 1"),
        (["cat", " "], "name 2 is blank"),
    ],
)
def test_wrong_class_names_are_refused(classes, words):
    with pytest.raises(UserError, match=words):
        read_class_names(classes, key="classes")
