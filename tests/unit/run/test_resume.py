"""Another experiment in the run directory is refused, and what differs is named."""

import copy
import json
import re
from types import SimpleNamespace

import pytest
import yaml
from configs import composed

from vrft.config.package_files import TINY_MODEL
from vrft.config.section import with_values
from vrft.errors import UserError
from vrft.evaluate.partial_completions import OtherEvaluationError
from vrft.files import MANIFEST, publish, write_rows
from vrft.run.evaluation import _kept_batches, known_evaluation
from vrft.run.resume import (
    check_same_config,
    check_same_hashes,
    check_same_rows,
    config_hash,
    first_provenance,
    read_config,
)

CONFIG = {"run": {"dir": "runs/a"}, "model": {"path": "m"}, "trainer": {"learning_rate": 0.1, "args": {"beta": 0.0}}}
ROWS = [{"row_id": "a", "gold": [1, 2]}, {"row_id": "b", "gold": [3, 4]}]


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


def test_another_config_is_refused_by_its_keys(tmp_path):
    check_same_config(tmp_path, CONFIG)  # nothing has begun
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    check_same_config(tmp_path, {**CONFIG, "run": {"dir": "runs/b"}, "logging": {"mode": "offline"}})
    with pytest.raises(UserError, match=r"cannot resume it:\n  - trainer.args.beta: 0.0 then, 0.04 now$"):
        check_same_config(tmp_path, {**CONFIG, "trainer": {"learning_rate": 0.1, "args": {"beta": 0.04}}})


@pytest.mark.parametrize("key", ["alarms.window", "reward.options.on_fault", "reward.options.timeout_s"])
def test_what_ended_a_run_may_be_another_when_it_goes_on(tmp_path, key):
    section, *rest = key.split(".")
    for value in (1, 2):
        changed = value
        for name in reversed(rest):
            changed = {name: changed}
        config = {**CONFIG, section: changed}
        check_same_config(tmp_path, config)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.update(sped=1), "has no key 'sped'"),
        (lambda config: config["run"].update(seed="a"), "run.seed is 'a'"),
        (lambda config: config.pop("derived"), "derived is missing"),
    ],
)
def test_a_frozen_config_that_was_edited_is_refused_by_its_key(tmp_path, change, words):
    config = composed("experiment=digits_riddles", "debug=smoke").plain()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_config(tmp_path).plain() == config
    change(config)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"config\.yaml cannot be used") as refused:
        read_config(tmp_path)
    assert words in str(refused.value)


@pytest.mark.parametrize("made", ["checkpoints", "evaluations"])
def test_work_of_nobody_knows_what_is_refused(tmp_path, made):
    (tmp_path / made).mkdir()
    with pytest.raises(UserError, match=rf"has {made} but no config\.yaml"):
        check_same_config(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:1], "train: 2 rows then, 1 now"),
        ([ROWS[0], {**ROWS[1], "gold": (3, 5), "new": 0}], "train: 1 rows have changed, row b first, in gold, new"),
    ],
)
def test_other_rows_are_refused_by_split_and_key(tmp_path, rows, message):
    write_rows(tmp_path / "data" / "train.jsonl", ROWS)
    check_same_rows(tmp_path / "data", {"train": [{**row, "gold": tuple(row["gold"])} for row in ROWS], "test": []})
    with pytest.raises(UserError, match=rf"cannot resume it:\n  - {message}$"):
        check_same_rows(tmp_path / "data", {"train": rows})


@pytest.mark.parametrize(("key", "what"), [("data_hash", "an image"), ("model_hash", "the model")])
def test_other_images_and_weights_are_refused(tmp_path, key, what):
    hashes = {"data_hash": "d", "model_hash": "m"}
    check_same_hashes(tmp_path, hashes, hashes)
    with pytest.raises(UserError, match=rf"cannot resume it:\n  - {what} has other .* {hashes[key]} then, x now"):
        check_same_hashes(tmp_path, hashes, {**hashes, key: "x"})


