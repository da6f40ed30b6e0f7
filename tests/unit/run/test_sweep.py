"""Of a sweep that chooses on one seed the other seeds' children run only with what was chosen."""

from __future__ import annotations

import fcntl
import json
import threading

import pytest
from written_run import write_result

from vrft.errors import UserError
from vrft.run import sweep
from vrft.run.resume import config_hash
from vrft.run.sweep import CHILDREN, PENALTY, child_name, finish, run_child
from vrft.run.sweep_choice import trial

QUESTION = {"title": "Which rate?", "choose": ["trainer.learning_rate"], "choose_seed": 0}


def config(rate: float, seed: int, *, k: int = 4) -> dict:
    return {
        "run": {"seed": seed, "dir": "runs/sweep", "name": "x", "resume": False},
        "trainer": {"name": "sft", "learning_rate": rate},
        "dataset": {"k_shot": k},
        "model": {"path": "m"},
        "question": QUESTION,
    }


def record(sweep, rate: float, seed: int, *, validation: float | None, state: str = "completed", k: int = 4) -> str:
    """A child that has ended; its name. validation None: it has no result."""
    values = config(rate, seed, k=k)
    name = child_name(values, [f"learning_rate={rate}", f"seed={seed}", f"k_shot={k}"])
    found = {"state": state, "cause": "", "code": 0, "config_hash": config_hash(values), "trial": trial(values)}
    (sweep / CHILDREN).mkdir(parents=True, exist_ok=True)
    (sweep / CHILDREN / f"{name}.json").write_text(json.dumps(found))
    if validation is not None:
        (sweep / name).mkdir()
        write_result(sweep / name, validation=[{"step": 5, "value": validation, "n": 9}])
    return name


def run(sweep, rate: float, seed: int, *, k: int = 4, names: list[str] | None = None) -> dict:
    """What is recorded of a child, whose process would end at once: the config holds no task."""
    names = [] if names is None else names
    values, words = config(rate, seed, k=k), [f"learning_rate={rate}", f"seed={seed}", f"k_shot={k}"]
    assert run_child(values, sweep_dir=sweep, choices={}, overrides=words, names=names) == PENALTY
    return json.loads((sweep / CHILDREN / f"{child_name(values, words)}.json").read_text())


@pytest.fixture
def starts(monkeypatch):
    """How many children were started, none of which does anything."""
    started = []
    monkeypatch.setattr(sweep, "_run_in_own_process", lambda job, log: started.append(log) or log.touch() or (1, []))
    return started


def test_what_the_choosing_seed_did_not_prefer_is_left_out(tmp_path, starts, capsys):
    record(tmp_path, 1e-4, 0, validation=0.5)
    record(tmp_path, 3e-4, 0, validation=0.7)
    record(tmp_path, 1e-4, 0, validation=0.9, k=16)  # another cell
    left_out = run(tmp_path, 1e-4, 1, names=(names := []))
    assert (left_out["state"], starts) == ("not_chosen", [])
    assert left_out["cause"] == "seed 0 chose trainer.learning_rate=0.0003 by validation"
    assert finish(tmp_path, names=names, since=0) == 0
    assert "0 of 0 children completed, 1 were not chosen" in capsys.readouterr().out
    assert run(tmp_path, 3e-4, 1)["state"] == "failed"
    assert run(tmp_path, 1e-4, 2, k=16)["state"] == "failed"
    assert len(starts) == 2


def test_the_choosing_seed_runs_every_value(tmp_path, starts):
    record(tmp_path, 3e-4, 0, validation=0.7)
    run(tmp_path, 1e-4, 0)
    assert len(starts) == 1


def test_of_equals_the_smallest_is_chosen_as_in_the_report(tmp_path, starts):
    for rate in (1e-4, 3e-5, 3e-4):  # as texts 0.0001 comes first
        record(tmp_path, rate, 0, validation=0.5)
    assert run(tmp_path, 1e-4, 1)["state"] == "not_chosen"
    assert run(tmp_path, 3e-5, 1)["state"] == "failed"


@pytest.mark.parametrize("state", ["failed", "killed", "hung", "oom"])
def test_a_value_that_failed_is_not_chosen(tmp_path, starts, state):
    record(tmp_path, 1e-4, 0, validation=None, state=state)
    record(tmp_path, 3e-4, 0, validation=0.01)
    assert run(tmp_path, 1e-4, 1)["state"] == "not_chosen"


def test_where_nothing_can_choose_all_run(tmp_path, starts):
    record(tmp_path, 1e-4, 0, validation=None, state="failed")
    run(tmp_path, 1e-4, 1)
    run(tmp_path, 3e-4, 1)
    assert len(starts) == 2


def test_a_job_that_has_yet_to_choose_is_waited_for_by_the_next_call(tmp_path, starts):
    record(tmp_path, 1e-4, 0, validation=0.5)
    name = record(tmp_path, 3e-4, 0, validation=None, state="submitted")
    waiting = run(tmp_path, 1e-4, 1, names=(names := []))
    assert (waiting["state"], starts) == ("waiting", [])
    assert name in waiting["cause"]
    assert finish(tmp_path, names=names, since=0) == 0


def test_one_that_was_killed_together_with_its_sweep_is_to_be_run_first(tmp_path, starts):
    record(tmp_path, 1e-4, 0, validation=0.5)
    record(tmp_path, 3e-4, 0, validation=None, state="running")  # and nobody holds its lock
    assert run(tmp_path, 1e-4, 1)["state"] == "waiting"


def test_a_child_of_another_terminal_that_chooses_is_waited_for(tmp_path, starts):
    better = record(tmp_path, 3e-4, 0, validation=None, state="running")
    with (tmp_path / CHILDREN / f"{better}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def end() -> None:
            record(tmp_path, 3e-4, 0, validation=0.7)
            fcntl.flock(file, fcntl.LOCK_UN)

        threading.Timer(0.3, end).start()
        assert run(tmp_path, 1e-4, 1)["state"] == "not_chosen"
    assert starts == []


def test_one_that_ran_before_it_was_known_stays_completed(tmp_path, starts):
    record(tmp_path, 1e-4, 0, validation=0.5)
    record(tmp_path, 3e-4, 0, validation=0.7)
    name = record(tmp_path, 1e-4, 1, validation=0.6)
    words = ["learning_rate=0.0001", "seed=1", "k_shot=4"]
    assert run_child(config(1e-4, 1), sweep_dir=tmp_path, choices={}, overrides=words, names=[]) == 0.6
    assert json.loads((tmp_path / CHILDREN / f"{name}.json").read_text())["state"] == "completed"


@pytest.mark.parametrize("key", ["trainer", "trainer.lr", "nothing.at.all"])
def test_a_knob_that_is_no_value_of_the_config_is_named(key):
    with pytest.raises(UserError, match=f"question.choose has {key!r}"):
        trial(config(1e-4, 0) | {"question": QUESTION | {"choose": [key]}})
