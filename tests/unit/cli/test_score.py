"""`vrft score` from its command line to its file: every protocol, nothing heavy imported, nothing half written."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vrft.cli.main import main

BOX = [0, 0, 10, 10]
TRUTH = {
    "images": [{"id": 1, "neg_category_ids": [2], "not_exhaustive_category_ids": []}],
    "categories": [{"id": 1, "name": "cat", "frequency": "f"}, {"id": 2, "name": "dog", "frequency": "r"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 100, "iscrowd": 0}],
}
FOUND = [{"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.5}]
MASK = {"height": 9, "width": 9, "shapes": [{"label": "target", "points": [[1, 1], [5, 1], [5, 5], [1, 5]]}]}
SCENE = {"images": ["a.png"], "image_wh": [100, 100]}
ROWS = {
    "grounding": {**SCENE, "row_id": "a", "phrase": "the cup", "gold": [0, 0, 50, 50]},
    "counting": {**SCENE, "row_id": "a", "category": "cup", "gold": 3},
    "classification": {**SCENE, "row_id": "a", "gold": "cat"},
    "detection": {**SCENE, "row_id": "a", "category": "cup", "gold": [[0, 0, 50, 50]]},
}
TEXTS = {
    "grounding": "(0,0),(500,500)",
    "counting": "3",
    "classification": "cat",
    "detection": "[{'Position': [0, 0, 500, 500], 'Confidence': 0.9}]",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a file of every kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # `main` leaves it at 1, which asks for tracebacks: put back after
    Path("gt.json").write_text(json.dumps(TRUTH))
    Path("dt.json").write_text(json.dumps(FOUND))
    Path("map.json").write_text(json.dumps({"1": ["cat"]}))
    Path("masks.json").write_text(json.dumps([{**MASK, "pred_box": [1, 1, 6, 6]}]))
    Path("labels.jsonl").write_text(json.dumps({"image": "a.jpg", "label": "cat", "prediction": "Cat"}) + "\n")
    Path("o.detections.json").write_text(json.dumps(TRUTH))
    Path("twice.jsonl").write_text(2 * (json.dumps(ROWS["grounding"]) + "\n"))
    Path("logprobs.jsonl").write_text(json.dumps({"row_id": "a", "text": "", "token_logprobs": [-0.1]}) + "\n")
    for task, row in ROWS.items():
        Path(f"{task}.jsonl").write_text(json.dumps(row) + "\n")
        text = f"<think>x</think><answer>{TEXTS[task]}</answer>"
        completion = {"row_id": "a", "sample": 0, "text": text, "n_tokens": 9, "is_truncated": False}
        Path(f"{task}_completions.jsonl").write_text(json.dumps(completion) + "\n")
    return tmp_path


def own(task):
    return f"task={task} rows={task}.jsonl completions={task}_completions.jsonl"


RUNS = [
    ("coco_all", "annotations=gt.json detections=dt.json", "AP"),
    ("coco_present", "annotations=gt.json detections=dt.json", "AP"),
    ("coco_exist_map", "annotations=gt.json detections=dt.json exist_map=map.json", "AP"),
    ("lvis_federated", "annotations=gt.json detections=dt.json", "AP"),
    ("classification", "cases=labels.jsonl", "accuracy"),
    ("reasonseg_lisa", "cases=masks.json", "gIoU"),
    ("reasonseg_first_polygon", "cases=masks.json", "cIoU"),
    ("grounding", own("grounding"), "accuracy@0.5"),
    ("counting", own("counting"), "accuracy"),
    ("classification", own("classification"), "accuracy"),
    ("coco_present", own("detection"), "AP"),
    ("coco_asked", own("detection"), "AP"),
    ("rows", own("counting"), "count"),
]


@pytest.mark.parametrize(("protocol", "arguments", "metric"), RUNS, ids=lambda value: value.split()[0])
def test_every_protocol_writes_its_figures(folder, capsys, protocol, arguments, metric):
    code = main(["score", f"protocol={protocol}", *arguments.split(), "protocol.n_resamples=5", "out=new/scores.json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    report = json.loads(Path("new/scores.json").read_text())
    assert report["protocol"] == f"{protocol}_v1"
    assert report["metrics"][metric]["value"] == pytest.approx(1.0, abs=1e-6)
    assert report["metrics"][metric]["n"] == 1
    assert report["metrics"][metric]["interval"] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert {"per_class", "absent_classes", "counts", "inputs"} <= set(report)
    files = [part.partition("=")[2] for part in arguments.split() if "." in part]
    assert report["inputs"] == {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}
    assert f"{protocol}_v1" in shown.out
    assert metric in shown.out
    assert [path.name for path in (folder / "new").iterdir()] == ["scores.json"]


def test_no_protocol_needs_torch(folder):
    commands = [
        ["score", f"protocol={one}", *more.split(), "out=o.json", "protocol.n_resamples=1"] for one, more, _ in RUNS
    ]
    code = f"""
