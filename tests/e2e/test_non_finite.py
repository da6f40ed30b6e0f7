"""A loss or gradient that is NaN in the middle of a training, and the comparison that shows what came of it.

The run ends or goes on as configured, says which rows, and no checkpoint has any of it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from faulty_run import nan_loss_at
from healthy_run import (
    FAULTY,
    N_STEPS,
    SAVED,
    frozen,
    lines_of,
    read_config,
    sampled_rows,
    torchrun,
    work,
    write_config,
)
from safetensors.torch import load_file
from torture.harness import differences, set_resume
from trl import GRPOTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from vrft.config.package_files import config_folder
from vrft.config.schema import Config
from vrft.files import check_whole
from vrft.report.page import write_report
from vrft.run import processes, training
from vrft.train.checkpoints import newest_checkpoint


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# --- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ["grpo", "sft"])
def test_the_same_run_twice_gives_the_same_bits(healthy, tmp_path, trainer):
    """Weights, optimizer, random states, logs (times aside) and completions; by two command lines: test_smoke.py."""
    alone = healthy(trainer)
    run_dir = frozen(alone, tmp_path / "again")
    assert work(run_dir) == 0
    assert differences(alone, run_dir, last=f"checkpoint-{N_STEPS}") == []
    assert any(entry.get("grad_norm") for entry in lines_of(run_dir / "metrics.jsonl")), "there was something to learn"
    validations = [entry["step"] for entry in lines_of(run_dir / "metrics.jsonl") if "validation/n" in entry]
    assert validations == [0, 2, 4, 6], "once each, though an epoch ends with the step"


def test_another_seed_gives_other_bits(healthy, tmp_path):
    """That the comparison can fail."""
    run_dir = frozen(healthy("grpo"), tmp_path / "run", run={"seed": 1})
    assert work(run_dir) == 0
    found = differences(healthy("grpo"), run_dir, last=f"checkpoint-{N_STEPS}")
    for part in ("/model.safetensors", "/optimizer.pt", "rollouts/step_000000.jsonl", "metrics.jsonl"):
        assert any(name.endswith(part) for name in found), part


# --- a loss or gradient that is NaN ----------------------------------------------------------------------------------


def nan_grpo_loss(monkeypatch) -> None:
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", nan_loss_at(FAULTY, GRPOTrainer._compute_loss))


def nan_gradient(monkeypatch) -> None:
    """Of one weight, beside a finite loss."""
    clip = transformers.Trainer._clip_grad_norm

    def clip_what_is_nan(self, model):
        if self.state.global_step + 1 == FAULTY:
            next(iter(weight.grad for weight in model.parameters() if weight.grad is not None)).view(-1)[0] = torch.nan
        return clip(self, model)

    monkeypatch.setattr(transformers.Trainer, "_clip_grad_norm", clip_what_is_nan)


def nan_pixels(monkeypatch, nth_batch: int = FAULTY) -> list[str]:
    """An image of NaN in one batch of SFT; the rows of that batch, once it has been put together."""
    collate, calls, rows = DataCollatorForVisionLanguageModeling.__call__, [], []

    def collate_once_badly(self, examples, *args, **kwargs):
        calls.append(len(examples))
        batch = collate(self, examples, *args, **kwargs)
        if len(calls) == nth_batch:
            rows.extend(sorted(example["row_id"] for example in examples))
            batch["pixel_values"][0] = torch.nan
        return batch

    monkeypatch.setattr(DataCollatorForVisionLanguageModeling, "__call__", collate_once_badly)
    return rows


def assert_untouched(run_dir: Path, alone: Path) -> None:
    """The newest checkpoint is that before the fault, whole, byte for byte the healthy run's; so is the best."""
    newest = newest_checkpoint(run_dir / "checkpoints")
    assert newest.name == f"checkpoint-{SAVED}"
    name = f"{newest.name}/model.safetensors"
    assert (run_dir / "checkpoints" / name).read_bytes() == (alone / "checkpoints" / name).read_bytes()
    check_whole(run_dir / "checkpoints" / "best")
    assert all(weight.isfinite().all() for weight in weights(run_dir / "checkpoints" / "best").values())
    assert not (run_dir / "checkpoints" / "last").exists()


