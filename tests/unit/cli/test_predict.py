"""Predicting on one's own image: what a checkpoint knows of itself, what is printed, and the picture."""

import json
from types import SimpleNamespace

import pytest
from configs import composed
from peft import LoraConfig, get_peft_model
from PIL import Image

from vrft.cli import predict as predict_module
from vrft.cli.predict import predict
from vrft.config.package_files import TINY_MODEL
from vrft.config.section import with_values
from vrft.errors import UserError
from vrft.models.load import load_model, load_processor


@pytest.fixture
def config(tmp_path):
    Image.new("RGB", (200, 100), "grey").save(tmp_path / "scene.png")
    asked = {"image": tmp_path / "scene.png", "ask": "two plus three", "out": tmp_path / "a" / "b.png"}
    usual = composed("predict.image=a.png", "predict.ask=seven", verb="predict")
    return with_values(usual, {"model.path": str(tmp_path), **{f"predict.{key}": str(v) for key, v in asked.items()}})


def answer_with(monkeypatch, text, is_truncated=False):
    """No model is loaded; every question is answered with this text."""
    asked = []

    def generate(model, processor, questions, images, *, max_new_tokens):
        asked.extend(questions)
        return [{"text": text, "n_tokens": 1, "is_truncated": is_truncated}]

    processor = SimpleNamespace(apply_chat_template=lambda *a, **k: "", chat_template="")
    monkeypatch.setattr(predict_module, "load_processor", lambda *a, **k: processor)
    monkeypatch.setattr(predict_module, "load_model", lambda *a, **k: None)
    monkeypatch.setattr(predict_module, "generate_texts", generate)
    return asked


@pytest.mark.parametrize(
    ("task", "text", "printed"),
    [
        ("reasoning_grounding", "<answer>(100,200),(500,600)</answer>", "[20.0, 20.0, 100.0, 60.0]"),
        (
            "detection",
            "<answer>[{'Position': [0, 0, 500, 1000], 'Confidence': 0.90}]</answer>",
            "[0.0, 0.0, 100.0, 100.0], 0.90",
        ),
        ("detection", "<answer>No Objects</answer>", "no objects"),
        ("classification", "<answer>seven</answer>", "seven"),
        ("counting", "<answer>0</answer>", "answer      0\n"),
        ("grounding", "I see nothing", "unreadable: no_answer"),
    ],
)
def test_the_answer_is_told_in_pixels_of_the_image(config, monkeypatch, capsys, task, text, printed):
    asked = answer_with(monkeypatch, text)
    predict(with_values(config, {"task": {"name": task, "thinking": "think"}}))
    output = capsys.readouterr().out
    assert printed in output
    assert text in output
    assert "two plus three" in asked[0]
    assert Image.open(config.predict.out).size == (600, 300), "enlarged by a whole number"


def test_a_mixture_cannot_be_asked(config, monkeypatch):
    answer_with(monkeypatch, "")
    mixed = {"name": "mixed", "tasks": {"counting": {}, "grounding": {}}}
    with pytest.raises(UserError, match="choose one of its tasks: counting, grounding"):
        predict(with_values(config, {"task": mixed}))


def test_an_adapter_is_asked_by_its_own_settings(config, tmp_path, capsys):
    folder = tmp_path / "adapter"
    model = load_model(str(TINY_MODEL))
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
    load_processor(str(TINY_MODEL), min_pixels=3136, max_pixels=50176).save_pretrained(folder)
    card = {"task": {"name": "counting", "thinking": "none"}, "family": "tiny", "max_completion_length": 3}
    (folder / "vrft.json").write_text(json.dumps(card))
    asked = (f"model.path={folder}", f"predict.image={config.predict.image}", "predict.ask=seven")
    parsed = predict(composed(*asked, f"predict.out={tmp_path / 'a.png'}", verb="predict"))
    assert "how many" in capsys.readouterr().out.lower()
    assert parsed.is_truncated or len(parsed.text) < 40


def test_a_cut_answer_says_so(config, monkeypatch, capsys):
    answer_with(monkeypatch, "<think>two plus", is_truncated=True)
    predict(config)
    assert "cut at memory.max_completion_length" in capsys.readouterr().out


def test_a_missing_image_is_named(config, monkeypatch):
    answer_with(monkeypatch, "")
    with pytest.raises(UserError, match=r"predict\.image: the image none\.png is missing: there is no such file"):
        predict(with_values(config, {"predict.image": "none.png"}))


@pytest.mark.parametrize(
    ("out", "words"),
    [(".", "predict.out is .*; the name of a .png"), ("a.txt", "a .png, .jpg or .webp"), ("scene.png", "are both"),
     ("link.png", "are both")],
)  # fmt: skip
def test_a_picture_that_cannot_be_written_or_would_replace_the_image_is_refused_first(config, tmp_path, out, words):
    (tmp_path / "link.png").hardlink_to(tmp_path / "scene.png")
    with pytest.raises(UserError, match=words):
        predict(with_values(config, {"predict.out": str(tmp_path / out)}))


def test_a_picture_that_is_replaced_is_told(config, monkeypatch, capsys):
    answer_with(monkeypatch, "<answer>[]</answer>")
    for told in ("b.png\n", "b.png, in place of an earlier file\n"):
        predict(config)
        assert capsys.readouterr().out.endswith(told)
