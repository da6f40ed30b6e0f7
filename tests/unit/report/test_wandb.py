"""What W&B is told about a run, and what it is not; the files that it writes are looked at in tests/e2e."""

from __future__ import annotations

import json

import pytest
import wandb

from vrft.config.schema import Logging
from vrft.config.secrets import secret_keys, without_secrets
from vrft.config.section import with_values
from vrft.errors import UserError
from vrft.report.wandb import _overlay, _spread, run_fields, tracked

LOGGING = Logging(report_to=["wandb"], project="vrft", mode="online")


@pytest.mark.parametrize(
    ("key", "value", "is_secret"),
    [
        ("hub_token", "x", True),  # by its name
        ("api_key", None, False),  # not given
        ("eos_token", "<|im_end|>", False),  # a word of the vocabulary
        ("max_tokens", "many", False),
        ("score_source", "token_probability", False),
        ("note", "hf_" + "a" * 30, True),  # by its form
        ("note", "https://me:word@host/path", True),
        ("note", "https://host:8000/path@v2", False),
        ("revision", "d6d52f5" + "0" * 33, False),  # a commit is 40 hexadecimal digits, as W&B's old keys are
        ("note", "it is hunter2222, they say", True),  # of the environment
        ("note", "short", False),  # too short to tell
        ("path", "/run/secrets/key", False),  # a file, not what it holds
        ("notes", [{"a": "hunter2222"}], True),
    ],
)
def test_what_looks_like_a_secret(key, value, is_secret):
    environment = {"MY_PASSWORD": "hunter2222", "A_TOKEN": "short", "KEY_FILE_CREDENTIALS": "/run/secrets/key"}
    config = {"a": {key: value, "other": 1}}
    assert list(secret_keys(config, environment)) == [f"a.{key}"] * is_secret
    shown = "(secret)" if is_secret else value
    assert without_secrets(config, environment) == {"a": {key: shown, "other": 1}}


def test_a_run_belongs_to_the_sweep_that_its_folder_lies_in(tmp_path):
    child = tmp_path / "lr" / "a" / "b"
    child.mkdir(parents=True)
    choices = {"task": "detection", "model": "tiny", "experiment": None, "trainer": "sft", "recipe": "tiny_sft"}
    alone = {"name": "b", "group": None, "tags": ["detection", "sft", "tiny"], "job_type": "sft"}
    assert run_fields(child, LOGGING, choices, job_type="sft") == alone
    (tmp_path / "lr" / "children").mkdir()
    assert run_fields(child, LOGGING, choices, job_type="sft") == alone | {"group": "lr"}
    judged = run_fields(child, LOGGING, choices, job_type="evaluate")
    assert (judged["tags"], judged["job_type"]) == (["detection", "tiny"], "evaluate")
    own = with_values(LOGGING, {"group": "mine", "tags": ["x" * 99, "tiny"]})
    fields = run_fields(child, own, choices, job_type="sft")
    assert (fields["group"], fields["tags"]) == ("mine", ["detection", "sft", "tiny", "x" * 64])


def test_without_a_login_it_is_said_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "provenance.json").write_text(json.dumps({"choices": {}, "wandb_run_id": "a"}))

    def refuse(**fields):
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    begun = tracked(tmp_path, LOGGING, {}, job_type="sft")
    with pytest.raises(UserError, match=r"No API key.*wandb login.*logging=wandb_offline"), begun:
        pass


def test_boxes_have_a_class_a_label_and_keep_their_confidence():
    boxes = [([1, 2, 3, 4], "cup 0.90"), ([0, 0, 1, 1], "type 7"), ([5, 5, 6, 6], "cup 0.10"), ([0, 0, 1, 1], "0.50")]
    found = _overlay(boxes, "dog")
    assert found["class_labels"] == {0: "cup", 1: "type 7", 2: "dog"}
    assert [(one["class_id"], one["box_caption"]) for one in found["box_data"]] == [
        (0, "cup 0.90"), (1, "type 7"), (0, "cup 0.10"), (2, "0.50")
    ]  # fmt: skip
    assert found["box_data"][0]["position"] == {"minX": 1.0, "minY": 2.0, "maxX": 3.0, "maxY": 4.0}
    assert _overlay([], "dog") == {"class_labels": {0: "dog"}, "box_data": []}


def test_every_question_is_shown_before_any_is_shown_twice():
    cases = [{"row_id": row, "text": f"{row}{n}"} for row in "ab" for n in range(3)]
    assert [case["text"] for case in _spread(cases, 3)] == ["a0", "b0", "a1"]
