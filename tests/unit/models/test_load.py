"""Where a model lies, what is said where it cannot be loaded, and that no weight is drawn at random in silence."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hydra import compose, initialize_config_dir
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small_models import FAMILIES, small_model
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from vrft.config.freeze import freeze
from vrft.config.package_files import TINY_MODEL, config_folder
from vrft.config.schema import Model
from vrft.errors import UserError
from vrft.files import publish, weight_hash
from vrft.memory.architectures import architecture
from vrft.models import families
from vrft.models.load import load_base, load_model, load_processor, require_finite, require_folder


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
    with pytest.raises(UserError, match=rf"model\.path is {tmp_path}/models/y, which does not exist"):
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
        load_model(str(tmp_path), family=families.FAMILIES["qwen3_vl"])
    with pytest.raises(UserError, match=f"model.family is qwen2_vl, but .* are a {model_type}"):
        composed(f"model.path={tmp_path}")


# --- every weight is the file's --------------------------------------------------------------------------------------

LIMITS = {"min_pixels": 1, "max_pixels": 12544}
MLP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path):
    """A copy of the tiny model, to be damaged."""
    return shutil.copytree(TINY_MODEL, tmp_path / "model")


def change(folder, edit, name="model.safetensors") -> None:
    """Rewrite a folder's weights as `edit` returns them."""
    weights = edit(load_file(folder / name))
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / name, metadata={"format": "pt"})


def with_value(name: str, value: float):
    def edit(weights: dict) -> dict:
        weights[name][3, 5] = value
        return weights

    return edit


def without(part: str):
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


def renamed(weights: dict) -> dict:
    return {f"x.{name}": weight for name, weight in weights.items()}


DAMAGES = {
    "a weight is missing": (without(MLP), r"the weight \S*1.mlp.up_proj.weight is missing"),
    "weights are missing": (without(".mlp."), r"\d+ weights \(.*mlp.*, …\) are missing"),
    "all have other names": (renamed, r"are missing; .*x\.\S+, …\) are not of this model"),
    "one too many": (lambda w: {**w, "extra": torch.zeros(1)}, r"the weight extra is not of this model"),
    "another shape": (
        lambda w: {**w, MLP: w[MLP][:-1]},
        r"mlp.up_proj.weight \[255, 128\] in place of \[256, 128\] is of another shape",
    ),
    "NaN": (with_value(MLP, float("nan")), r"the weight \S*1.mlp.up_proj.weight is NaN or infinite"),
    "infinite": (with_value(MLP, -float("inf")), r"the weight \S*1.mlp.up_proj.weight is NaN or infinite"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_weights_that_are_not_the_models_are_refused_by_name(model, name):
    edit, said = DAMAGES[name]
    change(model, edit)
    with pytest.raises(UserError, match=said) as caught:
        load_model(str(model))
    assert str(caught.value).startswith(f"model.path={model}: ")


def test_weights_of_eight_bits_are_looked_at_too():
    """Published FP8 checkpoints have them; torch has no extremes of them."""
    model = torch.nn.Linear(4, 4, bias=False).requires_grad_(False).to(torch.float8_e4m3fn)
    require_finite("path", model)
    model.weight.view(torch.uint8)[1, 2] = 0x7F  # NaN in this format
    with pytest.raises(UserError, match="the weight weight is NaN"):
        require_finite("path", model)


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_shard_that_is_missing_is_refused(tmp_path, is_listed):
    """The file of a shard is gone, or the index does not list it."""
    small_model("qwen2_vl").save_pretrained(tmp_path, max_shard_size="200KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    gone = sorted(set(content["weight_map"].values()))[1]
    if is_listed:
        (tmp_path / gone).unlink()
    else:
        content["weight_map"] = {name: shard for name, shard in content["weight_map"].items() if shard != gone}
        index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=gone if is_listed else "are missing"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_tied", [True, False])
def test_what_the_families_leave_out_or_have_too_much_is_no_fault(tmp_path, family, is_tied):
    """A tied output layer is not in the file; rotary buffers of earlier versions are."""
    saved = small_model(family, is_tied=is_tied)
    saved.save_pretrained(tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != is_tied
    change(tmp_path, lambda w: {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    loaded = load_model(str(tmp_path)).state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in saved.state_dict().items())


def test_a_folder_unlike_its_manifest_is_refused_before_any_weights_are_loaded(model):
    whole = model.with_name("whole")
    publish(model, whole)
    load_processor(str(whole), **LIMITS)
    change(whole, with_value(MLP, 1.0))
    with pytest.raises(UserError, match=r"model.safetensors has other bytes than were written"):
        load_processor(str(whole), **LIMITS)
    load_processor(str(whole), **LIMITS, is_checked=True)
    (whole / "manifest.json").write_text((whole / "manifest.json").read_text()[:-20])
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        load_processor(str(whole), **LIMITS)


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path, model, monkeypatch):
    """An adapter trained on `model` by its relative name."""
    monkeypatch.chdir(tmp_path)
    options = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    get_peft_model(load_base("model"), LoraConfig(r=4, **options)).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "vrft.json").write_text(json.dumps({"base_hash": weight_hash(model)}))
    return tmp_path / "adapter"


def test_an_adapter_finds_the_base_that_was_named_from_another_folder(adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(adapter)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == f"{tmp_path}/model"
    loaded = load_model(str(adapter))
    saved = load_file(adapter / "adapter_model.safetensors")
    names = [name for name in loaded.state_dict() if "lora_" in name]
    assert len(names) == len(saved) == 12
    for name in names:
        assert torch.equal(loaded.state_dict()[name], saved[f"base_model.model.{name.replace('.default', '')}"])


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},  # its magnitudes have another name in the file
        {"trainable_token_indices": [5, 9]},  # of tied embeddings, the file has one of two
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"bias": "all"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_adapter_of_any_kind_is_loaded_as_it_was_trained(model, tmp_path, options):
    config = LoraConfig(**{"target_modules": ["q_proj"], **options})
    trained = get_peft_model(load_base(str(model), dtype="float32"), config)
    generator = torch.Generator().manual_seed(0)
    for weight in trained.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    trained.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 9, 14, 7]])
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path / "adapter"))(ids).logits, trained.eval()(ids).logits)


