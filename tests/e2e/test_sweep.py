"""Sweeps: whatever ends one child, the others finish, the cause is told, a second call runs only what is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

TERMS = """
import ctypes
import os
import time


def fine(parsed, row, images):
    return 1.0


def raises(parsed, row, images):
    raise ValueError("the colour is wrong")


def leaves(parsed, row, images):
    os._exit(7)


def segfaults(parsed, row, images):
    ctypes.string_at(0)


def hangs(parsed, row, images):
    while True:
        time.sleep(1)


def eats(parsed, row, images):  # has the loss that is computed next ask for a million GiB
    import torch
    from trl import GRPOTrainer

    GRPOTrainer._compute_loss = lambda *given: torch.empty(1 << 50)
    return 1.0
"""
TINY = (
    "experiment=digits_riddles",
    "debug=smoke",
    "evaluate.before=false",
    "evaluate.after=false",
    "trainer.max_steps=1",
    "trainer.eval_steps=null",
    "evaluate.checkpoint=last",
    "alarms=none",
    "trust_code=[my_terms]",
)


@pytest.fixture
def own_terms(tmp_path, monkeypatch):
    (tmp_path / "my_terms.py").write_text(TERMS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    return lambda *names: "+reward.weights=" + ",".join(f"{{my_terms.{name}:1}}" for name in names)


def records(sweep_dir) -> dict[str, dict]:
    """What became of each child, by the name of its reward term."""
    found = {}
    for path in (sweep_dir / "children").glob("*.json"):
        record = json.loads(path.read_text())
        term = next(one for one in record["overrides"] if "my_terms." in one)
        found[term.partition("my_terms.")[2].partition(":")[0]] = record
    return found


def test_one_that_dies_is_named_and_run_again_alone(vrft, own_terms, tmp_path):
    sweep = ("train", "-m", *TINY, own_terms("fine", "leaves"), "run.seed=0,-1", f"run.dir={tmp_path / 'sweep'}")
    first = vrft(*sweep, code=1)
    assert "1 of 4 children completed" in first.stdout
    assert "ended without a word" in first.stdout
    assert first.stdout.count("run.seed is -1; at least 0 is needed") >= 2  # refused in the child, named in the end
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert "ended without a word" in page
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("*/result.json")}
    assert len(made) == 1
    (tmp_path / "my_terms.py").write_text(TERMS.replace("os._exit(7)", "return 1.0"))  # mended
    second = vrft(*sweep, code=1)
    assert "2 of 4 children completed" in second.stdout
    assert second.stdout.count("completed before") == 1
    for path, when in made.items():
        assert path.stat().st_mtime_ns == when, "a completed child is not touched again"


@pytest.mark.slow
def test_of_eight_children_three_finish_and_five_causes_are_told(vrft, own_terms, tmp_path):
    names = ("fine", "raises", "leaves", "segfaults", "hangs", "eats")
    sweep_dir = tmp_path / "sweep"
    sweep = ("train", "-m", *TINY, "launch.watchdog_s=20", f"run.dir={sweep_dir}", "reward.options.timeout_s=600")
    first = vrft(*sweep, own_terms(*names), code=1)
    assert "1 of 6 children completed" in first.stdout
    assert "2 of 2 children completed" in vrft(*sweep, own_terms("fine"), "run.seed=1,2").stdout
    found = records(sweep_dir)
    states = {name: record["state"] for name, record in found.items()}
    assert states == {
        "fine": "completed",
        "raises": "failed",
        "leaves": "failed",
        "segfaults": "killed",
        "hangs": "hung",
        "eats": "oom",
    }
    assert "the colour is wrong" in found["raises"]["cause"]
    assert "ended without a word" in found["leaves"]["cause"]
    assert "SIGSEGV" in found["segfaults"]["cause"]
    assert "smaller batches cannot help" in "".join(found["eats"]["last_lines"])
    causes = {record["cause"] for record in found.values() if record["cause"]}
    assert len(causes) == 5
    table = (sweep_dir / "sweep.md").read_text()
    assert all(cause in table for cause in causes)
    again = vrft(*sweep, own_terms(*names), code=1)
    assert again.stdout.count("completed before") == 1
    assert again.stdout.count("its output:") == 5


@pytest.mark.slow
def test_one_seed_chooses_what_the_others_run(vrft, tmp_path):
    sweep = (
        "train", "-m", *TINY[:-1], "run.seed=0,1", "trainer.learning_rate=1e-4,3e-4", "trainer.eval_steps=1",
        "question={title: Which?, choose: [trainer.learning_rate], choose_seed: 0}", f"run.dir={tmp_path / 'sweep'}",
    )  # fmt: skip
    assert "3 of 3 children completed, 1 were not chosen" in vrft(*sweep).stdout
    states = [
        json.loads(path.read_text())["state"] for path in sorted((tmp_path / "sweep" / "children").glob("*.json"))
    ]
    assert sorted(states) == ["completed"] * 3 + ["not_chosen"]
    assert vrft(*sweep).stdout.count("completed before") == 3


@pytest.mark.slow
def test_children_that_a_launcher_starts_elsewhere_are_told_too(vrft, tmp_path):
    jobs = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10", "run.seed=0,-1")
    done = vrft("train", "-m", *TINY[:-1], *jobs, f"run.dir={tmp_path / 'sweep'}", code=1)
    assert "1 of 2 children completed" in done.stdout
    assert "run.seed is -1; at least 0 is needed" in done.stdout
    assert (tmp_path / "sweep" / "sweep.html").is_file()


@pytest.mark.slow
def test_a_sweep_that_is_terminated_saves_its_child_and_goes_on(vrft, tmp_path):
    words = [
        "train", "-m", "experiment=digits_riddles", "debug=smoke", "evaluate.before=false", "trainer.max_steps=30",
        "dataset.n_test=10", "run.seed=0,1", f"run.dir={tmp_path / 'sweep'}",
    ]  # fmt: skip
    sweep = subprocess.Popen([sys.executable, "-m", "vrft", *words], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not any((tmp_path / "sweep").glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    sweep.send_signal(signal.SIGTERM)
    output, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 128 + signal.SIGTERM, output
    (record,) = [json.loads(path.read_text()) for path in (tmp_path / "sweep" / "children").glob("*.json")]
    assert record["state"] == "interrupted"
    assert vrft(*words).stdout.count(": resumes;") == 1
