"""`memory=auto`: the knobs turned before a training, and kept when it goes on."""

from __future__ import annotations

import copy

import pytest
import yaml
from hydra import compose, initialize_config_dir

from vrft.config.freeze import freeze
from vrft.config.package_files import config_folder
from vrft.errors import UserError
from vrft.memory import auto as knobs

ROWS = {
    "train": [
        {"row_id": "a", "image_wh": [56, 56], "problem": "où?"},
        {"row_id": "b", "image_wh": [28, 56], "problem": "where is it?"},
    ]
}
WORDS = ["experiment=digits_riddles", "debug=smoke", "memory=auto", "evaluate.before=false", "evaluate.after=false"]
WORDS += ["trainer.eval_steps=null", "evaluate.checkpoint=last", "memory.max_prompt_length=64", "trainer.max_steps=2"]


@pytest.fixture(scope="module")
def auto():
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return freeze(compose("train", overrides=[*WORDS, "memory.max_completion_length=40"]))


def fitted_to(auto: dict, gib: float) -> dict:
    config = copy.deepcopy(auto)
    config["memory"]["gpu"] = gib
    return knobs.fitted(config, ROWS)


def test_what_fits_stays_as_it_is(auto, capsys):
    config = fitted_to(auto, 8)
    assert {**config, "memory": {**config["memory"], "gpu": None}} == auto
    assert capsys.readouterr().err.startswith("memory=auto: ")


def test_a_small_gpu_turns_the_micro_batch_and_nothing_that_changes_results(auto, capsys):
    config = fitted_to(auto, 0.07)
    said = capsys.readouterr().err
    now = config["derived"]["per_device_train_batch_size"]
    assert f"memory=auto: memory.completions_per_device={now} (" in said
    assert now < auto["derived"]["per_device_train_batch_size"]
    assert now * config["derived"]["gradient_accumulation_steps"] == (
        auto["derived"]["per_device_train_batch_size"] * auto["derived"]["gradient_accumulation_steps"]
    )
    for key in ("num_generations", "max_pixels", "max_completion_length"):
        assert config["memory"][key] == auto["memory"][key]


def test_a_prompt_is_no_longer_than_the_rows_questions(auto, monkeypatch):
    assert knobs._most_text(auto, ROWS) == 64 + 12
    assert knobs._most_text(auto, {"train": ROWS["train"][:1]}) == 64 + 4  # bytes
    seen = []
    monkeypatch.setattr(knobs, "search_changes", lambda *asked: (seen.append(asked[2]), (None, 1))[1])
    config = copy.deepcopy(auto)
    config["memory"] |= {"gpu": 8, "max_prompt_length": 1024}
    with pytest.raises(UserError):
        knobs.fitted(config, ROWS)
    assert seen[0]["text_tokens"] == 76  # in place of 1024 - 16, of the largest image


def test_where_nothing_helps_it_says_so(auto):
    with pytest.raises(UserError, match=r"^memory=auto: no change .* makes it fit: it takes at least .* MiB; "):
        fitted_to(auto, 0.004)
    with pytest.raises(UserError, match=r"^memory.gpu is 'a100_81gb'; did you mean a100_80gb"):
        fitted_to(auto, "a100_81gb")


def test_without_a_gpu_nothing_is_changed(auto, monkeypatch, capsys):
    monkeypatch.setattr(knobs, "gpu_at_hand", lambda: None)
    assert knobs.fitted(auto, ROWS) is auto
    assert "no GPU here" in capsys.readouterr().err


def test_a_plan_is_for_a_gpu_but_for_the_embedded_model_and_a_cpu_asked_for(auto):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        words = ["model=qwen2_vl_2b", "deepspeed=zero2", "trainer.max_steps=1"]
        large, on_cpu = (freeze(compose("train", overrides=[*words, *more])) for more in ([], ["launch.device=cpu"]))
    targets = [knobs.plan_options(config, None)["target"] for config in (large, on_cpu, auto)]
    assert targets == ["cuda", "cpu", "cpu"]
    assert knobs.plan_options(auto, 2**30)["target"] == "cuda"


def test_a_run_that_goes_on_keeps_the_knobs_it_began_with(auto, tmp_path):
    assert knobs.as_begun(tmp_path, auto) is auto
    begun = copy.deepcopy(auto)
    begun["memory"] |= {"completions_per_device": 2, "gradient_checkpointing": True, "max_completion_length": 7}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(begun))
    config = knobs.as_begun(tmp_path, auto)
    assert (config["memory"]["completions_per_device"], config["memory"]["gradient_checkpointing"]) == (2, True)
    assert config["derived"]["per_device_train_batch_size"] == 2
    assert config["memory"]["max_completion_length"] == 40  # no knob of memory=auto: the difference is to be named
    (tmp_path / "config.yaml").write_text("- no config")
    assert knobs.as_begun(tmp_path, auto) is auto
