"""Where no model or no rows are named, what is taken is said."""

from __future__ import annotations

import pytest
import yaml

from vrft.config.not_given import warn_of_toy_model, with_rows_of_run
from vrft.config.schema import Config, Model

DIGITS = {"builder": "digits", "n_test": 300}
OWN = {"builder": "records", "path": "rows.jsonl", "frame": "norm1000", "columns": {"image": "file"}}


def rows_of(run_dir, *overrides, saved=OWN, has_data=True, dataset=DIGITS):
    """The section `dataset` of an evaluation of the run's checkpoint."""
    (run_dir / "data").mkdir(parents=True)
    if saved:
        config = {"dataset": saved, "trust_code": ["theirs"], "model": {"trust_remote_code": True}}
        (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    if has_data:
        (run_dir / "data" / "manifest.json").touch()
    values = {"model": {"path": str(run_dir / "checkpoints" / "best")}, "dataset": dataset, "trust_code": []}
    found = with_rows_of_run(values, ["run.dir=x", *overrides])
    assert found["model"] == values["model"]
    assert found["trust_code"] == []
    return found["dataset"]


def test_a_checkpoint_is_judged_on_the_rows_of_its_run(tmp_path, capsys):
    built = {"builder": "built", "path": str(tmp_path / "run" / "data"), "image_root": None, "frame": "norm1000"}
    assert rows_of(tmp_path / "run") == built
    assert f"note: no dataset= is given, so the rows of {tmp_path / 'run'} are judged" in capsys.readouterr().err
    digits = DIGITS | {"n_test": 16, "domain": "clean"}
    assert rows_of(tmp_path / "digits", saved=digits | {"odd": ["a list"]}, has_data=False) == digits


@pytest.mark.parametrize("override", ["dataset=json", "dataset.n_test=5", "experiment=digits_riddles", "+dataset.x=1"])
def test_named_rows_win(tmp_path, override, capsys):
    assert rows_of(tmp_path / "run", override) == DIGITS
    assert capsys.readouterr().err == ""


def test_rows_of_ones_own_config_file_win(tmp_path, capsys):
    assert rows_of(tmp_path / "run", dataset=OWN | {"path": "other.jsonl"})["path"] == "other.jsonl"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("saved", [None, {"builder": "records"}, "text", {"builder": ["digits"]}])
def test_where_its_rows_are_unknown_digits_are_judged_loudly(tmp_path, saved, capsys):
    assert rows_of(tmp_path / "run", saved=saved, has_data=False) == DIGITS
    assert "warning: no dataset= is given, so the embedded digits are judged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "builder", "overrides", "is_said"),
    [
        ("tiny", "records", ["dataset=json"], True),
        ("tiny", "built", ["dataset=built", "model/peft=lora"], True),
        ("tiny", "records", ["model=tiny"], False),
        ("tiny", "records", ["model.path=runs/A/checkpoints/best"], False),
        ("tiny", "digits", [], False),
        ("qwen2_vl", "records", [], False),  # by an experiment
    ],
)
def test_the_embedded_model_on_own_rows_is_said(family, builder, overrides, is_said, capsys):
    model = Model.model_construct(family=family, path=None)
    config = Config.model_construct(model=model, dataset={"builder": builder})
    warn_of_toy_model(config, overrides)
    assert ("so the embedded toy model is taken" in capsys.readouterr().err) == is_said
    trained = Model.model_construct(family=family, path="runs/A/checkpoints/best")  # by a config file
    warn_of_toy_model(config.model_copy(update={"model": trained}), overrides)
    assert capsys.readouterr().err == ""
