"""The terms of a task as TRL's reward functions: values, logs and rollouts; from where the reference model comes."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
import torch
import trl
from safetensors.torch import load_file
from small_models import picture, save_model, small_model, small_processor
from transformers import AutoModelForImageTextToText

from vrft.tasks import load_task
from vrft.tasks.boxes import Frame
from vrft.tasks.reward import RewardFunction
from vrft.train.grpo import Rollouts, grpo_trainer

END = 7
ROW = {"row_id": "r", "phrase": "the digit four", "gold": [0, 0, 28, 56], "image_wh": [56, 56], "images": ["x.png"]}
FRAME = Frame("norm1000", (56, 56), (56, 56))
WEIGHTS = {"iou": 1.0, "confidence": 1.0, "format": 0.0}


@pytest.fixture
def called(tmp_path):
    """A batch recorded, and the term rewards called on it as TRL does: values by term, logged metrics, the folder."""
    rollouts = Rollouts(
        load_task("grounding"),
        {"r": ROW},
        lambda row: FRAME,
        reward=RewardFunction(load_task("grounding"), {"weights": WEIGHTS}),
        end_ids=[END],
        folder=tmp_path,
    )
    texts = [
        "<think></think><answer>(0,0),(500,1000)</answer>",  # the gold
        "<answer>(0,0),(1000,1000)</answer>",  # half of it right, no thought
        "<think>cut off",  # no answer, and no end token
    ]
    logged = {}
    batch = {
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "completion_ids": [[1, END], [1, END], [1, 1]],
    }
    rollouts.record(**batch, row_ids=["r"] * 3, step=4, log_metric=logged.__setitem__)
    others = {"prompts": ["?"] * 3, "trainer_state": None, "log_metric": None, "log_extra": None}
    values = {term.__name__: term(**batch, row_id=["r"] * 3, **others) for term in rollouts.term_rewards()}
    return values, logged, tmp_path


def test_terms_are_unweighted_and_only_those_of_the_task(called):
    values, _, _ = called
    assert values == {"iou": [1.0, 0.5, 0.0], "format": [1.0, 0.0, 0.0]}  # grounding has no confidence


def test_reading_is_logged_with_every_reason(called):
    _, logged, _ = called
    assert logged["parse_rate"] == pytest.approx(2 / 3)
    assert logged["unreadable/no_answer"] == pytest.approx(1 / 3)
    assert logged["unreadable/malformed"] == 0


def test_rollouts_hold_terms_total_and_truncation_once(called):
    _, _, folder = called
    lines = [json.loads(line) for line in (folder / "step_000004.jsonl").read_text().splitlines()]
    assert [line["total"] for line in lines] == [1.0, 0.5, 0.0]
    assert [line["is_truncated"] for line in lines] == [False, False, True]


def test_a_term_with_two_weights_is_two_functions_each_for_its_rows(tmp_path):
    task = load_task("mixed", tasks={"grounding": {}, "counting": {}})
    count = {**ROW, "row_id": "c", "task": "counting", "category": "dog", "gold": 1}
    reward = {"weights": {"iou": 1, "accuracy": 1, "format": 1}, "weights_for": {"counting": {"format": 0.5}}}
    rollouts = Rollouts(
        task,
        {"r": {**ROW, "task": "grounding"}, "c": count},
        lambda row: FRAME,
        reward=RewardFunction(task, reward),
        end_ids=[END],
        folder=tmp_path,
    )
    texts = ["<think></think><answer>(0,0),(500,1000)</answer>", "<answer>1</answer>"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    found = {term.__name__: term(completions, [[END], [END]], ["r", "c"]) for term in rollouts.term_rewards()}
    assert found == {"iou": [1.0, None], "format": [1.0, None], "accuracy": [None, 1.0], "format@0.5": [None, 0.0]}


# --- the KL reference ------------------------------------------------------------------------------------------------

SHA = "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache without a network, that holds one revision of acme/tiny-vl: not the newest, as after
    `hf download --revision`."""
    repository = tmp_path / "hub" / "models--acme--tiny-vl"
    (repository / "refs").mkdir(parents=True)
    save_model(repository / "snapshots" / SHA, "qwen2_vl")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return repository


def reference_of(model, folder, monkeypatch, **arguments):
    """The reference model of a trainer on one row, and what TRL was asked to load it with."""
    picture(56, 56).save(folder / "x.png")
    task, asked = load_task("grounding"), {}
    arguments |= {"output_dir": str(folder), "beta": 0.04, "report_to": [], "use_cpu": True, "bf16": False}
    create = trl.trainer.grpo_trainer.create_model_from_path

    def created(path, **options):
        asked.update(options)
        return create(path, **options)

    monkeypatch.setattr(trl.trainer.grpo_trainer, "create_model_from_path", created)
    trainer = grpo_trainer(
        model, small_processor("qwen2_vl"), rows=[ROW], root=folder, task=task, frame_for_row=lambda row: FRAME,
        judge=RewardFunction(task, {"weights": WEIGHTS}), rollouts=folder / "rollouts", revision=SHA,
        arguments=arguments,
    )  # fmt: skip
    json.loads(trainer.args.to_json_string())  # as loggers do
    return trainer.ref_model, asked


def test_the_reference_is_of_the_policys_revision(tmp_path, hub, monkeypatch, caplog):
    model = small_model("qwen2_vl")
    model.config._name_or_path = "acme/tiny-vl"
    reference, asked = reference_of(model, tmp_path, monkeypatch, trust_remote_code=True)
    saved = AutoModelForImageTextToText.from_pretrained(hub / "snapshots" / SHA).state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in reference.state_dict().items())
    assert asked["revision"] == SHA
    assert asked["use_safetensors"] is True
    assert asked["trust_remote_code"] is True
    assert "model_init_kwargs" not in caplog.text, "TRL warns that it ignores them, and does not"


def test_a_reference_that_is_a_pickle_is_refused(tmp_path, hub, monkeypatch):
    snapshot = hub / "snapshots" / SHA
    torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    model = small_model("qwen2_vl")
    model.config._name_or_path = "acme/tiny-vl"
    with pytest.raises(OSError, match="safetensors"):
        reference_of(model, tmp_path, monkeypatch)
