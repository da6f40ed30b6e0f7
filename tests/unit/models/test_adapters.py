"""Which layers get an adapter, in every family; weights saved under one name each."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from small_models import FAMILIES as CLASSES
from small_models import small_model
from torch import nn

from vrft.config.package_files import config_folder
from vrft.errors import UserError
from vrft.models.adapters import check_targets, lora_settings, parts_adapted
from vrft.models.families import FAMILIES, part_of, pattern_of
from vrft.train.deepspeed_state import named_once

PARTS = {"vision", "projector", "language"}


def settings(name: str) -> dict:
    return yaml.safe_load((config_folder() / "model" / "peft" / f"{name}.yaml").read_text(encoding="utf-8"))


def adapted_layers(family: str, peft: dict) -> dict[str, str]:
    """The part of every layer that gets an adapter."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(small_model(family), LoraConfig(**peft)).get_base_model()
    layers = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    return {name: part_of(f"{name}.", FAMILIES[family]) for name in layers}


@pytest.mark.parametrize("family", CLASSES)
def test_every_linear_layer_gets_one_where_all_parts_do(family):
    linear = {name for name, module in small_model(family).named_modules() if type(module) is nn.Linear}
    assert adapted_layers(family, settings("lora_all")).keys() == linear - {"lm_head"}
    assert set(adapted_layers(family, settings("lora")).values()) == {"language"}


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("frozen", [["vision"], ["projector"], ["language"], ["vision", "projector"]])
def test_frozen_parts_get_none(family, frozen):
    every = adapted_layers(family, settings("lora_all"))
    peft = lora_settings(settings("lora_all"), FAMILIES[family], frozen=frozen, revision="v1")
    assert peft.pop("revision") == "v1"
    assert adapted_layers(family, peft) == {name: part for name, part in every.items() if part not in frozen}
    assert set(every.values()) == PARTS


@pytest.mark.parametrize("family", CLASSES)
def test_a_part_is_matched_by_its_pattern_and_no_other(family):
    names = [name for name, _ in small_model(family).named_parameters()]
    for part in PARTS:
        pattern = pattern_of([part], FAMILIES[family])
        assert {part_of(name, FAMILIES[family]) for name in names if re.fullmatch(pattern, name)} == {part}


@pytest.mark.parametrize(
    ("target_modules", "parts"),
    [
        (settings("lora")["target_modules"], {"language"}),
        (settings("lora_all")["target_modules"], PARTS),
        (["q_proj", "v_proj"], {"language"}),
        (["qkv"], {"vision"}),
        (["gate_proj"], {"vision", "language"}),  # Qwen2.5-VL has them in its tower
        (["merger.mlp.0", "q_proj"], {"projector", "language"}),
        ("all-linear", PARTS),
        (["nothing"], set()),
        (None, set()),
    ],
)
def test_the_parts_are_known_before_a_model_is_loaded(target_modules, parts):
    assert parts_adapted(target_modules, FAMILIES["qwen2_5_vl"]) == parts


def test_layers_that_are_not_there_are_refused_by_name():
    model = small_model("qwen2_vl")
    check_targets(model, {"target_modules": ["q_proj"]})
    with pytest.raises(UserError, match=r"model.peft.target_modules is \['q_prj'\].*q_proj"):
        check_targets(model, {"target_modules": ["q_prj"]})
    frozen = lora_settings({"target_modules": ["q_proj"]}, FAMILIES["qwen2_vl"], frozen=["language"], revision=None)
    with pytest.raises(UserError, match=r"no layer outside of model.freeze"):
        check_targets(model, frozen)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_tied_weight_has_one_name(is_tied):
    model = small_model("qwen2_vl", is_tied=is_tied)
    copies = {name: value.clone() for name, value in model.state_dict().items()}  # as DeepSpeed hands them out
    kept = named_once(model, copies)
    assert ("lm_head.weight" in kept) == (not is_tied)
    assert kept.keys() | {"lm_head.weight"} == copies.keys()
    assert all(torch.equal(value, copies[name]) for name, value in kept.items())
