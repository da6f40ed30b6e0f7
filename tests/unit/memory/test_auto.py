"""`memory=auto`: the knobs turned before a training, and kept when it goes on."""

from __future__ import annotations

import pytest
import yaml
from configs import composed

from vrft.config.batch_sizes import derive
from vrft.config.schema import Config
from vrft.config.section import with_values
from vrft.errors import UserError
from vrft.memory import auto as knobs
from vrft.memory.training_setup import Setup

QUESTIONS = ("où?", "where is it?")
SIZES = ([56, 56], [28, 56])
WORDS = ["experiment=digits_riddles", "debug=smoke", "memory=auto", "evaluate.before=false", "evaluate.after=false"]
WORDS += ["trainer.eval_steps=null", "evaluate.checkpoint=last", "memory.max_prompt_length=64", "trainer.max_steps=2"]


@pytest.fixture(scope="module")
def auto():
    return composed(*WORDS, "memory.max_completion_length=40")


def changes_of(config: Config) -> list[knobs.Change]:
    return knobs.fitting_changes(config.part(Setup), device="cpu", questions=QUESTIONS, image_sizes=SIZES)


def fitted_to(auto: Config, gib: float | str) -> Config:
    config = with_values(auto, {"memory.gpu": gib})
    for change in changes_of(config):
        config = change.applied(config)
    return derive(config, device="cpu")


def test_what_fits_stays_as_it_is(auto, capsys):
    assert with_values(fitted_to(auto, 8), {"memory.gpu": None}) == auto
    assert capsys.readouterr().err.startswith("memory=auto: ")


def test_a_small_gpu_turns_the_micro_batch_and_nothing_that_changes_results(auto, capsys):
    config = fitted_to(auto, 0.07)
    said = capsys.readouterr().err
    now, before = config.derived, auto.derived
    assert f"memory=auto: memory.completions_per_device={now.per_device_train_batch_size} (" in said
    assert now.per_device_train_batch_size < before.per_device_train_batch_size
    assert now.per_device_train_batch_size * now.gradient_accumulation_steps == (
        before.per_device_train_batch_size * before.gradient_accumulation_steps
    )
    for key in ("num_generations", "max_pixels", "max_completion_length"):
        assert getattr(config.memory, key) == getattr(auto.memory, key)


def test_a_prompt_is_no_longer_than_the_rows_questions(auto, monkeypatch):
    assert knobs.most_text(QUESTIONS) == 64 + 12
    assert knobs.most_text(QUESTIONS[:1]) == 64 + 4  # bytes
    seen = []
    monkeypatch.setattr(knobs, "search_changes", lambda *asked: (seen.append(asked[2]), (None, 1))[1])
    with pytest.raises(UserError):
        changes_of(with_values(auto, {"memory.gpu": 8, "memory.max_prompt_length": 1024}))
    assert seen[0]["text_tokens"] == 76  # in place of 1024 - 16, of the largest image


def test_where_nothing_helps_it_says_so(auto):
    with pytest.raises(UserError, match=r"^memory=auto: no change .* makes it fit: it takes at least .* MiB; "):
        fitted_to(auto, 0.004)
    with pytest.raises(UserError, match=r"^memory.gpu is 'a100_81gb'; did you mean a100_80gb"):
        fitted_to(auto, "a100_81gb")


def test_without_a_gpu_nothing_is_changed(auto, monkeypatch, capsys):
    monkeypatch.setattr(knobs, "gpu_at_hand", lambda: None)
    assert changes_of(auto) == []
    assert "no GPU here" in capsys.readouterr().err


def test_a_plan_is_for_a_gpu_but_for_the_embedded_model_and_a_cpu_asked_for(auto):
    words = ["model=qwen2_vl_2b", "deepspeed=zero2", "trainer.max_steps=1"]
    large, on_cpu, tiny = (
        config.part(Setup) for config in (composed(*words), composed(*words, "launch.device=cpu"), auto)
    )
    targets = [knobs.plan_options(setup, None, device="cpu")["target"] for setup in (large, on_cpu, tiny)]
    assert targets == ["cuda", "cpu", "cpu"]
    assert knobs.plan_options(tiny, 2**30, device="cpu")["target"] == "cuda"


def test_a_run_that_goes_on_keeps_the_knobs_it_began_with(auto, tmp_path):
    assert knobs.turned_knobs(tmp_path) == {}
    begun = auto.plain()
    begun["memory"] |= {"completions_per_device": 2, "gradient_checkpointing": True, "max_completion_length": 7}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(begun))
    config = derive(with_values(auto, knobs.turned_knobs(tmp_path)), device="cpu")
    assert (config.memory.completions_per_device, config.memory.gradient_checkpointing) == (2, True)
    assert config.derived.per_device_train_batch_size == 2
    assert config.memory.max_completion_length == 40  # no knob of memory=auto: the difference is to be named
    (tmp_path / "config.yaml").write_text("- no config")
    assert knobs.turned_knobs(tmp_path) == {}
