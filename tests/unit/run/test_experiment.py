"""Before a worker starts, a frame unknown to the model is told; and what stays of a run, however it ends."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from vrft.config.freeze import freeze
from vrft.config.package_files import config_folder
from vrft.config.schema import Config
from vrft.errors import UserError
from vrft.models.families import FAMILIES
from vrft.run import experiment
from vrft.run.directory import alone_in, fresh_run_dir
from vrft.run.experiment import run_experiment
from vrft.run.resume import read_config
from vrft.run.rows import warn_of_frames


@pytest.mark.parametrize(
    ("family", "frame", "columns", "is_told"),
    [
        ("qwen2_vl", "norm1000", {"problem": "?"}, False),
        ("qwen2_5_vl", "norm1000", {"problem": "?"}, True),
        ("qwen2_5_vl", "seen_pixels", {"problem": "?"}, False),
        ("qwen2_5_vl", None, {"problem": "?"}, False),
    ],
)
def test_a_frame_that_the_model_does_not_speak_is_told(capsys, family, frame, columns, is_told):
    warn_of_frames({"train": [{"row_id": "a", **columns}]}, FAMILIES[family], frame)
    told = capsys.readouterr().err
    assert ("1 rows bring their own question, with boxes in norm1000" in told) == is_told
    assert bool(told) == is_told


def test_a_frame_that_concerns_no_row_is_told(capsys):
    warn_of_frames({"train": [{"row_id": "a", "phrase": "?"}]}, FAMILIES["qwen2_vl"], "norm1000")
    assert "dataset.frame=norm1000 says how rows with a question of their own" in capsys.readouterr().err


@pytest.mark.parametrize("made", ["checkpoints/last/model.safetensors", "logs.jsonl"])
@pytest.mark.parametrize("ending", [2, KeyboardInterrupt, OSError])
def test_what_a_worker_has_made_stays_however_it_ends(tmp_path, monkeypatch, made, ending):
    """Only a run that was refused before it began is taken away."""

    def worker(run_dir: Path, config: Config) -> int:
        (run_dir / made).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / made).write_text("hours of work")
        if ending != 2:
            raise ending
        return 2

    monkeypatch.setattr(experiment, "start_worker", worker)
    run_small(tmp_path / "run", expected=ending)
    assert (tmp_path / "run" / made).read_text() == "hours of work"
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_a_run_that_is_refused_leaves_nothing(tmp_path, monkeypatch):
    def refuses(run_dir: Path, config: Config) -> int:
        (run_dir / "slurm").mkdir()
        (run_dir / "slurm" / ".lock").touch()  # as a submission does
        return 2

    monkeypatch.setattr(experiment, "start_worker", refuses)
    run_small(tmp_path / "refused", expected=2)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("code", [1, 124, 143])
def test_how_to_go_on_is_told(tmp_path, monkeypatch, capsys, code):
    monkeypatch.setattr(experiment, "start_worker", lambda run_dir, config: code)
    run_small(tmp_path / "run", expected=code)
    assert f"the same command with run.dir={tmp_path / 'run'} run.resume=true resumes it" in capsys.readouterr().err
    monkeypatch.setattr(experiment, "start_worker", lambda run_dir, config: 2)
    run_small(tmp_path / "refused", expected=2)
    assert "run.resume" not in capsys.readouterr().err


def test_a_run_that_has_nothing_to_resume_says_so(tmp_path, monkeypatch, capsys):
    """For run.dir may be mistyped."""
    monkeypatch.setattr(experiment, "start_worker", lambda run_dir, config: 1)
    for count in (1, 0):
        run_small(tmp_path / "run", "run.resume=true", expected=1)
        assert capsys.readouterr().err.count("nothing to resume") == count


@pytest.mark.parametrize("nested", ["sft/config.yaml", "sweep/children/a.json", "sft/data/images/a.png"])
def test_a_run_that_is_refused_leaves_one_within_its_folder_alone(tmp_path, nested):
    """Another terminal may have started it meanwhile. The cache of checked images stays too."""
    cache = ["data/.checked_images", "data/images/a.png"]

    def start() -> None:
        with fresh_run_dir(tmp_path, is_resuming=False):
            for name in (nested, *cache, "data/train.jsonl", "config.yaml", "slurm/.lock", "health/rank_0.json"):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text("mine")
            raise UserError("no rows")

    with pytest.raises(UserError, match="no rows"):
        start()
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {nested, *cache}
    assert {path.name for path in tmp_path.iterdir()} == {nested.partition("/")[0], "data"}


def test_the_same_command_twice_leaves_the_first_alone(tmp_path):
    run_dir = tmp_path / "run"
    with fresh_run_dir(run_dir, is_resuming=False), alone_in(run_dir):
        with (
            pytest.raises(UserError, match=r"another process works in run\.dir="),
            fresh_run_dir(run_dir, is_resuming=False),
            alone_in(run_dir),
        ):
            pass
        assert (run_dir / ".lock").exists()


def test_a_resumed_run_keeps_what_it_was_begun_with(tmp_path, monkeypatch, capsys):
    """The W&B run too, where one part of it logged nothing."""
    monkeypatch.setattr(experiment, "start_worker", lambda run_dir, config: 1)
    path = tmp_path / "run" / "provenance.json"
    run_small(tmp_path / "run", "logging=wandb_offline", expected=1)
    begun = json.loads(path.read_text())
    path.write_text(json.dumps(begun | {"versions": begun["versions"] | {"torch": "1.0"}}))
    capsys.readouterr()
    for logging in ("none", "wandb_offline"):
        run_small(tmp_path / "run", f"logging={logging}", "run.resume=true", expected=1)
    told = capsys.readouterr().err
    assert told.count("started with other code, so its bits may differ: torch 1.0 then") == 1
    record = json.loads(path.read_text())
    assert record["wandb_run_id"] == begun["wandb_run_id"]
    assert [one["versions"]["torch"] for one in record["earlier"]] == ["1.0", begun["versions"]["torch"]]
    assert all("earlier" not in one for one in record["earlier"])


def test_a_step_takes_no_more_than_the_rows_and_resumes_so(tmp_path, monkeypatch, capsys):
    """TRL would leave out a step that is not full: no step at all, and exit code 0."""
    monkeypatch.setattr(experiment, "start_worker", lambda run_dir, config: 1)
    for resume in ("false", "true"):
        run_small(tmp_path / "run", "trainer.prompts_per_step=16", f"run.resume={resume}", expected=1)
        told = capsys.readouterr().err
        assert "10 rows to train on do not fill a step of trainer.prompts_per_step=16, so a step takes 10" in told
        frozen = read_config(tmp_path / "run")
        assert frozen.trainer.prompts_per_step == 10
        assert frozen.derived.per_device_train_batch_size * frozen.derived.gradient_accumulation_steps == 10 * 4
    run_small(tmp_path / "run", "trainer.prompts_per_step=8", "run.resume=true", expected=UserError)


def test_rows_that_do_not_fill_the_last_step_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "start_worker", lambda run_dir, config: 1)
    run_small(tmp_path / "run", "trainer.prompts_per_step=4", expected=1)
    assert "2 of 10 training rows, others each time, are left out of each epoch: 4 are taken" in capsys.readouterr().err


def run_small(run_dir, *overrides, expected):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = freeze(
            compose("train", ["experiment=digits_riddles", "debug=smoke", f"run.dir={run_dir}", *overrides])
        )
    if isinstance(expected, int):
        assert run_experiment(config, choices={}, overrides=[]) == expected
    else:
        with pytest.raises(expected):
            run_experiment(config, choices={}, overrides=[])
