"""Seeds averaged, knobs chosen by validation, and figures that can be read again without the runs."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from dataclasses import replace

import pandas as pd
import pytest
from written_run import write_config, write_result

from vrft.config.schema import Question
from vrft.errors import UserError
from vrft.report.sweep import averaged, chosen, read_sweep, to_csv
from vrft.report.sweep_pages import write_sweep_report
from vrft.report.sweep_tables import question_table, views, wide_table

QUESTION = {
    "title": "Which?",
    "x": "dataset.k_shot",
    "lines": ["trainer"],
    "choose": ["trainer.learning_rate"],
    "panels": None,
    "measure": None,
}


def write_child(
    sweep, *, trainer="grpo", k=4, rate=1e-4, seed=0, test=0.5, validation=0.5, is_base=False, before=None, n_test=300,
    metrics=("accuracy@0.5",), question=QUESTION, **settings,
):  # fmt: skip
    """A finished run of which the sweep's report reads only what is written here."""
    run_dir = sweep / "-".join(map(str, (trainer, k, rate, seed, is_base, n_test, *settings.values())))
    run_dir.mkdir(parents=True)

    def figures(value):
        return {"grounding_v1": {metric: {"value": value, "n": n_test, "interval": None} for metric in metrics}}

    kind = "before" if is_base else "best"
    config = {
        "run": {"seed": seed, "name": "x"},
        "trainer": {"name": trainer, "learning_rate": rate},
        "dataset": {"k_shot": k, "n_test": n_test},
        "protocol": {"name": "grounding", "version": 1},
        "evaluate": {"train": not is_base, "titles": {"test": "dim"}},
        "question": None if is_base else question,
    }
    result = {
        "config_hash": hashlib.sha256(run_dir.name.encode()).hexdigest(),
        "test_sets": {"test": {kind: figures(test)} | ({} if before is None else {"before": figures(before)})},
        "primary_metrics": list(metrics),
        "validation": []
        if is_base or validation is None
        else [{"step": 0, "value": 0.1, "n": 9}, {"step": 9, "value": validation, "n": 9}],
        "durations_s": {"train": 7.0},
        "peak_memory_gib": 1.0,
        "others": {},
    }
    overrides = [f"trainer={trainer}", f"dataset.k_shot={k}", f"trainer.learning_rate={rate}", f"run.seed={seed}"]
    overrides += [f"{key}={value}" for key, value in settings.items()]
    provenance = {"choices": {"trainer": trainer, **settings}, "overrides": [] if is_base else overrides}
    write_config(run_dir, **config)
    write_result(run_dir, **result)
    (run_dir / "provenance.json").write_text(json.dumps(provenance))
    (sweep / "children").mkdir(exist_ok=True)


@pytest.fixture
def sweep_dir(tmp_path):
    sweep = tmp_path / "sweep"
    for trainer, k in (("grpo", 1), ("grpo", 4), ("sft", 1), ("sft", 4)):
        for seed, test in enumerate((0.2, 0.4, 0.6)):
            write_child(sweep, trainer=trainer, k=k, seed=seed, test=test + 0.1 * (trainer == "grpo"), validation=0.5)
            better = 0.9 if trainer == "sft" else 0.3
            write_child(sweep, trainer=trainer, k=k, rate=3e-4, seed=seed, test=0.05, validation=better)
    write_child(sweep, is_base=True, test=0.33)
    return sweep