def test_hashes_of_different_kinds_are_not_compared(tmp_path, capsys):
    """An earlier version wrote SHA-256. Its hashes stay in the record, under which evaluations are filed."""
    earlier, record = {"data_hash": "d" * 64, "model_hash": "xxh3_128:m"}, {"data_hash": "xxh3_128:d"}
    assert check_same_hashes(tmp_path, earlier, {**record, "model_hash": "xxh3_128:m"}) == {"data_hash": "d" * 64}
    assert capsys.readouterr().err.count("warning: an earlier version wrote data_hash of ") == 1
    with pytest.raises(UserError, match=r"the model has other weights"):
        check_same_hashes(tmp_path, earlier, {**record, "model_hash": "xxh3_128:x"})
    from_the_hub = {"data_hash": "xxh3_128:d", "model_hash": None}
    assert check_same_hashes(tmp_path, from_the_hub, from_the_hub) == {}


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_record_that_is_none_is_named(tmp_path, text):
    assert first_provenance(tmp_path) == {}
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(UserError, match=r"provenance.json (cannot be read|has another form)"):
        first_provenance(tmp_path)


def test_a_killed_evaluation_knows_its_checkpoint_by_the_manifest(tmp_path):
    """Gigabytes of weights are not read again for every test set."""
    (tmp_path / "provenance.json").write_text(json.dumps({"data_hash": "d", "model_hash": "m"}))
    checkpoint = tmp_path / "checkpoints" / "best"

    def kept(weights: str):
        staging = tmp_path / "staging"
        staging.mkdir()
        (staging / "model.safetensors").write_text(weights)
        checkpoint.parent.mkdir(exist_ok=True)
        publish(staging, checkpoint)
        for path in checkpoint.iterdir():
            if path.name != MANIFEST:
                path.unlink()
        return _kept_batches(alone(tmp_path), tmp_path / "batches", "best")

    kept("one").add(0, [{"text": "four"}], rank=0)
    assert kept("one").done == {0: [{"text": "four"}]}
    assert kept("two").done == {}


def alone(run_dir, **values) -> SimpleNamespace:
    """As much of a run's context as a resumed evaluation reads. values: over the config's, by dotted key."""
    config = composed("experiment=digits_riddles", "debug=smoke", "memory.evaluation_batch_size=4")
    processes = SimpleNamespace(wait_for_everyone=lambda: None, is_main_process=True)
    return SimpleNamespace(run_dir=run_dir, config=with_values(config, values), processes=processes)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.json", ""),
        ("metrics.json", '{"p": {"iou": {"val'),
        ("metrics.json", '{"p": {"iou": 0.5}}'),
        ("scores.jsonl", '{"row_id": "a"}\n'),
    ],
)
def test_a_damaged_evaluation_is_made_again(tmp_path, capsys, file, text):
    context = alone(tmp_path, **{"run.resume": True})
    context.evaluation_dir, context.test_splits = tmp_path / "evaluations", ["test"]
    folder = tmp_path / "evaluations" / "before" / "test"
    folder.mkdir(parents=True)
    assert known_evaluation(context, "before") is None
    metrics = {"p": {"iou": {"value": 0.5, "n": 2, "interval": [0.1, 0.9]}}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert known_evaluation(context, "before") == {"test": metrics}
    (folder / file).write_text(text)
    assert known_evaluation(context, "before") is None
    assert re.search(rf"(?s)warning: .*{file}.*so the evaluation before is made again", capsys.readouterr().err)


@pytest.mark.parametrize("text", ["", "model: [", "[1]", "model: {path: m}\nrun: 3", "model: x"])
def test_a_config_of_another_form_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    for read in (read_config, lambda run_dir: check_same_config(run_dir, {"model": {"path": "m"}})):
        with pytest.raises(UserError, match=r"config.yaml (cannot be read|has another form)"):
            read(tmp_path)


def test_a_killed_evaluation_goes_on_under_other_alarms_and_nothing_else(tmp_path):
    record = {"data_hash": "d", "model_hash": "m"}

    def kept(record: dict, **values):
        (tmp_path / "provenance.json").write_text(json.dumps(record))
        return _kept_batches(alone(tmp_path, **values), tmp_path / "batches", "before")

    kept(record, **{"alarms.window": 1}).add(0, [{"text": "four"}], rank=0)
    assert kept(record, **{"alarms.window": 2}).done == {0: [{"text": "four"}]}
    others = [
        (record | {"data_hash": "x"}, {}),
        (record | {"model_hash": "x"}, {}),
        (record, {"memory.max_completion_length": 7}),
    ]
    for other, values in others:
        with pytest.raises(OtherEvaluationError):
            kept(other, **values)
    assert kept(record, **{"memory.evaluation_batch_size": 2}).done == {}  # out of memory: they are made anew
    assert not (tmp_path / "batches").exists()