import sys
from vrft.cli.main import main
codes = [main(arguments) for arguments in {commands!r}]
print(codes, sorted({{"torch", "transformers", "datasets", "trl"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines()[-1].split() == f"{[0] * len(RUNS)} []".split(), done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("annotations=gt.json", ["detections must be given for protocol=coco_all"]),
        ("annotations=gt.json detections=dt.json cases=x", ["cases is given, which protocol=coco_all does not read"]),
        ("protocol=coco_exist_map annotations=gt.json detections=dt.json", ["exist_map must be given"]),
        ("protocol=grounding", ["completions must be given", "rows must be given"]),
        ("protocol=reasonseg_lisa cases=masks.json mask_model=sam", ["case 0: image is 'None'", "mask_model"]),
        ("annotations=gt.json detections=dt.json mask_model=sam", ["mask_model is given", "reasonseg_*"]),
        (f"protocol=coco_all {own('detection')} detections=dt.json", ["detections is given", "reads completions"]),
        (f"protocol=lvis_federated {own('detection')}", ["annotations must be given"]),
        (
            "protocol=coco_asked annotations=gt.json detections=dt.json",
            ["completions must be given", "rows must be given"],
        ),
        (f"protocol=coco_exist_map {own('detection')}", ["annotations must be given", "exist_map must be given"]),
        (
            f"protocol=coco_all {own('detection')} annotations=gt.json",
            ["gt.json does not have", "image_id is None"],
        ),
        (
            f"protocol=coco_all {own('detection')} protocol.score_source=token_probability",
            ["row_id 'a': it has no token_logprobs", "evaluate again"],
        ),
        (
            f"protocol=coco_all {own('detection')} protocol.score_source=agreement",
            ["it has 0 samples besides sample 0"],
        ),
        (f"protocol=grounding {own('grounding')} +protocol.score_source=agreement", ["ranks boxes for AP"]),
        (
            f"protocol=grounding rows=twice.jsonl {own('grounding').split(maxsplit=2)[2]} task=grounding",
            ["'a': 2 rows"],
        ),
        ("protocol=rows rows=detection.jsonl completions=logprobs.jsonl task=detection", ["token_logprobs is [-0.1]"]),
        (f"protocol=coco_all {own('detection')} annotations=o.detections.json out=o.json", ["o.detections.json is a"]),
        ("annotations=gt.json detections=dt.json engine=official", ["no key 'engine'"]),
        ("annotations=gt.json detections=dt.json protocol.n_resamples=0", ["protocol.n_resamples is 0"]),
        ("annotations=gt.json detections=dt.json out=dt.json", ["out is dt.json"]),
        ("annotations=gt.json detections=nowhere.json", ["nowhere.json: there is no such file"]),
        ("annotation=gt.json", ["no key 'annotation'", "did you mean annotations?"]),
        ("protocol=lvis", ["protocol/lvis", "lvis_federated"]),
        (f"protocol=reasonseg_lisa {own('grounding')}", ["row a: no target_polygons"]),
        (f"protocol=coco_all {own('grounding')}", ["does not fit task=grounding"]),
        (f"protocol=grounding {own('grounding')} frame=seen_pixels", ["line 1: column 'seen_wh' is 'missing'"]),
        (f"protocol=grounding {own('grounding')} reward=iou_only reward.weights=null", ["reward.weights is None"]),
        (
            "protocol=rows task=counting rows=grounding.jsonl completions=counting.jsonl",
            ["'category' is missing; the row has images", "text is 'None'"],
        ),
    ],
)
def test_what_cannot_be_scored_is_a_message(folder, capsys, arguments, words):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    given = arguments.split()
    out = [] if any(one.startswith("out=") for one in given) else ["out=scores.json"]
    assert main(["score", *given, *out]) == 2
    shown = capsys.readouterr().err
    assert all(word in shown for word in words), shown
    assert "Traceback" not in shown
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before  # nothing written, nothing lost


def test_shards_of_the_same_name_are_told_apart(folder):
    for name, content in (("a", FOUND), ("b", [])):
        Path(name).mkdir()
        Path(name, "dt.json").write_text(json.dumps(content))
    assert main(["score", "annotations=gt.json", "detections=[a/dt.json,b/dt.json]", "out=scores.json"]) == 0
    assert set(json.loads(Path("scores.json").read_text())["inputs"]) == {"gt.json", "a/dt.json", "b/dt.json"}


@pytest.mark.parametrize(
    "arguments",
    ["protocol=reasonseg_lisa cases=masks.json", "protocol=lvis_federated annotations=gt.json detections=dt.json"],
)
def test_without_libgl_the_message_says_what_to_install(folder, arguments):
    broken = folder / "broken"
    broken.mkdir()
    (broken / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(broken), root])}
    command = [sys.executable, "-m", "vrft", "score", *arguments.split(), "out=scores.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 2
    assert "libGL.so.1" in done.stderr
    assert "opencv-python-headless" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("scores.json").exists()


@pytest.mark.parametrize(("category", "classes"), [(7, ["7"]), ({"id": 7}, [])])
def test_a_column_that_the_task_does_not_read_may_hold_anything(folder, category, classes):
    Path("grounding.jsonl").write_text(json.dumps(ROWS["grounding"] | {"category": category}) + "\n")
    assert main(["score", "protocol=grounding", *own("grounding").split(), "out=scores.json"]) == 0
    assert list(json.loads(Path("scores.json").read_text())["per_class"]) == classes
