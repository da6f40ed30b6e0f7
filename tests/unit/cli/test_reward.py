"""The verbs judge and audit: cases in, verdicts out; the same values in any order, batch and process."""

from __future__ import annotations

import json
import multiprocessing
import random

import pytest
from PIL import Image

from vrft.cli.main import main
from vrft.cli.reward import judge_cases, preset, run
from vrft.config.schema import Reward
from vrft.config.verb_schema import RewardCasesConfig
from vrft.errors import UserError

BOX = "[{'Position': [0, 0, 500, 500], 'Confidence': 0.5}]"
CASE = {"completion": f"<think></think><answer>{BOX}</answer>", "solution": f"<answer>{BOX}</answer>"}


def write_lines(path, cases):
    path.write_text("".join(json.dumps(case) + "\n" for case in cases))
    return str(path)


def config(cases, out) -> RewardCasesConfig:
    reward = Reward.model_construct(**preset("visual_rft"))
    usual = {"task": {"name": "detection"}, "reward": reward, "trust_code": [], "frame": "norm1000"}
    return RewardCasesConfig.model_construct(**usual, cases=str(cases), out=str(out))


def test_a_verdict_holds_terms_total_answer_and_reason():
    [verdict] = judge_cases([CASE], task="detection", reward="visual_rft")
    assert verdict == {
        "terms": {"iou": 1.0, "confidence": 0.5, "format": 1.0},
        "total": 2.5,
        "answer": [{"xyxy": [0.0, 0.0, 500.0, 500.0], "confidence": 0.5, "label": ""}],
        "reason": None,
    }


@pytest.mark.parametrize(
    ("case", "frame", "task", "answer", "first_term"),
    [
        # without an image both are in the frame, whose unit the answer keeps
        ({"completion": "<answer>(100,0),(300,200)</answer>", "solution": "(100,0),(300,200)"}, "norm1000", "grounding",
         [100.0, 0.0, 300.0, 200.0], 1.0),
        # pixels of an image of unknown size are not cut
        ({"completion": "<answer>(100,0),(3000,200)</answer>", "solution": "(100,0),(3000,200)"}, "pixels", "grounding",
         [100.0, 0.0, 3000.0, 200.0], 1.0),
        # with an image the gold is in its pixels, the completion in the frame
        ({"completion": "<answer>(500,0),(1000,1000)</answer>", "gold": [32, 0, 64, 48], "image_wh": [64, 48],
          "phrase": "cup"}, "norm1000", "grounding", [32.0, 0.0, 64.0, 48.0], 1.0),
        # pixels as the model sees them: the case brings the seen size
        ({"completion": "<answer>(28,0),(56,28)</answer>", "gold": [32, 0, 64, 48], "image_wh": [64, 48],
          "seen_wh": [56, 28], "phrase": "cup"}, "seen_pixels", "grounding", [32.0, 0.0, 64.0, 48.0], 1.0),
        ({"completion": "<answer>3</answer>", "solution": "3"}, "norm1000", "counting", 3, 1.0),
        ({"completion": "<answer>Maine Coon.</answer>", "solution": "maine_coon"}, "norm1000", "classification",
         "Maine Coon", 1.0),
    ],
)  # fmt: skip
def test_cases_come_with_a_solution_or_as_rows(case, frame, task, answer, first_term):
    [verdict] = judge_cases([case], task=task, reward="strict", frame=frame)
    assert verdict["answer"] == answer
    assert next(iter(verdict["terms"].values())) == pytest.approx(first_term)


def test_an_image_gives_the_size(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    case = {
        "completion": "<answer>(500,0),(1000,1000)</answer>",
        "image": "a.png",
        "phrase": "x",
        "gold": [32, 0, 64, 48],
    }
    assert judge_cases([case], task="grounding", root=tmp_path)[0]["terms"]["iou"] == 1.0


def test_a_file_is_judged_line_by_line_in_order(tmp_path, capsys):
    cases = [CASE, CASE | {"completion": ""}, CASE]
    run(config(write_lines(tmp_path / "cases.jsonl", cases), tmp_path / "new" / "out.jsonl"))
    verdicts = [json.loads(line) for line in (tmp_path / "new" / "out.jsonl").read_text().splitlines()]
    assert [verdict["total"] for verdict in verdicts] == [2.5, 0.0, 2.5]
    assert verdicts == judge_cases(cases, reward="visual_rft")
    printed = capsys.readouterr().out
    assert "unreadable: no_answer" in printed
    assert "(n = 3)" in printed


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('{"completion": 3, "solution": "x"}', "line 1: column 'completion' is '3'"),
        ('{"solution": "x"}', "line 1: column 'completion' is missing; the row has solution"),
        (
            '{"row_id": "a", "text": "b"}',
            "line 1: a completion of a run, which does not hold the right answer; give the",
        ),
        ('{"completion": "a"}', "line 1: one of solution and gold is needed"),
        (json.dumps(CASE) + '\n{"completion": "a", "solution": "no box"}', "line 2: solution 'no box' cannot be read"),
        ('{"completion": "a", "gold": []}', "image or image_wh is needed"),
        (json.dumps(CASE | {"image_wh": [0, 0]}), "column 'image_wh' is [0, 0]"),
        ('{"completion": "a", "gold": [[5, 5, 1, 1]], "image_wh": [9, 9], "category": "x"}', "has no area"),
        ('{"completion": "a", "gold": [], "image": "no.png", "category": "x"}', "no.png"),
        ("nonsense", "line 1: not JSON"),
        ("", "holds no case"),
    ],
)
def test_bad_cases_are_named_and_nothing_is_written(tmp_path, lines, words):
    (tmp_path / "cases.jsonl").write_text(lines)
    with pytest.raises(UserError) as refused:
        run(config(tmp_path / "cases.jsonl", tmp_path / "out.jsonl"))
    assert words in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cases.jsonl"]