@pytest.mark.parametrize("is_whole", [True, False])
def test_an_adapter_beside_a_models_config_is_loaded(model, adapter, is_whole):
    """Other programs save the base's config with the adapter; a folder that has the weights, too, is its own base."""
    expected = load_model(str(adapter)).state_dict()
    shutil.copy(model / "config.json", adapter)
    if is_whole:
        shutil.copy(model / "model.safetensors", adapter)
        shutil.rmtree(model)
    found = load_model(str(adapter)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


@pytest.mark.parametrize("text", ["{}", "[" * 100_000, '{"base_model_name_or_path": 3}'])
def test_an_adapter_that_names_no_base_is_refused(adapter, text):
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"adapter_config\.json names no base model"):
        load_model(str(adapter))


ADAPTER_DAMAGES = {
    "a weight is missing": (without("layers.0.self_attn.q_proj.lora_A"), r"the weight \S+lora_A\S+ is missing"),
    "all have other names": (renamed, r"12 weights .* are missing; 12 .* are not of this model"),
    "another rank": (lambda w: {k: v[:2] if "lora_A" in k else v for k, v in w.items()}, r"are of another shape"),
    "NaN": (lambda w: {k: v * float("nan") for k, v in w.items()}, r"12 weights .* are NaN or infinite"),
}


@pytest.mark.parametrize("name", ADAPTER_DAMAGES)
def test_an_adapters_weights_are_all_its_own(adapter, name):
    edit, said = ADAPTER_DAMAGES[name]
    change(adapter, edit, "adapter_model.safetensors")
    with pytest.raises(UserError, match=said) as caught:
        load_model(str(adapter))
    assert str(caught.value).startswith(f"model.path={adapter}: ")


def test_an_adapters_base_is_the_one_that_it_was_trained_on(adapter, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = adapter / "adapter_config.json"
    said = json.loads(path.read_text())
    change(model, with_value(MLP, 1.0))
    with pytest.raises(UserError, match=r"was trained on other weights \(base_hash in its vrft.json is xxh3_128:"):
        load_model(str(adapter))
    (adapter / "vrft.json").unlink()
    change(model, DAMAGES["a weight is missing"][0])
    with pytest.raises(
        UserError, match=rf"^base_model_name_or_path={model} \(of the adapter model.path={adapter}\): .* is missing"
    ):
        load_model(str(adapter))
    path.write_text(json.dumps(said | {"base_model_name_or_path": "models/gone"}))  # as a hub name would be
    with pytest.raises(UserError, match=rf"=models/gone \(of the adapter model.path={adapter}\) could not be loaded"):
        load_model(str(adapter))
    path.write_text(json.dumps(said | {"base_model_name_or_path": "../models/gone"}))
    with pytest.raises(
        UserError, match=rf"model.path={adapter} is an adapter of .*=../models/gone \(in its adapter_config"
    ):
        load_model(str(adapter))
    small_model("qwen2_vl").save_pretrained(model)
    path.write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"are of another shape"):
        load_model(str(adapter))
