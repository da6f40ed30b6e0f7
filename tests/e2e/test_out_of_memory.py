"""Memory that runs out in the middle of a training: smaller micro-batches, the same steps, from the last checkpoint."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from healthy_run import lines_of, read_config, torchrun, work
from safetensors.torch import load_file
from transformers import Qwen2VLForConditionalGeneration

from vrft.config.batch_sizes import derive
from vrft.config.schema import Config
from vrft.errors import ExitCode
from vrft.evaluate import completions
from vrft.run import experiment, health, processes, training
from vrft.train import grpo
from vrft.train.grpo import ResumableSharing

TOO_MUCH = 2**46  # bytes: the allocator refuses


def in_this_process(run_dir: Path, config: Config) -> int:
    """What `processes.start_worker` does, without a process of its own."""
    health.remove_statuses(run_dir)
    status = health.Status()
    status.begin(run_dir, 0)
    code = work(run_dir, status)
    status.say(state="finished", code=code)
    return code


def smaller(healthy, run_dir: Path, **memory) -> dict:
    """The healthy run's config, in another folder and with other settings of memory."""
    config = read_config(healthy("grpo"))
    config["run"]["dir"] = str(run_dir)
    config["memory"] |= {"completions_per_device": 4} | memory
    return dealt_out(config)


def dealt_out(config: dict) -> dict:
    """The config with its batches derived again."""
    return derive(Config.model_validate(config), device="cpu").plain()


def scarce(monkeypatch, *, n_rows: int, step: int) -> None:
    """From that step on there is memory for so many rows at once."""
    compute_loss = ResumableSharing._compute_loss

    def compute(self, model, inputs):
        if self.state.global_step + 1 >= step and len(inputs["completion_ids"]) > n_rows:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return compute_loss(self, model, inputs)

    monkeypatch.setattr(ResumableSharing, "_compute_loss", compute)


def test_a_run_out_of_memory_goes_on_with_smaller_micro_batches(healthy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "start_worker", in_this_process)
    run_dir = tmp_path / "run"
    config = smaller(healthy, run_dir)
    scarce(monkeypatch, n_rows=2, step=5)
    assert experiment.run_experiment(Config.model_validate(config), choices={}, overrides=[]) == 0
    said = capsys.readouterr().err
    assert "out of memory in the loss of step 5; resuming with memory.completions_per_device=2 (it was 4)" in said
    assert "resuming from" in said
    assert "checkpoint-3" in said
    (line,) = lines_of(run_dir / "oom.jsonl")
    assert (line["phase"], line["step"], line["from"], line["to"]) == ("step", 5, 4, 2)
    assert "allocate" in line["error"]
    after = read_config(run_dir)
    assert after["derived"]["gradient_accumulation_steps"] == 2 * config["derived"]["gradient_accumulation_steps"]
    for key in ("num_generations", "max_completion_length"):
        assert after["memory"][key] == config["memory"][key]
    log = lines_of(run_dir / "metrics.jsonl")
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    whole = healthy("grpo")  # all completions of a step in one micro-batch
    for step in range(1, 7):
        name = f"step_{step:06d}.jsonl"
        texts = [[row["text"] for row in lines_of(folder / "rollouts" / name)] for folder in (whole, run_dir)]
        assert sorted(texts[0]) == sorted(texts[1])
    weights = [load_file(folder / "checkpoints" / "last" / "model.safetensors") for folder in (whole, run_dir)]
    assert max((weights[0][name] - weights[1][name]).abs().max() for name in weights[0]) < 1e-5


@pytest.mark.slow
def test_what_was_sampled_and_not_yet_used_is_cut_up_too(healthy, tmp_path, monkeypatch):
    """Each generation serves two steps; the third step's checkpoint lies in the middle of one."""
    run_dir = tmp_path / "run"
    config = smaller(healthy, run_dir)
    config["trainer"]["args"] |= {"num_iterations": 2}
    whole = copy.deepcopy(config)
    whole["run"]["dir"] = str(tmp_path / "whole")
    monkeypatch.setattr(experiment, "start_worker", in_this_process)
    assert experiment.run_experiment(Config.model_validate(whole), choices={}, overrides=[]) == 0
    scarce(monkeypatch, n_rows=2, step=4)
    assert experiment.run_experiment(Config.model_validate(config), choices={}, overrides=[]) == 0
    (line,) = lines_of(run_dir / "oom.jsonl")
    assert (line["step"], line["from"], line["to"]) == (4, 4, 2)
    weights = [
        load_file(folder / "checkpoints" / "last" / "model.safetensors") for folder in (tmp_path / "whole", run_dir)
    ]
    assert max((weights[0][name] - weights[1][name]).abs().max() for name in weights[0]) < 1e-5


def test_where_nothing_smaller_helps_the_run_ends_and_names_what_is_left(healthy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "start_worker", in_this_process)
    run_dir = tmp_path / "run"
    config = smaller(healthy, run_dir, completions_per_device=2)
    scarce(monkeypatch, n_rows=0, step=1)
    assert experiment.run_experiment(Config.model_validate(config), choices={}, overrides=[]) == ExitCode.OUT_OF_MEMORY
    said = capsys.readouterr().err
    assert "smaller batches cannot help; left to turn in a new run are memory.gradient_checkpointing=true" in said
    assert "memory.max_pixels=200704, model/peft=lora, memory.num_generations=" in said
    assert "deepspeed" not in said
    assert [line["to"] for line in lines_of(run_dir / "oom.jsonl")] == [1, None]


