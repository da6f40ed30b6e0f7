"""How many models a worker has in memory: one, and while it trains the reference beside it."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
from faulty_run import nan_loss_at
from healthy_run import FAULTY, frozen, read_config, work
from torture.harness import set_resume
from transformers import PreTrainedModel
from trl import GRPOTrainer

from vrft.run import stages

JUDGED = {"before": True, "after": True, "checkpoint": "best", "also": ["last"]}


@pytest.fixture
def loaded(monkeypatch) -> list:
    """The path, and a weak reference to the model, of each that was loaded."""
    made, load = [], PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls, path, *args, **kwargs):
        outcome = load(cls, path, *args, **kwargs)
        model = outcome[0] if kwargs.get("output_loading_info") else outcome
        made.append((Path(path), weakref.ref(model)))
        return outcome

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))
    return made


@pytest.mark.parametrize("overrides", [["trainer.args.beta=0.04"], ["model/peft=lora"]], ids=["reference", "LoRA"])
def test_what_a_stage_has_made_is_gone_in_the_next(healthy, tmp_path, monkeypatch, loaded, overrides):
    run_dir = frozen(healthy("grpo", *overrides, "trainer.max_steps=2"), tmp_path / "run", evaluate=JUDGED)
    found, evaluate = {}, stages.evaluate_splits

    def evaluated(*args, name, **kwargs):
        found[name] = sum(model() is not None for _, model in loaded)
        return evaluate(*args, name=name, **kwargs)

    monkeypatch.setattr(stages, "evaluate_splits", evaluated)
    assert work(run_dir) == 0
    assert found == {"before": 1, "last": 1, "best": 1}
    assert run_dir / "checkpoints" / "last" not in [path for path, _ in loaded], "it is in memory by then"
    result = json.loads((run_dir / "result.json").read_text())
    assert list(result["test_sets"]["test"]) == ["before", "best", "last"]
    assert result["after_is"] == "best"


def test_a_resumed_run_loads_its_checkpoint_alone(healthy, tmp_path, monkeypatch, loaded):
    """What the base can do is known by then."""
    run_dir = frozen(healthy("grpo"), tmp_path / "run", evaluate=JUDGED)
    with monkeypatch.context() as while_faulty:
        while_faulty.setattr(GRPOTrainer, "_compute_loss", nan_loss_at(FAULTY, GRPOTrainer._compute_loss))
        assert work(run_dir) == 3
    loaded.clear()
    set_resume(run_dir, run_dir, resume=True)
    assert read_config(run_dir)["run"]["resume"]
    assert work(run_dir) == 0
    checkpoints = run_dir / "checkpoints"
    assert [path for path, _ in loaded] == [checkpoints / "checkpoint-3", checkpoints / "best"]
