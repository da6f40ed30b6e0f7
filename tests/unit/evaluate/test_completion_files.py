"""vrft's own completions judged by the annotations that their rows were built from: COCO's and LVIS's own figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vrft.cli.main import main
from vrft.tasks.answers import normal_name


def annotations(*, is_federated, n_images=8):
    """Boxes of four classes in images of 200 × 100; class 4 is only looked for in vain."""
    generator = np.random.default_rng(0)
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 10 * k, "name": f"big class_{k}", "frequency": "rcfr"[k - 1]} for k in range(1, 5)],
    }
    for image_id in range(1, n_images + 1):
        extra = {"neg_category_ids": [40], "not_exhaustive_category_ids": [10]} if is_federated else {}
        shown = {"id": image_id, "width": 200, "height": 100, "coco_url": f"http://x/{image_id}.jpg", **extra}
        truth["images"].append({**shown, "file_name": f"{image_id}.jpg"})
        for category_id in (10, 20, 30):
            for _ in range(int(generator.integers(0, 3))):
                x, y = generator.integers(0, 60, 2).tolist()
                w, h = generator.integers(20, 40, 2).tolist()
                own = {"image_id": image_id, "category_id": category_id, "bbox": [x, y, w, h], "area": w * h}
                truth["annotations"].append({"id": len(truth["annotations"]) + 1, "iscrowd": 0, **own})
    return truth


def answered(truth, *, is_labelled):
    """Rows for each image and class (or each image), and completions that find most boxes, a little beside."""
    generator = np.random.default_rng(1)
    names = {one["id"]: one["name"] for one in truth["categories"]}
    rows, completions, detections = [], [], []
    for image in truth["images"][:-1]:  # the last image was not asked
        asked = [list(names)] if is_labelled else [[number] for number in names]
        for numbers in asked:
            own = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
            own = [one for one in own if one["category_id"] in numbers]
            golds = [(one["category_id"], one["bbox"]) for one in own]
            row = {"row_id": f"{image['id']}-{numbers[0]}", "images": [image["file_name"]], "image_wh": [200, 100]}
            row |= {"image_id": image["id"], "gold": [[x, y, x + w, y + h] for _, (x, y, w, h) in golds]}
            if is_labelled:
                labelled = zip(golds, row["gold"], strict=True)
                row["gold"] = [{"label": names[number], "xyxy": xyxy} for (number, _), xyxy in labelled]
                row["categories"] = list(names.values())
            else:
                row |= {"category": names[numbers[0]], "category_id": numbers[0]}
            boxes = []
            for number, (x, y, w, h) in [*golds, (numbers[0], [100, 50, 30, 30])]:
                score = round(float(generator.uniform(0.1, 1)), 2)
                x, y = x + int(generator.integers(0, 9)), y + int(generator.integers(0, 9))
                label = f", 'Label': '{normal_name(names[number])}'" if is_labelled else ""
                boxes.append(f"{{'Position': [{x}, {y}, {x + w}, {y + h}], 'Confidence': {score}{label}}}")
                found = {"image_id": image["id"], "category_id": number, "bbox": [x, y, w, h], "score": score}
                detections.append(found)
            rows.append(row)
            text = f"<think></think><answer>[{', '.join(boxes)}]</answer>"
            completions.append({"row_id": row["row_id"], "text": text})
    return rows, completions, detections


def write(name, lines):
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("protocol", ["coco_all", "coco_present", "lvis_federated"])
@pytest.mark.parametrize("is_labelled", [False, True])
def test_own_completions_have_the_figures_of_their_results_file(tmp_path, monkeypatch, protocol, is_labelled):
    monkeypatch.chdir(tmp_path)
    truth = annotations(is_federated=protocol.startswith("lvis"))
    rows, completions, detections = answered(truth, is_labelled=is_labelled)
    write("rows.jsonl", rows)
    write("completions.jsonl", completions)
    Path("dt.json").write_text(json.dumps(detections))
    Path("gt.json").write_text(json.dumps(truth))
    kept = {one["id"] for one in truth["images"][:-1]}
    asked = {
        **truth,
        "images": truth["images"][:-1],
        "annotations": [one for one in truth["annotations"] if one["image_id"] in kept],
    }
    Path("asked.json").write_text(json.dumps(asked))
    shared = [f"protocol={protocol}", "protocol.n_resamples=9"]
    own = ["task=detection", f"task.labelled={is_labelled}".lower(), "rows=rows.jsonl", "completions=completions.jsonl"]
    assert main(["score", *shared, *own, "annotations=gt.json", "frame=pixels", "out=own.json"]) == 0
    assert main(["score", *shared, "annotations=asked.json", "detections=dt.json", "out=file.json"]) == 0
    by_own, by_file = (json.loads(Path(name).read_text()) for name in ("own.json", "file.json"))
    assert {name: by_own["metrics"][name] for name in by_file["metrics"]} == by_file["metrics"]
    assert by_own["metrics"]["AP"]["value"] > 0.05
    assert "AR100" not in by_own["metrics"] or not protocol.startswith("lvis")
    assert by_own["per_class"] == by_file["per_class"]
    assert by_own["absent_classes"] == by_file["absent_classes"] == ["big class_4"]
    assert by_own["counts"]["annotated_images_not_asked"] == 1
    assert json.loads(Path("own.detections.json").read_text()) == detections


def test_a_label_of_no_class_is_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth = annotations(is_federated=False)
    rows, completions, _ = answered(truth, is_labelled=True)
    completions[0]["text"] = completions[0]["text"].replace("bigclass1", "kite")
    n_kites = completions[0]["text"].count("kite")
    write("rows.jsonl", rows)
    write("completions.jsonl", completions)
    Path("gt.json").write_text(json.dumps(truth))
    own = ["task=detection", "task.labelled=true", "rows=rows.jsonl", "completions=completions.jsonl", "frame=pixels"]
    assert main(["score", *own, "annotations=gt.json", "protocol.n_resamples=1", "out=own.json"]) == 0
    assert json.loads(Path("own.json").read_text())["counts"]["detections_with_an_unknown_label"] == n_kites > 0


def test_rows_alone_give_classes_too(tmp_path, monkeypatch):
    """Without annotations the rows' own golds are the truth: here they are the same."""
    monkeypatch.chdir(tmp_path)
    truth = annotations(is_federated=False)
    rows, completions, _ = answered(truth, is_labelled=False)
    write("rows.jsonl", rows)
    write("completions.jsonl", completions)
    Path("gt.json").write_text(json.dumps(truth))
    own = ["task=detection", "rows=rows.jsonl", "completions=completions.jsonl", "frame=pixels"]
    shared = ["score", *own, "protocol.n_resamples=9"]
    assert main([*shared, "out=rows.json"]) == 0
    assert main([*shared, "annotations=gt.json", "out=file.json"]) == 0
    by_rows, by_file = (json.loads(Path(name).read_text()) for name in ("rows.json", "file.json"))
    assert {name: one["value"] for name, one in by_rows["metrics"].items()} == pytest.approx(
        {name: one["value"] for name, one in by_file["metrics"].items()}, abs=1e-12
    )
    assert by_rows["per_class"].keys() == by_file["per_class"].keys() == {f"big class_{k}" for k in (1, 2, 3)}
    assert by_rows["absent_classes"] == ["big class_4"]


