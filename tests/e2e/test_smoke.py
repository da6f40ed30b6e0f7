"""Train, evaluate, report: the whole path on the tiny model, two steps a task."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml
from safetensors.torch import load_file
from torture.harness import differences
from wandb_file import read_history, read_run

EXPERIMENTS = {
    "digits_detection": ("coco_asked_v1", "AP"),
    "digits_classification": ("classification_v1", "accuracy"),
    "digits_grounding": ("grounding_v1", "accuracy@0.5"),
    "digits_riddles": ("grounding_v1", "accuracy@0.5"),
}
RIDDLES = ("train", "experiment=digits_riddles", "debug=smoke")


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rollouts_of(run_dir):
    return {path.name: path.read_bytes() for path in sorted((run_dir / "rollouts").glob("*.jsonl"))}


@pytest.fixture(scope="module")
def riddles_run(vrft, tmp_path_factory):
    """The run directory of one whole smoke run, to look at and to compare with; not to be changed."""
    run_dir = tmp_path_factory.mktemp("riddles") / "run"
    vrft(*RIDDLES, "trainer.save_steps=1", f"run.dir={run_dir}")
    return run_dir


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_train_evaluates_trains_and_reports(vrft, tmp_path, request, experiment):
    if experiment == "digits_riddles":
        run_dir = request.getfixturevalue("riddles_run")
    else:
        run_dir = tmp_path / "run"
        vrft("train", f"experiment={experiment}", "debug=smoke", f"run.dir={run_dir}")
    protocol, metric = EXPERIMENTS[experiment]
    result = json.loads((run_dir / "result.json").read_text())
    for part in ("before", "after"):
        figure = result[part][protocol][metric]
        low, high = figure["interval"]
        assert 0 <= low <= high <= 1
        assert 0 <= figure["value"] <= 1
        assert figure["n"] == 16
    steps = [entry["step"] for entry in read_lines(run_dir / "metrics.jsonl") if "reward" in entry]
    assert steps == [1, 2]
    rollouts = [line for path in sorted((run_dir / "rollouts").glob("*.jsonl")) for line in read_lines(path)]
    assert len(rollouts) == 2 * 2 * 4  # steps x prompts x completions
    for name in ("before", "best"):
        assert len(read_lines(run_dir / "evaluations" / name / "test" / "completions.jsonl")) == 16
    assert metric in (run_dir / "report.html").read_text()
    provenance = json.loads((run_dir / "provenance.json").read_text())
    assert provenance["data_hash"] == result["data_hash"]


def test_sft_trains_on_the_same_rows_and_logs_no_reward(vrft, tmp_path, riddles_run):
    sft = tmp_path / "sft"
    vrft(*RIDDLES, "trainer=sft", f"run.dir={sft}", "evaluate.before=false")
    assert (riddles_run / "data" / "train.jsonl").read_bytes() == (sft / "data" / "train.jsonl").read_bytes()
    logged = read_lines(sft / "metrics.jsonl")
    assert any("loss" in entry for entry in logged)
    assert not any("reward" in entry for entry in logged)
    table = vrft("report", f"runs=[{riddles_run},{sft}]", f"out={tmp_path}").stdout
    assert "SFT" in table
    assert "RFT" in table


def test_two_processes_give_the_same_evaluation_as_one(vrft, tmp_path, riddles_run):
    two = tmp_path / "two"
    vrft(*RIDDLES, f"run.dir={two}", "launch=torchrun", "launch.nproc_per_node=2")
    name = "evaluations/before/test/completions.jsonl"
    assert (riddles_run / name).read_bytes() == (two / name).read_bytes()
    assert json.loads((two / "result.json").read_text())["after"] is not None


def test_zero3_trains_validates_and_evaluates_on_two_processes(vrft, tmp_path, riddles_run):
    """Processes that generate unlike numbers of tokens, in rollouts and validation, do not wait for each other."""
    two = tmp_path / "two"
    processes = ("launch=torchrun", "launch.nproc_per_node=2", "deepspeed=zero3")
    vrft(*RIDDLES, *processes, f"run.dir={two}", "evaluate.before=false", "evaluate.also=[last]")
    steps = [entry for entry in read_lines(two / "metrics.jsonl") if "reward" in entry]
    assert [entry["shared_prefix/fraction"] for entry in steps] == [1.0, 1.0]
    assert {"best", "last"} <= json.loads((two / "result.json").read_text())["test_sets"]["test"].keys()


def test_a_run_stopped_after_one_step_goes_on_to_the_same_weights(vrft, tmp_path, riddles_run):
    halved = tmp_path / "halved"
    shutil.copytree(riddles_run, halved)
    # As if killed in its second step: the first checkpoint is there, and some logs too many.
    for path in ("checkpoints/checkpoint-2", "checkpoints/last", "evaluations/best"):
        shutil.rmtree(halved / path)
    for path in ("result.json", "report.html"):
        (halved / path).unlink()
    vrft(*RIDDLES, "trainer.save_steps=1", f"run.dir={halved}", "run.resume=true")
    weights = "checkpoints/last/model.safetensors"
    assert (halved / weights).read_bytes() == (riddles_run / weights).read_bytes()
    assert rollouts_of(halved) == rollouts_of(riddles_run)
    validations = [
        [
            (entry["step"], entry["validation/iou"])
            for entry in read_lines(run_dir / "metrics.jsonl")
            if "validation/iou" in entry
        ]
        for run_dir in (riddles_run, halved)
    ]
    assert validations[0] == validations[1]
    assert len(validations[0]) == 3


@pytest.fixture(scope="module")
def wandb_sweep(vrft, tmp_path_factory):
    """The runs of a sweep that W&B follows offline, by their steps; that of two steps is `riddles_run` again."""
    folder = tmp_path_factory.mktemp("sweep") / "steps"
    followed = ("logging=wandb_offline", "logging.pictures_every=1", "logging.tags=[mine]")
    quick = ("trainer.save_steps=1", "evaluate.before=false")
    vrft(*RIDDLES[:1], "-m", *RIDDLES[1:], *quick, *followed, "trainer.max_steps=2,1", f"run.dir={folder}")
    return {n_steps: next(folder.glob(f"*,max_steps={n_steps},*")) for n_steps in (1, 2)}


def test_the_same_seed_gives_the_same_run_and_wandb_offline_holds_it(wandb_sweep, riddles_run):
    run_dir = wandb_sweep[2]
    assert len(rollouts_of(run_dir)) == 2
    assert differences(riddles_run, run_dir, last="checkpoint-2") == [], "weights, optimizer, logs, completions"
    (run_file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    history = read_history(run_file)
    logged = [entry for entry in history if any("iou/mean" in key for key in entry)]
    assert len(logged) == 2
    assert any("validation" in key for entry in history for key in entry)
    rewards = [entry["reward"] for entry in read_lines(run_dir / "metrics.jsonl") if "reward" in entry]
    assert [entry["train/reward"] for entry in logged] == rewards


def test_wandb_knows_the_sweep_the_config_and_the_result(wandb_sweep):
    for run_dir in wandb_sweep.values():
        (run_file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
        run = read_run(run_file)
        assert (run["name"], run["group"], run["job_type"]) == (run_dir.name, "steps", "grpo")
        assert {"reasoning_grounding", "grpo", "tiny", "digits_riddles", "mine"} <= set(run["tags"])
        config = yaml.safe_load((run_dir / "config.yaml").read_text())
        assert run["config"]["vrft"] == config
        accuracy = json.loads((run_dir / "result.json").read_text())["after"]["grounding_v1"]["accuracy@0.5"]
        assert run["summary"]["result/after/grounding_v1/accuracy@0.5"] == accuracy["value"]
        assert run["summary"]["result/n"] == accuracy["n"]


def test_wandb_shows_rollouts_with_boxes_in_pixels_of_the_image(wandb_sweep):
    run_dir = wandb_sweep[2]
    (files,) = run_dir.glob("wandb/offline-run-*/files")
    (run_file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    rows = {row["row_id"]: row for row in read_lines(run_dir / "data" / "train.jsonl")}
    shown = [entry for entry in read_history(run_file) if "rollouts/captions" in entry]
    assert [entry["train/global_step"] for entry in shown] == [1, 2]
    first = read_lines(run_dir / "rollouts" / "step_000000.jsonl")
    pictures = list(zip(shown[0]["rollouts/captions"], shown[0]["rollouts/all_boxes"], strict=True))
    assert len(pictures) == 4
    n_boxes = 0
    for caption, boxes in pictures:
        row = rows[caption.partition(":")[0]]
        (case,) = (one for one in first if one["row_id"] == row["row_id"] and caption.endswith(one["text"]))
        assert f"reward {case['total']:.2f}" in caption
        ((gold, _),) = overlay(files, boxes["ground_truth"])
        assert gold == pytest.approx(row["gold"])
        for answered, domain in overlay(files, boxes["prediction"]):
            written = [int(number) for number in re.findall(r"\d+", case["text"].partition("<answer>")[2])]
            width, height = row["image_wh"]  # the model writes 0 to 1000 of it
            in_pixels = [one * side / 1000 for one, side in zip(written, [width, height] * 2, strict=True)]
            assert answered == pytest.approx(in_pixels)
            assert domain == "pixel"
            n_boxes += 1
    assert n_boxes >= 3


def overlay(files, boxes):
    """`(x1, y1, x2, y2)` and the domain of each box of an overlay."""
    data = json.loads((files / boxes["path"]).read_text())["box_data"]
    return [([box["position"][key] for key in ("minX", "minY", "maxX", "maxY")], box["domain"]) for box in data]


def test_wandb_goes_on_in_the_same_run(vrft, wandb_sweep, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(wandb_sweep[1], run_dir)
    (run_dir / "result.json").unlink()
    again = ("logging=wandb_offline", "trainer.save_steps=1", "evaluate.before=false", "trainer.max_steps=1")
    vrft(*RIDDLES, *again, f"run.dir={run_dir}", "run.resume=true")
    ids = [path.name.rpartition("-")[2] for path in (run_dir / "wandb").glob("offline-run-*")]
    assert ids == [json.loads((run_dir / "provenance.json").read_text())["wandb_run_id"]] * 2


def test_sharing_prompts_changes_no_completion_and_no_weight(vrft, tmp_path, riddles_run):
    """The default `rollout=shared_prefix` against TRL's own path, through every part of a run."""
    stock = tmp_path / "stock"
    vrft(*RIDDLES, f"run.dir={stock}", "rollout=transformers", "evaluate.before=false", "trainer.save_steps=1")
    assert rollouts_of(stock) == rollouts_of(riddles_run)
    weights = [load_file(run_dir / "checkpoints/last/model.safetensors") for run_dir in (stock, riddles_run)]
    assert max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]) <= 1e-6
    steps = [
        [entry for entry in read_lines(run_dir / "metrics.jsonl") if "reward" in entry]
        for run_dir in (stock, riddles_run)
    ]
    for theirs, ours in zip(*steps, strict=True):
        assert ours["shared_prefix/fraction"] == 1.0
        assert "shared_prefix/fraction" not in theirs
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_tensorboard_writes_event_files(vrft, tmp_path):
    run_dir = tmp_path / "run"
    vrft(*RIDDLES, f"run.dir={run_dir}", "logging=tensorboard", "evaluate.before=false", "evaluate.after=false")
    assert list(run_dir.rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_an_adapter_trains_and_is_loaded_back(vrft, tmp_path):
    run_dir = tmp_path / "run"
    vrft(*RIDDLES, f"run.dir={run_dir}", "model/peft=lora", "trainer.args.beta=0.04", "evaluate.also=[last]")
    vrft(
        "evaluate", "experiment=digits_riddles", "debug=smoke", f"run.dir={tmp_path / 'again'}",
        f"model.path={run_dir / 'checkpoints' / 'last'}",
    )  # fmt: skip
    trained = run_dir / "evaluations" / "last" / "test" / "completions.jsonl"
    again = tmp_path / "again" / "evaluations" / "before" / "test" / "completions.jsonl"
    assert trained.read_bytes() == again.read_bytes()
