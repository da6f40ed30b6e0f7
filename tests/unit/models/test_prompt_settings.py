"""What a checkpoint's card gives, and what it tells when a model is asked otherwise than it was trained."""

from __future__ import annotations

import json

import pytest

from vrft.errors import UserError
from vrft.models.prompt_settings import (
    make_prompt_settings,
    read_prompt_settings,
    setting_drift,
    with_prompt_settings,
    wording_drift,
)
from vrft.tasks import load_task
from vrft.tasks.boxes import Frame

CARD = {
    "task": {"name": "detection", "thinking": "think"},
    "family": "qwen2_vl",
    "max_pixels": 3136,
    "max_completion_length": 99,
}
TASK = load_task("grounding")
ROW = {"row_id": "r", "images": ["a.png"], "image_wh": [64, 48], "phrase": "the cup", "gold": [0, 0, 9, 9]}
FRAME = Frame("norm1000", (64, 48), (56, 56))
SETTINGS = {
    "task": {"name": "reasoning_grounding", "thinking": "think"},
    "family": "tiny",
    "min_pixels": 100,
    "max_pixels": 401408,
    "max_completion_length": 40,
}


def prompt_of(question):
    return f"<image>{question}<end>"


@pytest.fixture
def config(tmp_path):
    return {
        "model": {"path": str(tmp_path), "family": "tiny"},
        "memory": {key: SETTINGS[key] for key in ("min_pixels", "max_pixels", "max_completion_length")},
        "task": SETTINGS["task"],
        "trainer": {"name": "grpo"},
    }


@pytest.fixture
def card():
    asked = {"task": TASK, "row": ROW, "frame": FRAME, "prompt_of": prompt_of, "base_hash": None}
    return json.loads(json.dumps(make_prompt_settings(SETTINGS, base="some/folder", trainer="grpo", **asked)))


@pytest.mark.parametrize(
    ("overrides", "expected", "why"),
    [
        ([], ("detection", "qwen2_vl", 3136, 99), "the checkpoint knows"),
        (["task=grounding"], ("reasoning_grounding", "qwen2_vl", 3136, 99), "the user's task wins"),
        (["experiment=digits_riddles"], ("reasoning_grounding", "qwen2_vl", 3136, 99), "an experiment names a task"),
        (["memory.max_pixels=1", "+x=1"], ("detection", "qwen2_vl", 401408, 99), "so does one key"),
        (["model=tiny", "memory=roomy"], ("detection", "tiny", 401408, 40), "so does a whole group"),
        (["predict.ask='task=grounding'"], ("detection", "qwen2_vl", 3136, 99), "a question is no override"),
    ],
)
def test_a_checkpoint_says_how_it_is_to_be_asked(config, tmp_path, overrides, expected, why):
    (tmp_path / "vrft.json").write_text(json.dumps(CARD))
    merged = with_prompt_settings(config, overrides)
    found = (merged["task"]["name"], merged["model"]["family"], *(merged["memory"][k] for k in list(CARD)[-2:]))
    assert found == expected, why
    assert config["task"]["name"] == "reasoning_grounding", "the caller's config stays as it is"


def test_without_a_card_the_config_holds(config):
    assert with_prompt_settings(config, []) == config


def test_a_damaged_card_is_named(tmp_path):
    for text in ("{", "", "[1]", '{"example": {"row": 3}}', '{"family": []}'):
        (tmp_path / "vrft.json").write_text(text)
        with pytest.raises(UserError, match=r"vrft\.json (cannot be read|has another form)"):
            read_prompt_settings(str(tmp_path))
    assert read_prompt_settings(None) == {}


def test_settings_that_differ_from_training_are_told(tmp_path):
    (tmp_path / "vrft.json").write_text(json.dumps(CARD))
    asked = {key: CARD.get(key, value) for key, value in SETTINGS.items()}
    assert setting_drift(asked, str(tmp_path)) == []
    [told] = setting_drift(asked | {"max_pixels": 401408}, str(tmp_path))
    assert told == "memory.max_pixels is 401408; the checkpoint was trained with 3136"


def test_the_card_keeps_settings_prompt_and_an_example(card):
    assert (card["base"], card["trainer"]) == ("some/folder", "grpo")
    assert {key: card[key] for key in SETTINGS} == SETTINGS
    assert card["prompt"] == "<image>{question}<end>"
    assert card["example"]["question"] == TASK.question(ROW, FRAME)
    assert card["example"]["row"] == {"image_wh": [64, 48], "phrase": "the cup"}
    assert wording_drift(card, task=TASK, prompt_of=prompt_of) == []


@pytest.mark.parametrize(
    ("task", "prompt", "words"),
    [
        (load_task("grounding", thinking="none"), prompt_of, ["a question is worded"]),
        (TASK, lambda question: f"system{question}", ["the prompt around a question is 'system{question}'; it was"]),
        (load_task("reasoning_grounding"), str, ["the prompt around", "a question is worded"]),
        (load_task("counting"), prompt_of, []),  # another task altogether: the setting says so
    ],
)
def test_other_words_than_in_training_are_told(card, task, prompt, words):
    told = wording_drift(card, task=task, prompt_of=prompt)
    assert len(told) == len(words)
    assert all(word in line for word, line in zip(words, told, strict=True))


def test_a_checkpoint_without_a_card_drifts_from_nothing():
    assert wording_drift({}, task=TASK, prompt_of=prompt_of) == []