def test_a_term_of_ones_own_gets_the_images_of_a_runs_rows(tmp_path, monkeypatch):
    (tmp_path / "my_terms.py").write_text("def seen(parsed, row, images): return float(images[0].is_file())\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "images").mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(tmp_path / "data" / "images" / "a.png")
    row = {"row_id": "a", "images": ["images/a.png"], "image_wh": [64, 48], "category": "dog", "gold": []}
    write_lines(tmp_path / "data" / "test.jsonl", [row])
    write_lines(tmp_path / "completions.jsonl", [{"row_id": "a", "text": CASE["completion"]}])
    words = ["cases=completions.jsonl", "rows=data/test.jsonl", "out=out.jsonl", "trust_code=[my_terms]"]
    assert main(["reward", "task=detection", *words, "+reward.weights={my_terms.seen: 1}"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["terms"]["my_terms.seen"] == 1.0


def test_the_completions_of_a_run_are_judged_by_its_rows(tmp_path):
    row = {"row_id": "a", "images": ["/gone.png"], "image_wh": [64, 48], "category": "dog", "gold": [[0, 0, 32, 24]]}
    rows = write_lines(tmp_path / "test.jsonl", [row])
    completion = {"row_id": "a", "sample": 0, "text": CASE["completion"], "n_tokens": 3, "is_truncated": False}
    cases, out = write_lines(tmp_path / "completions.jsonl", [completion]), tmp_path / "out.jsonl"
    run(config(cases, out).model_copy(update={"rows": rows}))
    assert json.loads(out.read_text())["terms"]["iou"] == 1.0
    write_lines(tmp_path / "completions.jsonl", [completion | {"row_id": "b"}])
    with pytest.raises(UserError, match="line 1: row_id is 'b', which the file of rows does not have"):
        run(config(cases, out).model_copy(update={"rows": rows}))
    with pytest.raises(UserError, match="rows is nowhere: there is no such file"):
        run(config(cases, out).model_copy(update={"rows": "nowhere"}))


def test_the_completions_of_a_run_are_judged_in_the_frame_of_its_model(tmp_path):
    """Qwen2.5-VL writes pixels of the image as it is resized: 64 × 48 becomes 28 × 28 here."""
    row = {"row_id": "a", "images": ["/gone.png"], "image_wh": [64, 48], "category": "dog", "gold": [[0, 0, 32, 24]]}
    (tmp_path / "data").mkdir()
    rows = write_lines(tmp_path / "data" / "test.jsonl", [row])
    memory = {"min_pixels": 784, "max_pixels": 784}
    run_config = {"model": {"family": "qwen2_5_vl"}, "dataset": {"frame": None}, "memory": memory}
    (tmp_path / "config.yaml").write_text(json.dumps(run_config))
    text = CASE["completion"].replace("500, 500", "14, 14")
    cases, out = write_lines(tmp_path / "completions.jsonl", [{"row_id": "a", "text": text}]), tmp_path / "out.jsonl"
    asked = config(cases, out).model_copy(update={"rows": rows})
    with pytest.raises(UserError, match="reads boxes in seen_pixels; give frame=seen_pixels"):
        run(asked)
    run(asked.model_copy(update={"frame": "seen_pixels"}))
    assert json.loads(out.read_text())["terms"]["iou"] == 1.0


def test_a_gold_box_that_cannot_be_right_is_told_and_judged(tmp_path, capsys):
    cases = [CASE, CASE | {"solution": BOX.replace("500, 500", "0, 0")}, CASE | {"completion": "\ud800"}]
    run(config(write_lines(tmp_path / "cases.jsonl", cases), tmp_path / "out.jsonl"))
    assert "1 of 3 cases" in (told := capsys.readouterr().err)
    assert "line 2: box [0.0, 0.0, 0.0, 0.0] has no area" in told
    assert [json.loads(line)["terms"]["iou"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [1, 0, 0]
    with pytest.warns(UserWarning, match="case 2: box"):
        judge_cases(cases)


@pytest.mark.parametrize(
    ("case", "options", "words"),
    [
        ({"completion": "", "solution": "(1,2),(3,4)", "image_wh": [9, 9]}, {"frame": "seen_pixels"}, "seen_wh"),
        ({"completion": "", "solution": "(1,2),(3,4)"}, {"task": "pointing", "frame": "pixels"}, "image_wh is needed"),
        ({"completion": "", "solution": "dog", "aliases": "cat"}, {"task": "classification"}, "'aliases' is 'cat'"),
        ({"completion": "", "solution": "dog", "instruction": ["a"]}, {"task": "classification"}, "'instruction' is"),
        ({"completion": "", "solution": "(1,2),(3,4)", "seen_wh": 7}, {"frame": "norm1000"}, "'seen_wh' is 7"),
    ],
)
def test_what_would_be_judged_wrongly_is_refused(case, options, words):
    with pytest.raises(ValueError, match=f"case 1: .*{words}"):
        judge_cases([case], **{"task": "grounding"} | options)


def test_a_term_that_fails_names_the_line(tmp_path, monkeypatch):
    (tmp_path / "own_terms.py").write_text("def broken(parsed, row, images):\n    return row['golds']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    cases = write_lines(tmp_path / "cases.jsonl", [CASE, CASE])
    reward = Reward.model_construct(**preset("visual_rft") | {"weights": {"own_terms.broken": 1.0}})
    asked = config(cases, tmp_path / "out.jsonl").model_copy(update={"reward": reward, "trust_code": ["own_terms"]})
    with pytest.raises(UserError, match=r"own_terms\.broken failed on row cases\.jsonl, line 1 .*KeyError: 'golds'"):
        run(asked)


def test_the_cases_are_not_overwritten(tmp_path):
    path = write_lines(tmp_path / "cases.jsonl", [CASE])
    with pytest.raises(UserError, match="would be lost"):
        run(config(path, path))
    with pytest.raises(UserError, match="a folder; the name of a file"):
        run(config(path, tmp_path))


def many_cases() -> list[dict]:
    generator = random.Random(0)
    cases = []
    for _ in range(200):
        xyxys = [[generator.randint(0, 400) for _ in range(2)] + [generator.randint(500, 999) for _ in range(2)]
                 for _ in range(3)]  # fmt: skip
        boxes = [f"{{'Position': {xyxy}, 'Confidence': {generator.random():.2f}}}" for xyxy in xyxys]
        cases.append(CASE | {"completion": f"<think></think><answer>[{', '.join(boxes)}]</answer>"})
    return cases


def test_order_batches_and_processes_change_nothing():
    cases = many_cases()
    verdicts = judge_cases(cases)
    assert len({verdict["total"] for verdict in verdicts}) > 100
    order = random.Random(1).sample(range(len(cases)), len(cases))
    assert [verdicts[index] for index in order] == judge_cases([cases[index] for index in order])
    assert verdicts == [judge_cases([case])[0] for case in cases]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert verdicts == [verdict for part in pool.map(judge_cases, [cases[:70], cases[70:]]) for verdict in part]


def test_the_audit_prints_a_table_and_tells_by_its_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    assert main(["audit", "task=grounding", "reward=strict", "out=outcomes.json"]) == 0
    assert "0 of 25 attacks succeed" in capsys.readouterr().out
    assert {one["succeeds"] for one in json.loads((tmp_path / "outcomes.json").read_text())} == {False}
    rows = [{"category": "cup", "gold": [[1, 1, 30, 30], [40, 40, 60, 60]], "image_wh": [64, 64]}]
    write_lines(tmp_path / "rows.jsonl", rows * 2)
    write_lines(tmp_path / "built.jsonl", [rows[0] | {"row_id": n, "images": ["/elsewhere/a.png"]} for n in "ab"])
    assert main(["audit", "task=detection", "reward=visual_rft", "rows=built.jsonl"]) == 1
    (tmp_path / "built.jsonl").unlink()
    write_lines(tmp_path / "rows.jsonl", [{name: rows[0][name] for name in ("category", "gold")} | {"image": "/a.png"}])
    assert main(["audit", "task=detection", "reward=visual_rft", "rows=rows.jsonl"]) == 2
    assert "give image_wh, [width, height] in pixels, in place of image" in capsys.readouterr().err
    write_lines(tmp_path / "rows.jsonl", rows * 2)
    assert main(["audit", "task=detection", "reward=visual_rft", "rows=rows.jsonl"]) == 1
    assert "a model will learn them" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outcomes.json", "rows.jsonl"]