@pytest.mark.parametrize("owner", ["load_model", "GRPOConfig", "create_optimizer"])
def test_while_weights_are_loaded_no_batch_is_halved(healthy, tmp_path, monkeypatch, capsys, owner):
    """Of the policy, of what the trainer holds beside it, and of the optimizer just before the first step."""
    monkeypatch.setattr(experiment, "start_worker", in_this_process)
    where = {"load_model": training, "GRPOConfig": grpo, "create_optimizer": ResumableSharing}[owner]
    monkeypatch.setattr(where, owner, lambda *_, **__: torch.empty(TOO_MUCH, dtype=torch.uint8))
    run_dir = tmp_path / "run"
    assert (
        experiment.run_experiment(Config.model_validate(smaller(healthy, run_dir)), choices={}, overrides=[])
        == ExitCode.OUT_OF_MEMORY
    )
    said = capsys.readouterr().err
    assert "out of memory while the weights were loaded: smaller batches cannot help; left to turn" in said
    assert "are model/peft=lora, a smaller model=; see vrft plan" in said
    (line,) = lines_of(run_dir / "oom.jsonl")
    assert (line["phase"], line["to"]) == ("loading", None)


@pytest.mark.parametrize("sharing", ["auto", None])
def test_in_a_rollout_no_batch_is_halved(healthy, tmp_path, monkeypatch, capsys, sharing):
    monkeypatch.setattr(experiment, "start_worker", in_this_process)
    monkeypatch.setattr(
        Qwen2VLForConditionalGeneration, "generate", lambda *_, **__: torch.empty(TOO_MUCH, dtype=torch.uint8)
    )
    run_dir = tmp_path / "run"
    config = smaller(healthy, run_dir)
    config["trainer"]["eval_steps"] = None  # a validation would come first
    config["rollout"]["sharing"] = sharing
    assert experiment.run_experiment(Config.model_validate(config), choices={}, overrides=[]) == ExitCode.OUT_OF_MEMORY
    assert "out of memory in the rollout of step" in capsys.readouterr().err
    (line,) = lines_of(run_dir / "oom.jsonl")
    assert (line["phase"], line["to"]) == ("rollout", None)


def test_a_validation_out_of_memory_goes_on_in_smaller_batches(healthy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "start_worker", in_this_process)
    run_dir = tmp_path / "run"
    config = smaller(healthy, run_dir, evaluation_batch_size=2)
    write = completions.generate_texts

    def scarcely(model, processor, questions, *args, **options):
        if len(questions) > 1:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return write(model, processor, questions, *args, **options)

    monkeypatch.setattr(completions, "generate_texts", scarcely)
    assert experiment.run_experiment(Config.model_validate(config), choices={}, overrides=[]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert len(said) == 1, said
    assert "resuming with memory.evaluation_batch_size=1 (it was 2); greedy completions stay" in said[0]
    (line,) = lines_of(run_dir / "oom.jsonl")
    assert (line["phase"], line["from"], line["to"]) == ("evaluation", 2, 1)
    after = read_config(run_dir)
    assert after["derived"] == config["derived"]
    validated = [
        [entry for entry in lines_of(folder / "metrics.jsonl") if any(key.startswith("validation/") for key in entry)]
        for folder in (healthy("grpo"), run_dir)
    ]
    assert [entry["step"] for entry in validated[1]] == [0, 2, 4, 6]
    metric = next(key for key in validated[0][0] if key.startswith("validation/") and key != "validation/n")
    assert [entry[metric] for entry in validated[0]] == pytest.approx([entry[metric] for entry in validated[1]])


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_process_that_hits_its_limit_is_started_again(healthy, tmp_path, monkeypatch, capsys, n_processes):
    """Processes of their own, with a limit on their address space, on the second of two alone."""
    run_dir = tmp_path / "run"
    config = smaller(healthy, run_dir, completions_per_device=5 if n_processes == 2 else 4)
    if n_processes > 1:
        config["launch"] = torchrun(n_processes)
    config = dealt_out(config)
    usual = processes.worker_command

    def tight(run_dir: Path, config: Config) -> list[str]:
        command = usual(run_dir, config)
        place = command.index("vrft.run.worker")
        return [*command[: place - 1], str(Path(__file__).with_name("tight_run.py")), *command[place + 1 :]]

    monkeypatch.setattr(processes, "worker_command", tight)
    assert experiment.run_experiment(Config.model_validate(config), choices={}, overrides=[]) == 0
    assert "resuming with memory.completions_per_device=" in capsys.readouterr().err
    (line,) = lines_of(run_dir / "oom.jsonl")
    assert line["rank"] == n_processes - 1
    assert json.loads((run_dir / "result.json").read_text())["durations_s"]["train"] > 0
