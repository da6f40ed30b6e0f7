"""Label lists: strict accuracy and the published rule, both forms of file, and what is refused."""

from __future__ import annotations

import json
import time

import pytest
import torch

from vrft.errors import UserError
from vrft.evaluate.label_lists import is_substring_match, score_label_file


def write_lines(folder, *rows):
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("label", "prediction", "is_strict", "is_loose", "why"),
    [
        ("Maine Coon", "maine_coon", True, True, "case, blanks and underscores"),
        ("Maine Coon", "maine coon cat", False, True, "the label is in the prediction"),
        ("cat", "", False, True, "nothing is in everything: the published rule's flaw"),
        ("cat", "dog cat cow", False, True, "all classes listed: the same"),
        ("cat", "dog", False, False, "another class"),
        ("C-130", "C130", True, False, "hyphens: only the published rule keeps them"),
        ("cat", None, False, False, "unreadable"),
    ],
)
def test_the_two_rules(tmp_path, label, prediction, is_strict, is_loose, why):
    path = write_lines(tmp_path, {"image": "a.jpg", "label": label, "prediction": prediction})
    metrics = score_label_file(path, n_resamples=5)["metrics"]
    assert (metrics["accuracy"]["value"], metrics["accuracy_substring"]["value"]) == (is_strict, is_loose), why
    assert is_substring_match(label, prediction) == is_loose


def test_classes_and_counts(tmp_path):
    names = [("a", "cat", "cat"), ("b", "cat", "dog"), ("b", "dog", None), ("c", "dog", "bird")]
    path = write_lines(tmp_path, *({"image": i, "label": n, "prediction": p} for i, n, p in names))
    result = score_label_file(path, classes=["cat", "dog", "cow"], n_resamples=20)
    assert {name: one["accuracy"]["value"] for name, one in result["per_class"].items()} == {"cat": 0.5, "dog": 0.0}
    assert result["absent_classes"] == ["cow"]
    assert result["counts"] == {
        "images": 4,
        "right": 1,
        "unreadable_predictions": 1,
        "predictions_of_no_class": 1,
        "duplicate_images": 1,
    }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "a", "label": "cat"}, ["line 2: prediction missing"]),
        ({"image": "a", "label": 3, "prediction": "cat"}, ["label is '3'"]),
        ({"image": "", "label": "cat", "prediction": "cat"}, ["image is ''"]),
        ({"image": "a", "label": "cat", "prediction": ["cat"]}, ["prediction is", "null for an unreadable answer"]),
        ({"image": "a", "label": "cta", "prediction": "cat"}, ["label is 'cta'", "did you mean cat?"]),
    ],
)
def test_a_wrong_line_is_refused(tmp_path, row, words):
    path = write_lines(tmp_path, {"image": "a", "label": "cat", "prediction": "cat"}, row)
    with pytest.raises(UserError) as refused:
        score_label_file(path, classes=["cat", "dog"])
    assert all(word in str(refused.value) for word in words), str(refused.value)


def save(folder, *pairs):
    path = folder / "list.pth"
    entries = [
        {f"{i}.jpg": {"label": torch.tensor(label), "pred_logits": torch.zeros(2), "pred_class": torch.tensor(found)}}
        for i, (label, found) in enumerate(pairs)
    ]
    torch.save(entries, path)
    return path


def test_numbers_are_compared_as_numbers(tmp_path):
    path = save(tmp_path, (0, [0, 1]), (1, [2, 1]), (2, [2, 0]))
    plain = score_label_file(path, n_resamples=5)
    assert plain["metrics"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert "accuracy_substring" not in plain["metrics"]
    named = score_label_file(path, classes=["red cat", "cat", "Cat-"], n_resamples=5)
    assert named["metrics"]["accuracy"]["value"] == pytest.approx(2 / 3)  # 1 and 2 are two classes, alike as they read
    assert named["metrics"]["accuracy_substring"]["value"] == 1.0


class Payload:
    def __reduce__(self):
        return (print, ("a payload ran",))


def test_a_pth_runs_no_code(tmp_path, capsys):
    path = tmp_path / "list.pth"
    torch.save([Payload()], path)
    with pytest.raises(UserError, match="cannot be read as tensors"):
        score_label_file(path)
    assert "payload" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "classes", "words"),
    [
        ({"a": 1}, None, "a list of"),
        ([1], None, "row 1"),
        ([{"a.jpg": {"label": torch.tensor(0)}}], None, "row 1"),
        ([{"a.jpg": {"label": torch.tensor(0), "pred_class": torch.tensor([])}}], None, "row 1"),
        ([{"a.jpg": {"label": torch.tensor(2), "pred_class": torch.tensor([0])}}], ["cat", "dog"], "row 1: class 2"),
        ([], None, "holds no case"),
    ],
)
def test_a_pth_of_another_form_is_refused(tmp_path, content, classes, words):
    path = tmp_path / "list.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=words):
        score_label_file(path, classes=classes)


@pytest.mark.parametrize("name", ["nowhere.jsonl", "nowhere.pth"])
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(UserError, match="no such file"):
        score_label_file(tmp_path / name)


def test_wrong_labels_beyond_those_that_are_printed_are_compared_with_no_name(tmp_path):
    names = [f"class {n}" for n in range(3000)]
    path = write_lines(
        tmp_path, *({"image": f"{n}.jpg", "label": f"klass {n}", "prediction": None} for n in range(3000))
    )
    begun = time.process_time()
    with pytest.raises(UserError, match=r"did you mean class 19.*\n.* and 2980 more"):
        score_label_file(path, classes=names)
    assert time.process_time() - begun < 10  # half a second; a minute and more, if each is compared with each