@pytest.mark.parametrize(
    ("trainer", "inject", "what"),
    [("grpo", nan_grpo_loss, "loss"), ("grpo", nan_gradient, "gradient"), ("sft", nan_pixels, "loss")],
    ids=["GRPO, loss", "GRPO, gradient", "SFT, an image of NaN"],
)
def test_a_nan_stops_the_run_before_the_step(healthy, tmp_path, monkeypatch, capsys, trainer, inject, what):
    alone = healthy(trainer)
    run_dir = frozen(alone, tmp_path / "run")
    with monkeypatch.context() as while_faulty:
        rows = inject(while_faulty)
        assert work(run_dir) == 3
    rows = rows or sampled_rows(alone, FAULTY)
    assert len(rows) == 5
    told = f"the {what} is nan in the batch of rows {', '.join(rows)}"
    assert f"vrft: {told}; the optimizer has not stepped on it" in capsys.readouterr().err
    assert lines_of(run_dir / "alarms.jsonl") == [
        {"step": FAULTY, "rule": "non_finite", "action": "stop", "message": told}
    ]
    assert_untouched(run_dir, alone)
    result = json.loads((run_dir / "result.json").read_text())
    assert result["after"] is None
    assert [entry["step"] for entry in result["validation"]] == [0, 2, 4]
    page = write_report(run_dir).read_text()
    assert f"The alarm non_finite stopped the training at step {FAULTY}." in page
    assert told in page

    set_resume(alone, run_dir, resume=True)  # the cause is mended
    assert work(run_dir) == 0
    assert differences(alone, run_dir, last=f"checkpoint-{N_STEPS}") == [], "in the middle of the second epoch"
    assert lines_of(run_dir / "alarms.jsonl") == []


@pytest.mark.parametrize(("trainer", "inject"), [("grpo", nan_grpo_loss), ("sft", nan_pixels)])
def test_a_run_goes_on_between_two_epochs_as_if_it_had_not_stopped(healthy, tmp_path, monkeypatch, trainer, inject):
    run_dir = frozen(healthy(trainer), tmp_path / "run", trainer={"save_steps": 2})
    with monkeypatch.context() as while_faulty:
        inject(while_faulty)
        assert work(run_dir) == 3
    assert newest_checkpoint(run_dir / "checkpoints").name == "checkpoint-4"
    frozen_config = read_config(run_dir)
    frozen_config["run"]["resume"] = True
    write_config(run_dir, frozen_config)
    assert work(run_dir) == 0
    found = differences(healthy(trainer), run_dir, last=f"checkpoint-{N_STEPS}")
    assert found == [f"checkpoints/checkpoint-{N_STEPS}/trainer_state.json"], "which holds save_steps"


@pytest.mark.parametrize(
    "overrides",
    [
        ["+trainer.args.steps_per_generation=2"],  # saved after 3 steps: half of a generation is to come
        ["+trainer.args.sync_ref_model=true", "+trainer.args.ref_model_sync_steps=2", "trainer.args.beta=0.04"],
        ["model/peft=lora"],
    ],
    ids=["generation", "moving reference", "LoRA"],
)
def test_a_run_goes_on_with_all_that_it_held(healthy, tmp_path, monkeypatch, overrides):
    alone = healthy("grpo", *overrides)
    run_dir = frozen(alone, tmp_path / "run")
    with monkeypatch.context() as while_faulty:
        nan_grpo_loss(while_faulty)
        assert work(run_dir) == 3
    set_resume(alone, run_dir, resume=True)
    assert work(run_dir) == 0
    assert differences(alone, run_dir, last=f"checkpoint-{N_STEPS}") == []
    assert not (run_dir / "checkpoints" / "README.md").exists(), "TRL's card, which knows neither model nor task"


def test_the_best_of_before_the_checkpoint_outlives_what_is_trained_again(healthy, tmp_path, monkeypatch):
    """Validations at steps 0, 2 and 4 rise, the checkpoint is of step 3; trained again, step 4 comes out worse."""
    run_dir = frozen(healthy("grpo"), tmp_path / "run")
    taken = iter([0.1, 0.2, 0.3, 0.05, 0.1])

    def validated(experiment, policy, splits, **_):
        figure = {"value": next(taken), "n": 4, "interval": None}
        return {"validation": {experiment.protocol: {experiment.primary_metrics[0]: figure}}}

    monkeypatch.setattr(training, "evaluate_splits", validated)
    with monkeypatch.context() as while_faulty:
        nan_grpo_loss(while_faulty)
        assert work(run_dir) == 3
    card = run_dir / "checkpoints" / "best" / "vrft.json"
    assert json.loads(card.read_text())["step"] == 4
    set_resume(healthy("grpo"), run_dir, resume=True)
    assert work(run_dir) == 0
    assert json.loads(card.read_text())["step"] == 2
    assert not list((run_dir / "checkpoints").glob("*.previous"))