def test_seeds_are_averaged_with_students_interval(sweep_dir):
    sweep = read_sweep([sweep_dir])
    assert sweep.settings == ["trainer", "dataset.k_shot", "trainer.learning_rate"]
    means = averaged(chosen(sweep), sweep.settings)
    one = means[(means.trainer == "grpo") & (means["dataset.k_shot"] == 4) & (means.test_set == "test")].iloc[0]
    assert one["mean"] == pytest.approx(0.5)
    assert one.seeds == 3
    half = 4.302652729911275 * 0.2 / math.sqrt(3)  # t of 2 degrees of freedom, standard deviation 0.2
    assert (one.low, one.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_the_knob_is_chosen_by_validation_not_by_the_test(sweep_dir):
    shown = chosen(read_sweep([sweep_dir]))
    rates = shown.groupby("trainer")["trainer.learning_rate"].unique().map(list).to_dict()
    assert rates == {"grpo": [1e-4], "sft": [3e-4]}  # sft: better by validation, though far worse on the test


def test_a_setting_with_one_lucky_seed_is_not_chosen(sweep_dir):
    write_child(sweep_dir, trainer="grpo", k=4, rate=1e-3, validation=0.99)
    shown = chosen(read_sweep([sweep_dir]))
    assert set(shown.loc[shown.trainer == "grpo", "trainer.learning_rate"]) == {1e-4}


def test_of_equals_the_smallest_is_chosen(sweep_dir):
    write_child(sweep_dir, trainer="more", rate=1e-4)
    write_child(sweep_dir, trainer="more", rate=3e-5)
    shown = chosen(read_sweep([sweep_dir]))
    assert set(shown.loc[shown.trainer == "more", "trainer.learning_rate"]) == {3e-5}


def test_one_seed_may_choose_for_all(sweep_dir):
    for seed, validation in ((0, 0.99), (1, 0.01)):
        write_child(sweep_dir, trainer="grpo", k=4, rate=1e-3, seed=seed, validation=validation)
    write_child(sweep_dir, trainer="grpo", k=16, seed=1)  # the choosing seed is not there: it is shown all the same
    sweep = replace(read_sweep([sweep_dir]), question=Question(**QUESTION, choose_seed=0))
    shown = chosen(sweep)
    rates = shown.groupby(["trainer", "dataset.k_shot"])["trainer.learning_rate"].unique().map(list).to_dict()
    assert rates == {
        ("grpo", 1): [1e-4], ("grpo", 4): [1e-3], ("sft", 1): [3e-4], ("sft", 4): [3e-4], ("grpo", 16): [1e-4],
    }  # fmt: skip


def test_the_base_is_apart(sweep_dir):
    sweep = read_sweep([sweep_dir])
    assert list(sweep.bases.loc[sweep.bases.test_set == "test", "value"]) == [0.33]
    assert "before" not in set(sweep.figures.checkpoint)


def test_kept_figures_say_the_same_without_the_runs_and_join_with_more(sweep_dir, tmp_path):
    kept = tmp_path / "figures.csv"
    kept.write_text(to_csv(read_sweep([sweep_dir])))
    write_sweep_report([sweep_dir], tmp_path / "a")
    write_sweep_report([kept], tmp_path / "b")
    assert (tmp_path / "a" / "sweep.md").read_text() == (tmp_path / "b" / "sweep.md").read_text()
    more = tmp_path / "more"
    write_child(more, trainer="grpo", k=16, test=0.8)
    write_child(more, trainer="grpo", k=4, seed=0, test=0.9)  # known already: the first source counts
    joined = read_sweep([kept, more]).figures
    test = joined[(joined.test_set == "test") & (joined["trainer.learning_rate"] == 1e-4) & (joined.trainer == "grpo")]
    assert sorted(test["dataset.k_shot"].astype(int)) == [1, 1, 1, 4, 4, 4, 16]
    read_again = pd.read_csv(kept, comment="#")
    assert len(read_again) == len(read_sweep([kept]).figures) + len(read_sweep([kept]).bases)


def test_pages_and_plots_are_written_and_failures_named(sweep_dir):
    lost = {"state": "oom", "cause": "out of memory"}
    (sweep_dir / "children" / "a.json").write_text(json.dumps(lost))
    page = write_sweep_report([sweep_dir]).read_text()
    text = (sweep_dir / "sweep.md").read_text()
    assert "| grpo | 1 | 0.0001 | best by validation | 0.500 [0.003, 0.997] n=3 |" in text
    assert "- oom: a (out of memory)" in text
    assert "out of memory" in page
    assert (sweep_dir / "plot_test_best.png").stat().st_size > 5000
    assert "<svg" in page, "it follows light and dark mode"
    assert "#000000" not in page


def test_records_of_another_form_are_listed_and_named(sweep_dir, capsys):
    for name, record in (("a", {"state": "oom"}), ("b", [1])):
        (sweep_dir / "children" / f"{name}.json").write_text(json.dumps(record))
    page = write_sweep_report([sweep_dir]).read_text()
    told = capsys.readouterr().err
    for name, fault in (("a", "cause is missing"), ("b", "it is '[1]'")):
        assert fault in told
        assert f"its record {name}.json is damaged" in page


def test_what_a_run_says_is_text_in_every_file(tmp_path):
    """Markup, a bar, a formula of a spreadsheet or of matplotlib, in a setting and in a title."""
    hostile = "=1+1|<img src=x> $\\frac{$"
    for seed, style in ((0, hostile), (1, "plain")):
        write_child(tmp_path, k=seed + 1, seed=seed, question=QUESTION | {"title": hostile, "lines": None}, style=style)
    page = write_sweep_report([tmp_path]).read_text()
    assert "<img" not in page
    text = (tmp_path / "sweep.md").read_text()
    assert "<img" not in text
    for table in text.split("**Every cell**"):
        rows = [line.replace(r"\|", "") for line in table.splitlines() if line.startswith("| ")]
        assert len(rows) > 3
        assert len({row.count("|") for row in rows}) == 1
    with (tmp_path / "figures.csv").open() as file:
        file.readline()
        styles = {line["style"] for line in csv.DictReader(file)}
    assert styles == {f"'{hostile}", "plain"}
    assert set(read_sweep([tmp_path / "figures.csv"]).figures["style"]) == {hostile, "plain"}


def test_a_table_has_the_questions_form(sweep_dir):
    write_child(sweep_dir, trainer="grpo", k=16, seed=0, test=0.8)
    question = Question(**QUESTION | {"panels": ["trainer"], "lines": None}, labels={"sft": "SFT", "grpo": "RFT"})
    sweep = replace(read_sweep([sweep_dir]), question=question)
    (view,) = views(sweep, chosen(sweep))
    assert view.title == "dim (best by validation)"
    found = question_table(sweep, view).to_dict("records")
    spread = "0.500 ± 0.497"  # as in the interval above
    assert found == [
        {"": "base", "SFT, 1": "0.330", "SFT, 4": "0.330", "RFT, 1": "0.330", "RFT, 4": "0.330", "RFT, 16": "0.330"},
        {"": "mean", "SFT, 1": "0.050 ± 0.000", "SFT, 4": "0.050 ± 0.000", "RFT, 1": spread, "RFT, 4": spread,
         "RFT, 16": "0.800 (1)"},
    ]  # fmt: skip
    lines = replace(sweep, question=Question(**QUESTION, labels={"sft": "SFT"}))
    (view,) = views(lines, chosen(lines))
    assert [(row[""], row["k_shot 16"]) for row in question_table(lines, view).to_dict("records")] == [
        ("base", "0.330"),
        ("SFT", ""),
        ("grpo", "0.800 (1)"),
    ]


def test_base_models_keep_what_tells_them_apart(tmp_path):
    for model, base in (("small", 0.2), ("large", 0.6)):
        for experiment, metrics in (("riddles", ["accuracy@0.5", "iou"]), ("detection", ["AP", "pick_rate"])):
            for seed in (0, 1, 2):
                value = base + 0.1 * (experiment == "detection")
                write_child(
                    tmp_path, k=1, seed=seed, test=0.9, before=value, metrics=metrics, question=None,
                    model=model, experiment=experiment,
                )  # fmt: skip
    sweep = read_sweep([tmp_path])
    assert sweep.settings == ["model", "experiment"]
    table = wide_table(sweep, chosen(sweep))
    bases = table[table.checkpoint == "base"].set_index(["model", "experiment"])["dim"]
    assert bases.to_dict() == {
        ("large", "detection"): "0.700 n=1 (AP)",
        ("large", "riddles"): "0.600 n=1 (accuracy@0.5)",
        ("small", "detection"): "0.300 n=1 (AP)",
        ("small", "riddles"): "0.200 n=1 (accuracy@0.5)",
    }
    asked = replace(sweep, question=Question(title="", x="experiment", lines=["model"]))
    (view,) = views(asked, chosen(asked))
    rows = {row[""]: row["experiment detection"] for row in question_table(asked, view).to_dict("records")}
    assert (rows["base of small"], rows["base of large"]) == ("0.300", "0.700")
    write_sweep_report([tmp_path])


def test_one_seed_never_counts_twice(tmp_path):
    for n_test, test in ((200, 0.5), (300, 0.9)):  # the sweep's file was edited between two calls
        for seed in (0, 1, 2):
            write_child(tmp_path, seed=seed, test=test, n_test=n_test)
    sweep = read_sweep([tmp_path])
    assert sweep.settings == ["dataset.n_test"]
    means = averaged(sweep.figures[sweep.figures.test_set == "test"], sweep.settings)
    assert means[["dataset.n_test", "mean", "seeds"]].to_numpy().tolist() == [[200, 0.5, 3], [300, 0.9, 3]]


def test_without_validation_nothing_is_chosen_and_all_is_shown(tmp_path):
    for rate in (1e-4, 3e-4):
        write_child(tmp_path, rate=rate, validation=None)
    assert set(chosen(read_sweep([tmp_path]))["trainer.learning_rate"]) == {1e-4, 3e-4}


def test_a_single_run_joins_and_a_folder_without_one_is_named(sweep_dir, tmp_path):
    write_child(tmp_path / "alone", k=16)
    (run_dir,) = (tmp_path / "alone").glob("*/result.json")
    assert 16 in set(read_sweep([sweep_dir, run_dir.parent]).figures["dataset.k_shot"])
    with pytest.raises(UserError, match=r"no finished run in .*nothing"):
        read_sweep([sweep_dir, tmp_path / "nothing"])


def test_models_that_were_only_evaluated(tmp_path):
    for model, value in (("a", 0.4), ("b", 0.5)):
        write_child(tmp_path, is_base=True, test=value, model=model)
    for path in tmp_path.glob("*/provenance.json"):
        path.write_text(path.read_text().replace('"overrides": []', f'"overrides": ["model={path.parent.name[-1]}"]'))
    question = Question(title="", x="model")
    sweep = replace(read_sweep([tmp_path]), question=question)
    assert list(wide_table(sweep, chosen(sweep)).checkpoint) == ["evaluated"] * 2
    (view,) = views(sweep, chosen(sweep))
    assert question_table(sweep, view).to_dict("records") == [{"": "mean", "model a": "0.400", "model b": "0.500"}]


def test_kept_figures_are_not_replaced_by_those_of_several_sources(sweep_dir, tmp_path):
    kept = tmp_path / "figures.csv"
    kept.write_text(to_csv(read_sweep([sweep_dir])))
    with pytest.raises(UserError, match="out=DIR"):
        write_sweep_report([kept, sweep_dir])


def test_a_file_that_is_none_of_ours_is_refused(tmp_path):
    path = tmp_path / "figures.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"figures\.csv cannot be read"):
        read_sweep([path])
    with pytest.raises(UserError, match="no finished run"):
        read_sweep([tmp_path])


def test_a_question_of_another_form_is_refused(sweep_dir, tmp_path):
    path = tmp_path / "figures.csv"
    head, _, body = to_csv(read_sweep([sweep_dir])).partition("\n")
    path.write_text(re.sub(r'"x": "[^"]*"', '"x": 3', head) + "\n" + body)
    with pytest.raises(UserError, match=r"figures\.csv cannot be read \(x is 3; a text"):
        read_sweep([path])
