"""What the worker's training takes from where: the best metric so far, and the settings that loaded the policy."""

from __future__ import annotations

import json
import math
import re
import shutil
from types import SimpleNamespace

import pytest
from configs import composed

import vrft.train.grpo
from vrft.config.section import with_values
from vrft.errors import UserError
from vrft.files import publish, write_rows
from vrft.run import training

METRIC = "accuracy"


def context(run_dir, *, is_main_process=True, **values):
    """As much of a run's context as finding the start and making a trainer read. values: of the section `model`."""
    model = {"path": "lab/base", "revision": "v1", "trust_remote_code": True, "family": "tiny", **values}
    config = with_values(
        composed("experiment=digits_riddles", "debug=smoke", "trainer.eval_steps=2"),
        {"run.resume": True} | {f"model.{key}": value for key, value in model.items()},
    )
    return SimpleNamespace(
        config=config, run_dir=run_dir, processes=SimpleNamespace(is_main_process=is_main_process),
        primary_metrics=[METRIC], processor=None, protocol="p", training_rows=[], data_dir=None, task=None,
        frame_for_row=None, judge=None,
    )  # fmt: skip


@pytest.fixture
def best(tmp_path):
    """The folder of a best checkpoint of step 4, and the log of a run that had it."""
    folder, staging = tmp_path / "checkpoints" / "best", tmp_path / "staging"
    folder.parent.mkdir()
    staging.mkdir()
    (staging / "vrft.json").write_text(json.dumps({"step": 4}))
    publish(staging, folder)
    taken = [{"step": step, f"validation/{METRIC}": value, "validation/n": 9} for step, value in ((0, 0.4), (4, 0.7))]
    write_rows(tmp_path / "metrics.jsonl", [*taken, {"step": 6, f"validation/{METRIC}": 0.6, "validation/n": 9}])
    return folder


@pytest.fixture
def alone(monkeypatch):
    """One process, whose newest checkpoint is of step 6. What it would send to the others."""
    sent = []
    monkeypatch.setattr(training, "broadcast_object_list", sent.extend)
    monkeypatch.setattr("vrft.train.checkpoints.newest_checkpoint", lambda folder: folder / "checkpoint-6")
    return sent


def test_every_process_has_the_best_metric_that_the_main_one_read(tmp_path, best, alone, monkeypatch):
    """Another machine's view of the disk may be old, or the folder may be renamed at that moment."""
    assert training.start_of(context(tmp_path)).best == 0.7

    def receive(found):
        found[:] = alone

    monkeypatch.setattr(training, "broadcast_object_list", receive)
    best.rename(best.with_name("best.previous"))
    other = context(tmp_path, is_main_process=False)
    start = training.start_of(other)
    assert training._validation(other, start, card={}).best == 0.7


def test_a_best_checkpoint_that_is_lost_keeps_its_figure(tmp_path, best, alone, capsys):
    """Else a later and worse one would be the best."""
    shutil.rmtree(best)
    assert training.start_of(context(tmp_path)).best == 0.7
    told = capsys.readouterr().err
    assert re.search(r"warning: the best checkpoint so far, of step 4 .*0\.700.*checkpoints/best is gone", told)


@pytest.mark.parametrize(
    ("lines", "told"),
    [([], "has no validation/accuracy up to step 6"), ([{"step": 4, f"validation/{METRIC}": "x"}], "line of step 4")],
)
def test_a_log_without_the_validations_is_refused(tmp_path, best, alone, lines, told):
    write_rows(tmp_path / "metrics.jsonl", lines)
    with pytest.raises(UserError, match=f"metrics.jsonl.*{told}"):
        training.start_of(context(tmp_path))
    assert best.exists()


def test_what_lies_about_in_the_folder_of_checkpoints_is_no_trouble(tmp_path, best, alone):
    """Whatever is named as something half written goes: of a link not what it points to."""
    (tmp_path / "elsewhere").mkdir()
    (best.parent / "x.partial").write_text("junk")
    (best.parent / "best.partial").symlink_to(tmp_path / "elsewhere")
    training.start_of(context(tmp_path))
    assert [path.name for path in best.parent.iterdir()] == ["best"]
    assert (tmp_path / "elsewhere").is_dir()


def test_without_a_best_checkpoint_any_metric_is_better(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "broadcast_object_list", lambda found: None)
    (tmp_path / "checkpoints").mkdir()
    assert training.start_of(context(tmp_path)).best == -math.inf


@pytest.mark.parametrize(("adapter", "revision"), [(None, "v1"), ({"revision": "v0"}, "v0")])
def test_the_reference_is_loaded_as_the_policy_was(tmp_path, monkeypatch, adapter, revision):
    """An adapter's folder names its base, and that one's revision."""
    asked = {}
    trainer = SimpleNamespace(remove_callback=lambda _: None)
    monkeypatch.setattr(vrft.train.grpo, "grpo_trainer", lambda *_, **given: asked.update(given) or trainer)
    run = context(tmp_path, **({"path": str(tmp_path)} if adapter else {}))
    if adapter:
        settings = {"base_model_name_or_path": "lab/base", **adapter}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    model = SimpleNamespace(named_parameters=list)
    training._make_trainer(run, model, {"beta": 0.04})
    assert asked["revision"] == revision
    assert asked["arguments"] == {"beta": 0.04, "trust_remote_code": True}


def test_a_training_that_takes_no_step_is_an_error(tmp_path):
    """The trainers end in silence where rows fill no batch, as with `dataloader_drop_last`."""
    trainer = SimpleNamespace(train=lambda **_: None, state=SimpleNamespace(global_step=0))
    settings = SimpleNamespace(trainer=SimpleNamespace(prompts_per_step=16))
    run = SimpleNamespace(rows={"train": [{}, {}]}, config=settings)
    with pytest.raises(UserError, match=r"took no step: 2 rows fill no batch.*trainer.prompts_per_step=16"):
        training._run_trainer(run, trainer, None, training.Start(), {})
