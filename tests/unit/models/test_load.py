"""Where a model lies, and what is said where it cannot be loaded, whatever the library has raised."""

from __future__ import annotations

import json

import pytest
from hydra import compose, initialize_config_dir
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from vrft.config.freeze import freeze
from vrft.config.package_files import TINY_MODEL, config_folder
from vrft.config.schema import Model
from vrft.errors import UserError
from vrft.memory.architectures import architecture
from vrft.models.families import FAMILIES
from vrft.models.load import load_model, load_processor, require_folder


def raises_without_a_text(*_, **__):
    raise OSError


def test_an_error_without_a_text_becomes_a_message(monkeypatch, tmp_path):
    for one in (AutoModelForImageTextToText, AutoProcessor, AutoConfig):
        monkeypatch.setattr(one, "from_pretrained", raises_without_a_text)
    calls = [
        lambda: load_model(str(TINY_MODEL)),
        lambda: load_processor(str(TINY_MODEL), min_pixels=1, max_pixels=2),
        lambda: architecture(Model.model_construct(path=str(tmp_path), revision=None, trust_remote_code=False)),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"model\.path=.*OSError"):
            call()


def test_a_name_on_the_hub_is_one_also_beside_a_folder_of_its_organisation(monkeypatch, tmp_path):
    (tmp_path / "Qwen").mkdir()
    monkeypatch.chdir(tmp_path)
    require_folder("Qwen/Qwen2-VL-2B-Instruct")
    assert composed("model.path=Qwen/Qwen2-VL-2B-Instruct") == "Qwen/Qwen2-VL-2B-Instruct"


def test_a_model_in_the_home_folder_is_found_by_all_who_look(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x").symlink_to(TINY_MODEL)
    path = composed("model.path='~/models/x'")
    assert path == str(tmp_path / "models" / "x")
    load_processor(path, min_pixels=1, max_pixels=12544)
    with pytest.raises(UserError, match=rf"model\.path is {tmp_path}/models/y, a folder that does not exist"):
        composed("model.path='~/models/y'")


def composed(*overrides: str) -> str:
    """The frozen `model.path`."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return freeze(
            compose("train", overrides=["model=qwen2_vl_2b", "deepspeed=zero2", "trainer.max_steps=1", *overrides])
        ).model.path


@pytest.mark.parametrize("model_type", ["qwen4_exp", "qwen2_5_omni", "qwen3_omni_moe", "qwen3_5", "gpt2"])
def test_weights_of_no_family_are_refused_by_name_before_they_are_read(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    with pytest.raises(UserError, match=rf"model\.path=.* are a {model_type}[,;].* vrft supports qwen2_5_vl, qwen2_vl"):
        load_model(str(tmp_path), family=FAMILIES["qwen3_vl"])
    with pytest.raises(UserError, match=f"model.family is qwen2_vl, but .* are a {model_type}"):
        composed(f"model.path={tmp_path}")
