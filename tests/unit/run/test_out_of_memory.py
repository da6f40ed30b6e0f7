"""What a run is told that is out of memory: knobs that its config may have, and that help where it was."""

from __future__ import annotations

import json

import pytest
from configs import composed

from vrft.config.schema import Config
from vrft.errors import UserError
from vrft.run import health, out_of_memory
from vrft.run.resume import lasting_hash

LARGE = ("model=qwen2_vl_2b", "trainer.max_steps=1", "trainer.prompts_per_step=8")


def large(*overrides: str) -> Config:
    return composed(*LARGE, *overrides, device="cuda", is_remote=True)


@pytest.mark.parametrize(
    ("overrides", "phase", "told", "not_told"),
    [
        # SFT has no groups
        (["deepspeed=zero2", "trainer=sft"], "step", ["model/peft=lora"], ["num_generations", "completion_length"]),
        # weights of 4 bits cannot be cut up, and one process has nobody to share with
        (
            ["model/peft=qlora"],
            "step",
            ["gradient_checkpointing=true", "num_generations=4"],
            ["deepspeed", "model/peft"],
        ),
        (["deepspeed=zero2"], "step", ["deepspeed=zero3_offload"], ["deepspeed=zero3,"]),
        (
            ["deepspeed=zero2", "launch=torchrun", "launch.nproc_per_node=2"],
            "step",
            ["deepspeed=zero3,"],
            ["evaluation_batch_size", "completions_per_device"],
        ),
        (
            ["deepspeed=zero2", "rollout=vllm_colocate"],
            "rollout",
            [
                "rollout.vllm.gpu_memory_utilization (now ",
                "prompts_per_step (now 8)",
                "max_completion_length (now 512)",
            ],
            ["gradient_checkpointing"],
        ),
        (
            ["deepspeed=zero2", "launch=torchrun", "launch.nproc_per_node=2"],
            "loading",
            ["deepspeed=zero3,", "model/peft=lora,", "model/peft=qlora,", "a smaller model="],
            ["completion_length", "max_pixels", "prompts_per_step", "num_generations", "checkpointing"],
        ),
        # vLLM cannot be given weights of 4 bits, and ZeRO-3 cannot share them out
        (["deepspeed=zero2", "rollout=vllm_colocate"], "loading", ["gpu_memory_utilization (now "], ["qlora"]),
        (["deepspeed=zero3"], "loading", ["a smaller model="], ["qlora"]),
        # what is only judged has neither optimizer nor adapter
        (
            ["evaluate.train=false", "evaluate.before=true"],
            "loading",
            ["are model.quantization=nf4, a smaller model=;"],
            ["deepspeed", "peft"],
        ),
        (["deepspeed=zero2"], "evaluation", ["memory.max_pixels=200704"], ["num_generations", "prompts_per_step"]),
    ],
)
def test_only_what_is_allowed_and_helps_is_told(overrides, phase, told, not_told):
    said = out_of_memory._knobs(large(*overrides), phase)
    assert [word for word in told if word not in said] == []
    assert [word for word in not_told if word in said] == []


def test_a_loss_that_depends_on_the_micro_batch_is_said_to_change(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(health, "read_statuses", lambda run_dir: [{"oom": "step", "rank": 0}])
    for loss_type, is_told in (("bnpo", True), ("grpo", False)):
        out_of_memory.backed_off(tmp_path, large("deepspeed=zero2", f"trainer.args.loss_type={loss_type}"))
        assert ("loss_type=bnpo divides by a micro-batch's tokens" in capsys.readouterr().err) == is_told


def test_a_line_that_a_kill_has_cut_is_passed_over(tmp_path):
    record = tmp_path / out_of_memory.RECORD
    record.write_text('{"phase": "step", "to": 2}\n{"phase": "step", "from": 8, "t')
    config = large("memory.completions_per_device=8", "deepspeed=zero2")
    assert out_of_memory.remembered(tmp_path, config).memory.completions_per_device == 2
    record.write_text('{"phase": "step", "to": "x"}\n')
    with pytest.raises(UserError, match=r"oom.jsonl, line 1: to is 'x'"):
        out_of_memory.remembered(tmp_path, config)


def test_both_kinds_of_batches_are_remembered(tmp_path):
    lines = [("step", 64, 32), ("evaluation", 64, 16), ("rollout", 32, None), ("evaluation", 16, 8)]
    (tmp_path / "oom.jsonl").write_text(
        "".join(json.dumps({"phase": phase, "from": before, "to": to}) + "\n" for phase, before, to in lines)
    )
    config = large("deepspeed=zero2")
    after = out_of_memory.remembered(tmp_path, config)
    assert (after.memory.completions_per_device, after.memory.evaluation_batch_size) == (32, 8)
    assert after.derived.gradient_accumulation_steps == 2
    assert lasting_hash(after.plain()) == lasting_hash(config.plain())  # it is the same run