def test_of_a_step_in_parts_the_rows_of_the_part_are_named(healthy, tmp_path, monkeypatch):
    """Five rows a step, one at a time: the batch is one row."""
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 5}
    run_dir = frozen(healthy("sft"), tmp_path / "run", derived=parts)
    rows = nan_pixels(monkeypatch, nth_batch=(FAULTY - 1) * 5 + 2)
    assert work(run_dir) == 3
    (alarm,) = lines_of(run_dir / "alarms.jsonl")
    assert len(rows) == 1
    assert (alarm["step"], alarm["message"]) == (FAULTY, f"the loss is nan in the batch of rows {rows[0]}")


def test_or_the_run_goes_on_to_judge_its_best(healthy, tmp_path, monkeypatch):
    alone = healthy("grpo")
    judged = {"after": True, "checkpoint": "last", "also": ["last"]}
    run_dir = frozen(alone, tmp_path / "run", alarms={"non_finite": "stop_keep_best"}, evaluate=judged)
    nan_grpo_loss(monkeypatch)
    assert work(run_dir) == 0
    assert_untouched(run_dir, alone)
    result = json.loads((run_dir / "result.json").read_text())
    assert result["after_is"] == "best"
    assert result["after"]["grounding_v1"]["accuracy@0.5"]["n"] == 4
    assert [entry["step"] for entry in result["validation"]] == [0, 2, 4]
    page = write_report(run_dir).read_text()
    assert f"The alarm non_finite stopped the training at step {FAULTY}." in page
    assert f"the loss is nan in the batch of rows {', '.join(sampled_rows(alone, FAULTY))}" in page


def test_with_the_guard_off_the_nan_is_in_the_weights(healthy, tmp_path, monkeypatch):
    """What the two others keep from happening. The last step, for a model of NaN cannot sample."""
    run_dir = frozen(healthy("grpo"), tmp_path / "run", alarms={"non_finite": "off"}, trainer={"max_steps": FAULTY})
    nan_grpo_loss(monkeypatch)
    assert work(run_dir) == 0
    assert any(weight.isnan().any() for weight in weights(run_dir / "checkpoints" / "last").values())
    assert "non_finite" not in [alarm["rule"] for alarm in lines_of(run_dir / "alarms.jsonl")]


def on_two_processes(alone: Path, run_dir: Path, monkeypatch, *, rank: int, stage: str) -> int:
    """`vrft train launch=torchrun` from where the worker starts, the loss being NaN on one process; the exit code."""
    config = {"launch": torchrun(2), "derived": {"per_device_train_batch_size": 10}}
    deepspeed = yaml.safe_load((config_folder() / "deepspeed" / f"{stage}.yaml").read_text(encoding="utf-8"))
    frozen(alone, run_dir, deepspeed=deepspeed, **config)
    command = processes.worker_command

    def faulty(run_dir, config):
        *torchrun, _, _, _ = command(run_dir, config)
        return [*torchrun, str(Path(__file__).with_name("faulty_run.py")), str(run_dir), str(rank), str(FAULTY)]

    monkeypatch.setattr(processes, "worker_command", faulty)
    return processes.start_worker(run_dir, Config.model_validate(read_config(run_dir)))


@pytest.mark.parametrize(
    ("rank", "stage"),
    [
        pytest.param(0, "none", marks=pytest.mark.slow),
        pytest.param(1, "none", marks=pytest.mark.slow),
        pytest.param(1, "zero2", marks=pytest.mark.scale),
        pytest.param(0, "zero3", marks=pytest.mark.scale),
    ],
)
def test_of_two_processes_the_one_whose_loss_is_nan_names_its_rows(healthy, tmp_path, monkeypatch, capfd, rank, stage):
    """The gradients of both are NaN, for they are averaged; where DeepSpeed steps at once, the loss is seen before."""
    run_dir = tmp_path / "run"
    assert on_two_processes(healthy("grpo"), run_dir, monkeypatch, rank=rank, stage=stage) == 3
    own, others = (sampled_rows(run_dir, FAULTY, "_rank1" if one else "") for one in (rank, 1 - rank))
    assert own != others
    told = capfd.readouterr().err
    assert f"the loss is nan in the batch of rows {', '.join(own)};" in told
    assert "ended before it began" not in told
    assert newest_checkpoint(run_dir / "checkpoints").name == f"checkpoint-{SAVED}"
    (alarm,) = lines_of(run_dir / "alarms.jsonl")
    assert alarm["step"] == FAULTY