@pytest.mark.parametrize("n_shards", [2, 3, 4, 8])
@pytest.mark.parametrize("is_blocked", [True, False])
def test_shards_give_the_figures_of_the_whole(tmp_path, monkeypatch, n_shards, is_blocked):
    monkeypatch.chdir(tmp_path)
    truth = annotations(is_federated=False)
    detections = answered(truth, is_labelled=False)[2]
    Path("gt.json").write_text(json.dumps(truth))
    size = -(-len(detections) // n_shards)
    for n in range(n_shards):
        part = detections[n * size : (n + 1) * size] if is_blocked else detections[n::n_shards]
        Path(f"dt-{n}-of-{n_shards}.json").write_text(json.dumps(part))
    Path("dt.json").write_text(json.dumps(detections))
    shards = ",".join(f"dt-{n}-of-{n_shards}.json" for n in range(n_shards))
    for name, given in (("whole", "dt.json"), ("parts", f"[{shards}]")):
        arguments = ["annotations=gt.json", f"detections={given}", "protocol.n_resamples=9", f"out={name}.json"]
        assert main(["score", *arguments]) == 0
    whole, parts = (json.loads(Path(f"{name}.json").read_text()) for name in ("whole", "parts"))
    assert parts["counts"].pop("images_in_several_files") > whole["counts"].pop("images_in_several_files") == 0
    assert {**whole, "inputs": {}} == {**parts, "inputs": {}}


def dog_row(truth, **columns):
    """A row that asks for one class of one image, found in full."""
    names = {one["id"]: one["name"] for one in truth["categories"]}
    gold = next(one for one in truth["annotations"] if one["category_id"] == 10)
    golds = [
        one["bbox"] for one in truth["annotations"] if (one["image_id"], one["category_id"]) == (gold["image_id"], 10)
    ]
    boxes = [[x, y, x + w, y + h] for x, y, w, h in golds]
    row = {"row_id": "r", "images": ["a.jpg"], "image_wh": [200, 100], "image_id": gold["image_id"], "category_id": 10}
    text = ", ".join(f"{{'Position': {box}, 'Confidence': 0.9}}" for box in boxes)
    completion = {"row_id": "r", "text": f"<think></think><answer>[{text}]</answer>"}
    return {**row, "category": names[10], "gold": boxes, **columns}, completion


def score_one(truth, row, completion, *extra, protocol="coco_all"):
    write("rows.jsonl", [row])
    write("completions.jsonl", [completion])
    Path("gt.json").write_text(json.dumps(truth))
    files = ["rows=rows.jsonl", "completions=completions.jsonl", "annotations=gt.json", "out=own.json"]
    return main(
        ["score", f"protocol={protocol}", "task=detection", "frame=pixels", "protocol.n_resamples=2", *files, *extra]
    )


@pytest.mark.parametrize("protocol", ["coco_all", "coco_present", "lvis_federated"])
def test_classes_that_no_row_asks_for_do_not_count_unless_chosen(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    truth = annotations(is_federated=protocol.startswith("lvis"))
    row, completion = dog_row(truth)
    own = [one for one in truth["annotations"] if one["image_id"] == row["image_id"]]
    n_others = sum(one["category_id"] != 10 for one in own)
    assert score_one(truth, row, completion, protocol=protocol) == 0
    scored = json.loads(Path("own.json").read_text())
    assert scored["metrics"]["AP"]["value"] == pytest.approx(1.0)
    assert scored["counts"]["classes_not_asked"] == 3
    assert scored["counts"]["gold_boxes_not_asked"] == 0
    names = "[big class_1,big class_2,big class_3,big class_4]"
    assert score_one(truth, row, completion, f"classes={names}", protocol=protocol) == 0
    chosen = json.loads(Path("own.json").read_text())
    assert chosen["metrics"]["AP"]["value"] < 1
    assert chosen["counts"]["gold_boxes_not_asked"] == n_others > 0
    assert chosen["counts"].get("questions_not_asked") == (3 if protocol == "coco_all" else None)


def test_of_what_is_asked_alone_gold_that_is_not_does_not_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth = annotations(is_federated=False)
    row, completion = dog_row(truth)
    names = "classes=[big class_1,big class_2,big class_3,big class_4]"
    assert score_one(truth, row, completion, names, protocol="coco_asked") == 0
    scored = json.loads(Path("own.json").read_text())
    assert scored["metrics"]["AP"]["value"] == pytest.approx(1.0)
    assert scored["absent_classes"] == [f"big class_{k}" for k in (2, 3, 4)]


def test_a_class_of_another_name_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    truth = annotations(is_federated=False)
    row, completion = dog_row(truth, category="cat")
    assert score_one(truth, row, completion) == 2
    assert "category_id 10 is 'cat' here, but 'big class_1' there" in capsys.readouterr().err


def test_classes_that_differ_by_a_hyphen_stay_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth = annotations(is_federated=False)
    truth["categories"][1]["name"] = "big-class-1"
    row, completion = dog_row(truth)
    golds = row["gold"]
    row = {**row, "categories": ["big class_1"], "gold": [{"label": "big class_1", "xyxy": xyxy} for xyxy in golds]}
    completion["text"] = completion["text"].replace("0.9}", "0.9, 'Label': 'big class_1'}")
    assert score_one(truth, row, completion, "task.labelled=true") == 0
    assert json.loads(Path("own.json").read_text())["metrics"]["AP"]["value"] == pytest.approx(1.0)
    n_boxes = completion["text"].count("big class_1")
    completion["text"] = completion["text"].replace("big class_1", "bigclass1")  # either of the two
    assert score_one(truth, row, completion, "task.labelled=true") == 0
    assert json.loads(Path("own.json").read_text())["counts"]["detections_with_an_unknown_label"] == n_boxes > 0


def test_a_class_asked_for_in_vain_is_absent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"row_id": "r", "images": ["a.jpg"], "image_wh": [200, 100], "category": "zebra", "gold": []}
    write("rows.jsonl", [row])
    write("completions.jsonl", [{"row_id": "r", "text": "<think></think><answer>No Objects</answer>"}])
    assert main(["score", "task=detection", "rows=rows.jsonl", "completions=completions.jsonl", "out=own.json"]) == 0
    scored = json.loads(Path("own.json").read_text())
    assert scored["absent_classes"] == ["zebra"]
    assert scored["metrics"]["AP"] == {"value": None, "n": 1, "interval": None}
    found = {**row, "row_id": "s", "category": "Sea Lion", "gold": [[0, 0, 50, 50]]}
    write("rows.jsonl", [row, found])
    answers = {"r": "No Objects", "s": "[{'Position': [0, 0, 50, 50], 'Confidence': 0.9}]"}
    write(
        "completions.jsonl",
        [{"row_id": name, "text": f"<think></think><answer>{text}</answer>"} for name, text in answers.items()],
    )
    files = ["rows=rows.jsonl", "completions=completions.jsonl", "out=own.json", "frame=pixels"]
    assert main(["score", "task=detection", *files]) == 0
    scored = json.loads(Path("own.json").read_text())
    assert (scored["absent_classes"], list(scored["per_class"])) == (["zebra"], ["Sea Lion"])
