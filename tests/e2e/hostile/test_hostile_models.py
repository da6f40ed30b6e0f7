"""Hostile models, through the command line: what they carry never runs, and they are refused by name."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress

import pytest
import torch
from jinja2 import Environment
from payloads import ran

from vrft.cli.main import main
from vrft.config.package_files import TINY_MODEL


def test_pickled_weights_are_not_loaded(tmp_path, mark, refused, predict, pickles):
    torch.load(pickles["pt"], weights_only=False)
    assert ran(mark)
    (tmp_path / "model" / "model.safetensors").unlink()
    shutil.copy(pickles["pt"], tmp_path / "model" / "pytorch_model.bin")
    said = refused(*predict)
    assert str(tmp_path / "model") in said
    assert "no file named model.safetensors" in said


def test_a_pickled_adapter_is_not_loaded(tmp_path, mark, refused, predict, pickles):
    torch.load(pickles["pt"], weights_only=False)
    assert ran(mark)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(TINY_MODEL), "target_modules": ["q_proj"], "r": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    for file in tmp_path.glob("model/*"):
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, adapter)
    shutil.copy(pickles["pt"], adapter / "adapter_model.bin")
    assert str(adapter) in refused(*predict, f"model.path={adapter}")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}}),
        ("tokenizer_config.json", {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.T", None]}}),
        ("processor_config.json", {"processor_class": "Theirs", "auto_map": {"AutoProcessor": "theirs.P"}}),
    ],
)
def test_a_models_own_code_is_run_only_where_it_is_asked_for(tmp_path, mark, predict, refused, capfd, file, changes):
    (tmp_path / "model" / "theirs.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    path = tmp_path / "model" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    code = main(list(predict))
    said = "".join(capfd.readouterr())
    assert not ran(mark)
    assert code == 0 or (code == 2 and str(tmp_path / "model") in said), said  # 0: a class of transformers serves
    with suppress(Exception):  # their module holds no class
        main([*predict, "model.trust_remote_code=true"])
    assert ran(mark)


def test_a_chat_template_cannot_leave_its_sandbox(tmp_path, mark, refused, predict):
    template = "{{ cycler.__init__.__globals__.os.system('touch MARK') }}".replace("MARK", str(mark))
    Environment().from_string(template).render()
    assert ran(mark)
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    assert "chat template" in refused(*predict)


def test_a_checkpoints_card_cannot_name_code(tmp_path, mark, refused, predict, their_module):
    card = tmp_path / "model" / "vrft.json"
    card.write_text(json.dumps({"task": {"name": "theirs.Task"}}))
    assert "trust_code" in refused(*predict)
    card.write_text(json.dumps({"task": "theirs.Task", "max_pixels": "many"}))
    assert "memory.max_pixels is 'many'" in refused(*predict)
    trusting = {"trust_code": ["theirs"], "model": {"trust_remote_code": True}, "trust_remote_code": True}
    card.write_text(json.dumps({"task": {"name": "theirs.Task"}, **trusting}))
    assert "trust_code=[]" in refused(*predict)
    card.write_text("[" * 100_000)
    assert str(card) in refused(*predict)


def test_a_checkpoint_cannot_say_that_it_is_trusted(tmp_path, mark, refused, predict):
    """Whatever lies beside the weights, an export runs no code of theirs unless it is asked to."""
    model = tmp_path / "model"
    (model / "theirs.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    trusting = {"trust_remote_code": True, "trust_code": ["theirs"]}
    theirs = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}, **trusting}
    (model / "config.json").write_text(json.dumps(json.loads((model / "config.json").read_text()) | theirs))
    (model / "vrft.json").write_text(json.dumps(trusting))
    export = ("export", f"model.path={model}", f"out={tmp_path / 'exported'}")
    assert str(model) in refused(*export)
    with suppress(Exception):  # their module holds no class
        main([*export, "model.trust_remote_code=true"])
    assert ran(mark)


def test_a_chat_template_is_tried_before_weights_are_loaded(tmp_path, refused, predict):
    (tmp_path / "model" / "chat_template.jinja").write_text("{% include '/etc/passwd' %}")
    (tmp_path / "model" / "model.safetensors").unlink()
    said = refused(*predict)
    assert f"model.path={tmp_path / 'model'}: the model's chat template cannot be rendered" in said
