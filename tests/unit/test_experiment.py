"""Before a worker starts: another experiment in the run directory is refused, a frame unknown to the model is told."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from vrft import experiment
from vrft.configure import freeze
from vrft.errors import UserError
from vrft.experiment import check_same_experiment, run_experiment, warn_of_frames
from vrft.package_files import config_folder

HASHES = {"config_hash": "c", "data_hash": "d", "model_hash": "m"}


@pytest.mark.parametrize(("key", "what"), [("config_hash", "config"), ("data_hash", "data"), ("model_hash", "model")])
def test_another_config_data_or_model_is_refused(tmp_path, key, what):
    (tmp_path / "provenance.json").write_text(json.dumps(HASHES))
    check_same_experiment(tmp_path, HASHES)
    check_same_experiment(tmp_path, {name: value for name, value in HASHES.items() if name != key})  # not yet known
    with pytest.raises(UserError, match=rf"cannot go on:\n  - {what}.*: {HASHES[key]} then, x now"):
        check_same_experiment(tmp_path, {**HASHES, key: "x"})


@pytest.mark.parametrize(
    ("family", "frame", "columns", "is_told"),
    [
        ("qwen2_vl", "norm1000", {"problem": "?"}, False),
        ("qwen2_5_vl", "norm1000", {"problem": "?"}, True),
        ("qwen2_5_vl", "norm1000", {"phrase": "?"}, False),  # asked in the model's frame
        ("qwen2_5_vl", "seen_pixels", {"problem": "?"}, False),
        ("qwen2_5_vl", None, {"problem": "?"}, False),
    ],
)
def test_a_frame_that_the_model_does_not_speak_is_told(capsys, family, frame, columns, is_told):
    warn_of_frames({"train": [{"row_id": "a", **columns}]}, {"model": {"family": family}, "dataset": {"frame": frame}})
    told = capsys.readouterr().err
    assert ("1 rows bring their own question, with boxes in norm1000" in told) == is_told
    assert bool(told) == is_told


@pytest.mark.parametrize("made", ["checkpoints/last/model.safetensors", "logs.jsonl"])
@pytest.mark.parametrize("ending", [2, KeyboardInterrupt, OSError])
def test_what_a_worker_has_made_stays_however_it_ends(tmp_path, monkeypatch, made, ending):
    """Only a run that was refused before it began is taken away."""

    def worker(run_dir: Path, config: dict) -> int:
        (run_dir / made).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / made).write_text("hours of work")
        if ending != 2:
            raise ending
        return 2

    monkeypatch.setattr(experiment, "start_worker", worker)
    run_small(tmp_path / "run", expected=ending)
    assert (tmp_path / "run" / made).read_text() == "hours of work"
    assert (tmp_path / "run" / "config.yaml").is_file()
    monkeypatch.setattr(experiment, "start_worker", lambda run_dir, config: 2)
    run_small(tmp_path / "refused", expected=2)
    assert not (tmp_path / "refused").exists()


def run_small(run_dir, *, expected):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = freeze(compose("train", ["experiment=digits_riddles", "debug=smoke", f"run.dir={run_dir}"]))
    if expected == 2:
        assert run_experiment(config, choices={}, overrides=[]) == 2
    else:
        with pytest.raises(expected):
            run_experiment(config, choices={}, overrides=[])
