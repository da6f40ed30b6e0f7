"""Derived batch sizes, the config's hash, the shape check, TRL's fields and the record of a run."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from vrft.config.batch_sizes import batch_sizes
from vrft.config.package_files import TINY_MODEL
from vrft.config.shapes import shape_faults
from vrft.config.trl_fields import FIXED, OWN_KEYS, trl_fields
from vrft.errors import UserError
from vrft.run.directory import code_state, fresh_run_dir, weight_hash
from vrft.run.resume import config_hash
from vrft.run.rows import check_rows, needed_splits
from vrft.tasks import load_task


def settings(*, trainer="grpo", prompts, group=8, limit=None, processes=1) -> dict:
    return {
        "trainer": {"name": trainer, "prompts_per_step": prompts},
        "memory": {"num_generations": group, "completions_per_device": limit},
        "launch": {"nproc_per_node": processes},
    }


@pytest.mark.parametrize(
    ("given", "per_device", "accumulation"),
    [
        (settings(prompts=8), 64, 1),  # the demo: everything at once
        (settings(prompts=16, limit=8, processes=8), 8, 2),  # published: 8 GPUs, 16 prompts of 8
        (settings(prompts=16, group=4, limit=1, processes=8), 1, 8),  # gpu_24gb
        (settings(prompts=2, group=3, limit=5), 3, 2),  # 5 does not divide 6: the next smaller that does
        (settings(prompts=7, group=1, limit=4, trainer="sft"), 1, 7),  # a prime share
        (settings(prompts=16, group=8, limit=4, trainer="sft"), 4, 4),  # SFT counts rows, whatever G is
        (settings(prompts=1, group=8, processes=2), 4, 1),  # a group may be shared out
    ],
)
def test_a_step_is_shared_out(given, per_device, accumulation):
    assert batch_sizes(given) == {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
    }


def test_sweeping_the_group_leaves_the_prompts_of_a_step():
    for group in (2, 4, 8, 16):
        sizes = batch_sizes(settings(prompts=16, group=group, limit=8, processes=4))
        completions = sizes["per_device_train_batch_size"] * sizes["gradient_accumulation_steps"] * 4
        assert completions == 16 * group


def test_processes_that_cannot_share_a_step_are_refused_with_the_arithmetic():
    with pytest.raises(UserError, match=r"2 × 3 = 6 .*nproc_per_node=4 .*prompts_per_step=4 would do"):
        batch_sizes(settings(prompts=2, group=3, processes=4))


def test_the_hash_is_of_what_can_change_a_result():
    config = {
        "run": {"name": "a", "dir": "runs/a", "seed": 0, "resume": False},
        "model": {"path": str(TINY_MODEL)},
        "trainer": {"max_steps": 50},
        "launch": {"name": "local", "threads": None, "nproc_per_node": 2},
        "logging": {"report_to": []},
        "derived": {"device": "cpu"},
    }
    same, other = copy.deepcopy(config), copy.deepcopy(config)
    same["run"] |= {"name": "b", "dir": "elsewhere", "resume": True}
    same["logging"]["report_to"] = ["wandb"]
    same["launch"] |= {"name": "slurm", "threads": 4, "nnodes": 1, "partition": "gpu"}  # who starts the processes
    machines = copy.deepcopy(config)
    machines["launch"] |= {"nnodes": 2, "nproc_per_node": 1}
    assert config_hash(config) != config_hash(machines)
    other["run"]["seed"] = 1
    assert config_hash(config) == config_hash(same)
    assert config_hash(config) != config_hash(other)
    assert config["run"]["name"] == "a"  # left alone


@dataclasses.dataclass
class Inner:
    size: int
    share: float | None


@dataclasses.dataclass
class Outer:
    inner: Inner
    names: list[str]
    table: dict[str, float]
    note: str = ""


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({}, []),
        ({"inner": {"size": 1, "share": None}}, []),
        ({"inner": {"size": True, "share": 1}}, ["inner.size is True; an integer is needed"]),  # a bool is no integer
        ({"inner": {"size": 1.0, "share": 1}}, ["inner.size is 1.0; an integer is needed"]),
        ({"inner": None}, ["inner is None; a mapping is needed"]),
        ({"names": ["a", 1]}, ["names is ['a', 1]; a list of texts is needed"]),
        ({"table": {"a": "1"}}, ["table is {'a': '1'}; a mapping to numbers is needed"]),
        ({"nmes": []}, ["the config has no key 'nmes'; did you mean names? known: inner, names, table, note"]),
    ],
)
def test_shape_faults(change, faults):
    value = {"inner": {"size": 2, "share": 0.5}, "names": ["a"], "table": {"a": 1}} | change
    assert list(shape_faults(value, Outer)) == faults


def test_missing_keys_are_named():
    assert list(shape_faults({"size": 1}, Inner, "inner")) == ["inner.share is missing; a number or null is needed"]


@pytest.mark.parametrize(("trainer", "class_name"), [("grpo", "GRPOConfig"), ("sft", "SFTConfig")])
def test_fields_read_from_the_source_are_trls_own(trainer, class_name):
    import trl

    assert set(trl_fields(trainer)) == {field.name for field in dataclasses.fields(getattr(trl, class_name))}


def test_own_keys_are_fields_of_trl():
    assert {*OWN_KEYS, *FIXED} <= set(trl_fields("grpo"))
    assert not set(OWN_KEYS) & set(FIXED)


def test_a_failed_start_leaves_no_run_directory(tmp_path):
    def start() -> None:
        with fresh_run_dir(tmp_path / "run", is_resuming=False):
            (tmp_path / "run" / "data").mkdir()
            raise UserError("no rows")

    with pytest.raises(UserError, match="no rows"):
        start()
    assert not (tmp_path / "run").exists()


def test_a_failed_resumption_keeps_what_was_there(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(UserError), fresh_run_dir(tmp_path, is_resuming=True):
        raise UserError("other data")
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_rows_are_checked_by_their_task():
    good = {"row_id": "a", "image_wh": [10, 10], "phrase": "x", "gold": [0, 0, 5, 5]}
    bad = good | {"row_id": "b", "gold": [0, 0, 50, 5]}
    needed = needed_splits(
        {"evaluate": {"before": True, "train": True, "after": True}, "trainer": {"eval_steps": None}}
    )
    with pytest.raises(UserError) as refused:
        check_rows({"train": [good, bad], "test": []}, load_task("grounding"), needed=needed)
    assert "train, row b" in str(refused.value)
    assert "the split test has no rows" in str(refused.value)
    assert "row a" not in str(refused.value)


def test_weights_are_hashed_by_content(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = weight_hash(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert len(first) == 64
    assert weight_hash(tmp_path) != first
    assert weight_hash(tmp_path / "no_such_folder") is None


def test_code_outside_a_checkout_has_no_commit(tmp_path):
    assert code_state(tmp_path) == {"commit": None, "is_dirty": None}
