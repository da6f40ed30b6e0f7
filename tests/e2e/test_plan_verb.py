"""The plan beside measured peaks of real training, within 15 %; and `memory=auto`. More in tests/bench/README.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[1] / "bench"))

from memory_cases import CASES, compare, save_small_model

WITHIN = 0.15
QUICK = ["tiny, G = 4", "tiny, every prompt G times", "20 M, SFT"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model") / "small")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_the_plan_is_within_fifteen_percent_of_the_measured_peak(small, tmp_path, name):
    assert len(CASES) >= 6
    found = compare(CASES[name], tmp_path, small)
    assert found.planned == pytest.approx(found.measured, rel=WITHIN), found.plan.phases
    assert found.planned_sampling == pytest.approx(found.measured_sampling, rel=WITHIN), found.plan.phases
    assert found.measured > 1.2 * found.parts["weights"]  # something was measured


def test_the_verb_says_what_fits_and_what_would(vrft, tmp_path):
    words = ("experiment=digits_riddles", "plan.image_wh=[56,56]", "plan.prompt_tokens=64", "plan.compare=false")
    done = vrft("plan", *words, "plan.gpu=0.1", f"plan.out={tmp_path / 'plan.json'}", code=1)
    assert "does not fit on a GPU of 0.1 GiB" in done.stdout
    assert "the cheapest changes that make it fit:" in done.stdout
    assert not list(tmp_path.glob("runs"))
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["image_tokens"] == 16
    assert not record["fits"]
    assert record["changes"]
    assert record["peak"] == max(sum(parts.values()) for parts in record["phases"].values())


def test_an_unknown_gpu_is_refused_by_its_key(vrft):
    done = vrft("plan", "experiment=digits_riddles", "plan.gpu=a100_80", code=2)
    assert "plan.gpu is 'a100_80'; did you mean a100_80gb? known:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_auto_turns_the_knobs_before_the_training_and_keeps_them_when_it_goes_on(vrft, tmp_path):
    words = ("train", "experiment=digits_riddles", "debug=smoke", "memory=auto", f"run.dir={tmp_path / 'run'}")
    words += ("evaluate.before=false", "evaluate.after=false", "memory.max_prompt_length=64", "trainer.eval_steps=null")
    words += ("evaluate.checkpoint=last", "memory.num_generations=4", "memory.max_completion_length=40")
    done = vrft(*words, "memory.gpu=0.07")
    assert "memory=auto: memory.completions_per_device=" in done.stderr
    frozen = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert frozen["memory"]["completions_per_device"] < 8
    assert frozen["memory"]["num_generations"] == 4
    assert frozen["derived"]["gradient_accumulation_steps"] > 1
    (tmp_path / "run" / "result.json").unlink()
    done = vrft(*words, "memory.gpu=0.07", "run.resume=true")
    assert "memory=auto" not in done.stderr
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["memory"] == frozen["memory"]
