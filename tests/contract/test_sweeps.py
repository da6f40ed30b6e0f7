"""Every sweep says what it asks, and every child of it would run."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml
from hydra import compose

from vrft.config.freeze import freeze
from vrft.config.package_files import config_folder
from vrft.report.sweep_pages import write_sweep_report
from vrft.run.resume import config_hash

SWEEPS = Path(__file__).parents[2] / "sweeps"
KEPT = sorted((SWEEPS / "results").glob("*/figures.csv"))
FILES = sorted(config_folder("sweeps").rglob("*.yaml"))
HEADS = ("Question:", "Prediction:", "Measured:", "Cost:")


pytestmark = pytest.mark.usefixtures("hydra_reads_the_tree")


def test_the_sweeps_that_users_ask_for_are_there():
    names = {file.stem for file in FILES}
    assert KEPT
    assert names >= {"oom_knobs", "reward_terms", "group_size", "kl_weight", "learning_rate", "few_shot_k"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_head_says_question_prediction_measure_and_cost(file):
    comments = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    for head in HEADS:
        assert any(line.startswith(f"# {head}") for line in comments), head


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_value_passes_the_checks_and_makes_another_run(file):
    params = yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]["sweeper"]["params"]
    values = [str(given).split(",") for given in params.values()]
    cost = re.search(r"# Cost: (\d+) runs", file.read_text(encoding="utf-8"))
    assert cost, "the cost counts the runs"
    assert int(cost[1]) == math.prod(map(len, values))
    first = [one[0] for one in values]
    children = {(*first[:at], value, *first[at + 1 :]) for at, one in enumerate(values) for value in one}
    hashes = set()
    for child in children:
        overrides = [f"{key}={value}" for key, value in zip(params, child, strict=True)]
        config = freeze(compose("train", [f"sweep={file.stem}", *overrides]))
        question = config.question
        for key in [question.x, *(question.lines or []), *(question.choose or [])]:
            assert key in params
        hashes.add(config_hash(config.plain()))
    assert len(hashes) == len(children)


@pytest.mark.parametrize("figures", KEPT, ids=lambda path: path.parent.name)
def test_kept_tables_are_those_of_the_kept_figures(figures, tmp_path):
    write_sweep_report([figures], tmp_path)
    assert (figures.parent / "sweep.md").read_text(encoding="utf-8") == (tmp_path / "sweep.md").read_text("utf-8")


@pytest.mark.parametrize("figures", KEPT, ids=lambda path: path.parent.name)
def test_the_readmes_tables_stand_in_the_kept_report(figures):
    kept = (figures.parent / "sweep.md").read_text(encoding="utf-8")
    readme = (figures.parent / "README.md").read_text(encoding="utf-8")
    tables = [table for table in re.findall(r"(?:^\|.*\n)+", readme, flags=re.MULTILINE) if "| base |" in table]
    assert len(tables) >= 4
    for table in tables:
        assert table in kept, table


def test_the_readme_counts_the_runs_of_every_sweep():
    readme = (SWEEPS / "README.md").read_text(encoding="utf-8")
    counted = dict(re.findall(r"^\| \[(\w+)\]\(.*\| (\d+) \|$", readme, flags=re.MULTILINE))
    costs = {file.stem: re.search(r"# Cost: (\d+) runs", file.read_text(encoding="utf-8"))[1] for file in FILES}
    assert counted == costs | {"few_shot_k": "225"}  # of 405, as seed 0 chooses
