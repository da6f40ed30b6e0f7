"""A reward term of the user's own that raises, hangs or is no number on one row, in the middle of a training.

The run ends or goes on as configured, and says which row.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from healthy_run import frozen, lines_of, read_config, sampled_rows, torchrun, work, write_config

from vrft.config.schema import Config
from vrft.run import processes
from vrft.train.checkpoints import newest_checkpoint

OWN_TERM = """
import time


def term(parsed, row, images):
    if row["row_id"] == {row_id!r}:
        {fault}
    return 1.0
"""
FAULTS = {
    "raises": ("raise KeyError('colour')", "KeyError: 'colour'"),
    "hangs": ("time.sleep(600)", "it took longer than reward.options.timeout_s=0.2 seconds"),
    "is NaN": ("return float('nan')", "it returned nan"),
}


@pytest.fixture
def with_own_term(healthy, tmp_path, monkeypatch):
    """`with_own_term(fault, on_fault)`: a run directory whose reward has a term of the user's own that fails on one
    row, first seen in the second step (there on the last process), and that row."""
    module = f"own_term_of_{tmp_path.name}"
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(fault: str, on_fault: str) -> tuple[Path, str, str]:
        alone = healthy("grpo")
        row_id = lines_of(alone / "rollouts" / "step_000001.jsonl")[-1]["row_id"]
        assert row_id not in sampled_rows(alone, 1)
        (tmp_path / f"{module}.py").write_text(OWN_TERM.format(row_id=row_id, fault=fault))
        run_dir = frozen(alone, tmp_path / "run", trainer={"save_steps": 1, "max_steps": 2})
        config = read_config(run_dir)
        config["reward"]["weights"][f"{module}.term"] = 1.0
        config["reward"]["options"] |= {"on_fault": on_fault, "timeout_s": 0.2}
        config["trust_code"] = [module]
        write_config(run_dir, config)
        return run_dir, row_id, f"{module}.term"

    yield made
    sys.modules.pop(module, None)


@pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS)
def test_a_reward_that_fails_ends_the_run_and_says_on_which_row(with_own_term, capsys, fault, words):
    run_dir, row_id, term = with_own_term(fault, "stop")
    assert work(run_dir) == 2
    told = capsys.readouterr().err
    assert f"the reward term {term} failed on row {row_id} (completion " in told
    assert words in told
    assert newest_checkpoint(run_dir / "checkpoints").name == "checkpoint-1"
    assert not (run_dir / "result.json").exists()


@pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS)
def test_or_it_counts_and_every_completion_of_that_row_is_marked(with_own_term, capsys, fault, words):
    run_dir, row_id, term = with_own_term(fault, "zero")
    assert work(run_dir) == 0
    told = capsys.readouterr().err
    assert told.count(f"warning: the reward term {term} failed on row {row_id} (completion ") == 1
    assert words in told
    cases = [case for path in sorted((run_dir / "rollouts").iterdir()) for case in lines_of(path)]
    failed = [case for case in cases if case.get("failed_terms") == [term]]
    assert {case["row_id"] for case in failed} == {row_id}
    assert len(failed) == sum(case["row_id"] == row_id for case in cases) == 4
    assert {case["terms"][term] for case in failed} == {0.0}
    assert {case["terms"][term] for case in cases if case["row_id"] != row_id} == {1.0}
    n_faults = [
        entry.get(f"term_faults/{term}", 0) for entry in lines_of(run_dir / "metrics.jsonl") if "reward" in entry
    ]
    assert n_faults == [0, 4]


@pytest.mark.slow
def test_a_reward_that_fails_on_the_second_of_two_processes_says_so(with_own_term, monkeypatch, capfd):
    """The first one fails too, for want of the second; that is not what the user needs to hear of."""
    run_dir, row_id, term = with_own_term("raise KeyError('colour')", "stop")
    config = read_config(run_dir)
    config["launch"] = torchrun(2)
    config["derived"] |= {"per_device_train_batch_size": 10}
    write_config(run_dir, config)
    monkeypatch.chdir(run_dir.parent)  # where the term's module is
    assert processes.start_worker(run_dir, Config.model_validate(config)) == 2
    told = capfd.readouterr().err
    assert told.count(f"vrft: the reward term {term} failed on row {row_id} (completion ") == 1
    assert "without a word" not in told
