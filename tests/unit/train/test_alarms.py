"""Alarms: when a rule speaks, what it says, what it ends; and what of it a resumed run knows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from small_models import make_trainer, prompt_rows, small_model
from transformers import TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer

from vrft.config.package_files import config_folder
from vrft.train.alarms import FIGURES, Alarms, Rule
from vrft.train.callbacks import MetricsFile

USUAL = yaml.safe_load((config_folder() / "alarms" / "usual.yaml").read_text(encoding="utf-8"))
# `vrft train experiment=digits_riddles`, seed 0: the figures that rules look at, to four digits.
HEALTHY = [
    json.loads(line)
    for line in (Path(__file__).parent / "healthy_metrics.jsonl").read_text(encoding="utf-8").splitlines()
]


def rule(*, window=1, **settings) -> Rule:
    return Rule("a_rule", {"metric": "m", "action": "warn", "hint": "look", **settings}, window)


def spoke_at(values, **settings) -> list[int]:
    """At which of the values the rule spoke, from 0."""
    told = rule(**settings)
    return [number for number, value in enumerate(values) if told.update(value)]


# --- one rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "values", "at"),
    [
        ({"above": 1.0}, [0.5, 1.0, 1.1, 2.0], [2]),  # at the limit it holds; broken, it speaks once
        ({"above": 1.0}, [2.0, 2.0, 0.5, 0.9, 1.5], [0, 4]),  # recovered, it speaks again
        ({"below": 1.0}, [1.0, 0.5], [1]),
        ({"below": 0.0}, [0.5, -0.5], [1]),  # 0 is a limit too
        ({"above": 1.0, "below": -1.0}, [0.0, 2.0, 0.0, -2.0], [1, 3]),
        ({"above": 1.0, "below": -1.0}, [2.0, -2.0], [0]),  # broken all the while
        # the mean of a window, and nothing before it is full
        ({"above": 1.0, "window": 3}, [9.0, 9.0], []),
        ({"above": 1.0, "window": 3}, [9.0, 9.0, 9.0, 9.0], [2]),
        ({"above": 1.0, "window": 3}, [0.0, 0.0, 2.9, 0.0, 0.0], []),  # one outlier: 0.97
        ({"above": 1.0, "window": 3}, [0.0, 0.0, 3.1, 0.0, 0.0, 0.0, 3.1], [2, 6]),
        # first: a multiple of the first window's mean, which is 2
        ({"of": "first", "above": 3.0, "window": 2}, [1.0, 3.0, 6.0, 6.0, 6.1], [4]),
        ({"of": "first", "below": 0.5}, [2.0, 1.0, 0.9], [2]),
        ({"of": "first", "above": 3.0}, [0.0, 5.0, 50.0], []),  # no multiple of 0
        # best: the distance from the highest window's mean
        ({"of": "best", "below": -0.2}, [0.1, 0.9, 0.8, 0.75, 0.65], [4]),
        ({"of": "best", "below": -0.2}, [0.5, 0.2, 0.6, 0.3], [1, 3]),  # a new best is a recovery
        ({"of": "best", "below": -0.2, "window": 2}, [0.9, 0.1, 0.7, 0.1, 0.2], [4]),  # .5, .4, .4, .15
    ],
)
def test_when_a_rule_speaks(settings, values, at):
    assert spoke_at(values, **settings) == at


@pytest.mark.parametrize(
    ("pairs", "at"),
    [
        # (metric, what must have risen since the metric's best)
        ([(0.5, 0.1), (0.6, 0.2), (0.4, 0.3)], [2]),
        ([(0.5, 0.1), (0.6, 0.3), (0.4, 0.2)], []),  # both fall: no hack
        ([(0.5, 0.1), (0.6, 0.3), (0.4, 0.3)], []),  # no rise
        ([(0.6, 0.3), (0.4, 0.2), (0.4, 0.4)], [2]),  # begins to rise later
        ([(0.6, math.nan), (0.4, 0.2), (0.4, 0.4)], [2]),  # the best was taken before any step
        ([(0.6, math.nan), (0.4, math.nan)], []),
    ],
)
def test_a_rule_that_asks_for_another_figure_to_rise(pairs, at):
    told = rule(of="best", below=-0.1, while_rising="reward")
    assert [number for number, pair in enumerate(pairs) if told.update(*pair)] == at


def test_a_rule_says_what_it_compared_and_with_what():
    told = rule(of="first", above=3.0)
    assert told.update(2.0) is None
    assert told.update(8.0) == (4.0, "above 3")


# --- the callback ----------------------------------------------------------------------------------------------------

RULES = {
    "lost": {"metric": "kl", "above": 1.0, "action": "warn", "hint": "lower the learning rate"},
    "over": {"metric": "reward", "below": 0.0, "action": "stop", "hint": "end"},
    "kept": {"metric": "validation", "of": "best", "below": -0.1, "action": "stop_keep_best", "hint": "take the best"},
}


class Training:
    """A training of made-up logs, watched as the trainer would have it."""

    def __init__(self, folder: Path, rules=None, *, window=1, known=(), known_alarms=()) -> None:
        self.file = folder / "alarms.jsonl"
        self.alarms = Alarms(
            {"window": window, "rules": RULES if rules is None else rules},
            self.file, validation="iou", known=known, known_alarms=known_alarms,
        )  # fmt: skip
        self.args = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[])
        self.state, self.control = TrainerState(is_world_process_zero=True), TrainerControl()
        self.alarms.on_train_begin(self.args, self.state, self.control)

    def log(self, *logs: dict) -> Training:
        for entry in logs:
            self.state.global_step = entry.get("step", self.state.global_step + 1)
            values = {name: value for name, value in entry.items() if name != "step"}
            self.alarms.on_log(self.args, self.state, self.control, logs=values)
        return self

    @property
    def told(self) -> list[tuple[int, str]]:
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        return [(alarm["step"], alarm["rule"]) for alarm in map(json.loads, lines)]


def test_an_alarm_is_told_in_the_file_and_on_the_terminal(tmp_path, capsys):
    training = Training(tmp_path).log({"kl": 0.5}, {"kl": 1.5})
    expected = {
        "step": 2,
        "rule": "lost",
        "action": "warn",
        "message": "kl is 1.5, above 1: lower the learning rate",
    }
    assert [json.loads(line) for line in training.file.read_text().splitlines()] == [expected]
    assert "alarm lost at step 2: kl is 1.5, above 1: lower the learning rate\n" in capsys.readouterr().err
    assert not training.control.should_training_stop
    assert training.alarms.stopped_by is None


@pytest.mark.parametrize(
    ("logs", "by"),
    [
        ([{"kl": 2.0}], None),
        ([{"reward": -1.0}], "over"),
        ([{"validation/iou": 0.5}, {"validation/iou": 0.3}], "kept"),
        ([{"reward": -1.0}, {"validation/iou": 0.5}, {"validation/iou": 0.3}], "kept"),  # it asks for more
        ([{"validation/iou": 0.5}, {"validation/iou": 0.3}, {"reward": -1.0}], "kept"),
        ([{"validation/f1": 0.5}, {"validation/f1": 0.3}], None),  # another metric than the primary one
    ],
)
def test_what_ends_the_training_and_saves_it(tmp_path, logs, by):
    training = Training(tmp_path).log(*logs)
    stopped_by = training.alarms.stopped_by
    assert (stopped_by and stopped_by["rule"]) == by
    assert training.control.should_training_stop == training.control.should_save == (by is not None)


def test_a_rule_that_is_off_does_not_look(tmp_path):
    training = Training(tmp_path, {"lost": RULES["lost"] | {"action": "off"}}).log({"kl": 9.0})
    assert training.told == []


@pytest.mark.parametrize("odd", [math.nan, math.inf, "nan", "-inf", None, [1.0]])
def test_what_is_no_finite_number_is_not_looked_at(tmp_path, odd):
    """TRL logs None for a mean of nothing; the metrics file, from which a resumed run reads, has "nan" as text."""
    rules = {"hacked": USUAL["rules"]["hacked"], "lost": RULES["lost"]}
    training = Training(tmp_path, rules)
    training.log({"reward": odd, "kl": odd, "validation/iou": odd})
    training.log({"reward": 0.1, "kl": 0.5, "validation/iou": 0.9})
    training.log({"reward": odd, "kl": odd, "validation/iou": odd})
    assert training.told == []
    training.log({"reward": 0.5, "kl": 1.5, "validation/iou": 0.2})
    assert training.told == [(4, "hacked"), (4, "lost")]


def test_the_rising_figure_is_a_mean_of_the_window(tmp_path):
    """A lucky step just before a validation is no rise; window 1 is each step by itself."""
    logs = [{"reward": 0.5}] * 4 + [{"validation/iou": 0.9}] + [{"reward": 0.2}] * 3
    logs += [{"reward": 0.9}, {"validation/iou": 0.1}]
    (tmp_path / "one").mkdir()
    rules = {"hacked": USUAL["rules"]["hacked"]}
    assert Training(tmp_path, rules, window=4).log(*logs).told == []
    assert Training(tmp_path / "one", rules, window=1).log(*logs).told == [(10, "hacked")]


@pytest.mark.parametrize(
    ("values", "n", "told"),
    [
        ((0.4, 0.3), 2000, []),  # at the limit, and 0.3 - 0.4 is below -0.1 by rounding
        ((0.4, 0.29), 2000, [(4, "hacked")]),
        ((0.4, 0.29), 20, []),  # two questions of twenty are chance
        ((0.9, 0.2), 20, [(4, "hacked")]),  # fourteen are not
        ((0.4, 0.29), None, [(4, "hacked")]),  # a log of an earlier version
    ],
)
def test_a_fall_of_validation_must_be_more_than_chance(tmp_path, values, n, told):
    counted = {} if n is None else {"validation/n": n}
    logs = [{"reward": 0.1}, {"validation/iou": values[0], **counted}, {"reward": 0.5}]
    training = Training(tmp_path, {"hacked": USUAL["rules"]["hacked"]}).log(
        *logs, {"validation/iou": values[1], **counted}
    )
    assert training.told == told
    if told and n == 20:
        assert "from its best mean on 20 rows, below -0.1 and beyond the ±0.22 of chance" in training.file.read_text()


def test_one_validation_counts_by_itself_whatever_the_window(tmp_path):
    training = Training(tmp_path, window=10).log({"validation/iou": 0.5}, {"validation/iou": 0.3})
    assert training.told == [(2, "kept")]


# --- a resumed run ---------------------------------------------------------------------------------------------------


def test_a_resumed_run_says_nothing_of_what_is_known_and_goes_on_as_if_it_had_seen_it(tmp_path, capsys):
    rules = {"longer": USUAL["rules"]["longer"], "lost": RULES["lost"]}
    logs = [{"completions/mean_length": 10.0, "kl": 2.0}, {"completions/mean_length": 20.0, "kl": 2.0}]
    logs += [{"completions/mean_length": 40.0, "kl": 2.0}]
    whole = Training(tmp_path, rules).log(*logs)
    assert whole.told == [(1, "lost"), (3, "longer")], "40 is four times the first"
    whole.file.unlink()
    capsys.readouterr()
    resumed = Training(tmp_path, rules, known=logs[:2])
    assert capsys.readouterr().err == ""
    resumed.log({"step": 3, **logs[2]})
    assert resumed.told == [(3, "longer")], "kl has been above all the while"


@pytest.mark.parametrize(
    ("action", "is_ended"), [("stop", True), ("stop_keep_best", True), ("warn", False), ("off", False)]
)
def test_what_an_alarm_ended_stays_ended_unless_its_action_is_another_now(tmp_path, action, is_ended):
    alarms = [
        {"step": 2, "rule": "lost", "action": "warn", "message": "…"},
        {"step": 3, "rule": "over", "action": "stop", "message": "…"},
    ]
    rules = RULES | {"over": RULES["over"] | {"action": action}}
    training = Training(tmp_path, rules, known=[{"step": 3, "reward": -1.0}], known_alarms=alarms)
    assert training.control.should_training_stop == is_ended
    assert training.alarms.stopped_by == (alarms[1] | {"action": action} if is_ended else None)


def test_of_several_that_ended_it_the_strongest_counts_then_and_later(tmp_path):
    alarms = [
        {"step": 3, "rule": "over", "action": "stop_keep_best", "message": "…"},
        {"step": 3, "rule": "lost", "action": "stop", "message": "…"},
    ]
    rules = {name: RULES[name] | {"action": action} for name, action in (("over", "stop_keep_best"), ("lost", "stop"))}
    resumed = Training(tmp_path, rules, known=[{"step": 3, "reward": -1.0}], known_alarms=alarms)
    assert resumed.alarms.stopped_by == alarms[0]


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("warn", "end\n"),
        ("stop", "end; training ends here\n"),
        ("stop_keep_best", "the best checkpoint is judged\n"),
    ],
)
def test_what_an_alarm_does_is_told(tmp_path, capsys, action, told):
    Training(tmp_path, {"over": RULES["over"] | {"action": action}}).log({"reward": -1.0})
    assert told in capsys.readouterr().err


def test_what_keeps_a_resumed_training_ended_is_told(tmp_path, capsys):
    alarms = [{"step": 3, "rule": "over", "action": "stop", "message": "…"}]
    Training(tmp_path, RULES | {"over": RULES["over"] | {"action": "stop"}}, known_alarms=alarms)
    assert "alarm over has ended the training at step 3; to go on, change alarms.rules.over" in capsys.readouterr().err


def test_a_rule_on_a_figure_that_nobody_logs_is_told_once(tmp_path, capsys):
    limit = {"above": 1.0, "action": "warn", "hint": "…"}
    rules = {"mine": limit | {"metric": "rewrd"}, "kl": limit | {"metric": "kl"}, "fine": limit | {"metric": "reward"}}
    Training(tmp_path, rules).log(*({"step": step, "loss": 0.1, "reward": 0.5} for step in (1, 2)))
    told = capsys.readouterr().err
    assert told.count("looks at 'rewrd', which this run does not log; did you mean 'reward'?") == 1
    assert told.count("does not log") == 1


def test_figures_of_the_usual_rules_are_known():
    assert {rule["metric"] for rule in USUAL["rules"].values()} == set(FIGURES)


def test_a_rule_that_is_no_more_ends_nothing(tmp_path):
    alarms = [{"step": 3, "rule": "of_old", "action": "stop", "message": "…"}]
    assert not Training(tmp_path, known_alarms=alarms).control.should_training_stop


# --- conf/alarms/usual.yaml ------------------------------------------------------------------------------------------

STEPS = range(1, 41)
SICK = {  # the healthy log with these figures in place of its own: a rule, and how its figure goes
    "no_signal": lambda step: {"frac_reward_zero_std": min(1.0, 0.5 + 0.03 * step)},
    "unreadable": lambda step: {"parse_rate": 0.95 if step < 20 else 0.6},
    "cut": lambda step: {"completions/clipped_ratio": 0.02 * step},
    "shorter": lambda step: {"completions/mean_length": 24.0 if step < 15 else 5.0},
    "longer": lambda step: {"completions/mean_length": 24.0 + 4.0 * step},
    "repetition": lambda step: {"repetition": 0.02 * step},
    "kl": lambda step: {"kl": 0.05 * step},
    "certain": lambda step: {"entropy": 0.4 * 0.85**step},
    "confused": lambda step: {"entropy": 0.4 + 0.1 * step},
    "hacked": lambda step: {"validation/iou": 0.7 - 0.01 * step} if step % 10 == 0 else {},
    "boastful": lambda step: {"confidence_gap": 0.02 * step},
}


def healthy(step_of_sickness=lambda step: {}) -> list[dict]:
    """The healthy log with further figures on every step's entry."""
    logs = []
    for entry in HEALTHY:
        renamed = {name.replace("accuracy@0.5", "iou"): value for name, value in entry.items()}
        sick = step_of_sickness(entry["step"])
        is_step = "reward" in entry
        validation = {name: value for name, value in sick.items() if name in renamed and not is_step}
        logs.append(renamed | ({**sick} if is_step else validation))
    return logs


def test_the_healthy_log_is_one():
    assert [entry["step"] for entry in HEALTHY if "reward" in entry] == list(STEPS)
    assert [entry["step"] for entry in HEALTHY if "validation/accuracy@0.5" in entry] == [0, 10, 20, 30, 40]
    assert SICK.keys() == USUAL["rules"].keys(), "a rule without a test"


def test_a_healthy_run_sets_off_nothing(tmp_path):
    fine = {"kl": 0.08, "confidence_gap": 0.2}  # which this run does not log
    assert Training(tmp_path, USUAL["rules"], window=USUAL["window"]).log(*healthy(lambda step: fine)).told == []


@pytest.mark.parametrize("name", USUAL["rules"])
def test_each_usual_rule_sees_what_it_is_for_and_nothing_else_does(tmp_path, name, capsys):
    training = Training(tmp_path, USUAL["rules"], window=USUAL["window"]).log(*healthy(SICK[name]))
    assert [rule for _, rule in training.told] == [name]
    assert not training.control.should_training_stop, "the usual ones warn"
    assert USUAL["rules"][name]["hint"] in capsys.readouterr().err


# --- a real training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["warn", "stop", "stop_keep_best"])
def test_in_a_training_the_step_is_finished_and_no_other_begun(tmp_path, action):
    rules = {"short": {"metric": "completions/mean_length", "above": 0.0, "action": action, "hint": "…"}}
    trainer = make_trainer(
        GRPOTrainer, small_model("qwen2_vl"), "qwen2_vl", prompt_rows(2), tmp_path, max_completion_length=4
    )
    alarms = Alarms(
        {"window": 2, "rules": rules}, tmp_path / "alarms.jsonl", validation="iou", known=[], known_alarms=[]
    )
    trainer.add_callback(MetricsFile(tmp_path / "metrics.jsonl"))
    trainer.add_callback(alarms)
    trainer.train()
    assert trainer.state.global_step == (3 if action == "warn" else 2)
    (alarm,) = map(json.loads, (tmp_path / "alarms.jsonl").read_text().splitlines())
    assert (alarm["step"], alarm["rule"], alarm["action"]) == (2, "short", action)
    assert alarms.stopped_by == (None if action == "warn" else alarm)
    assert (tmp_path / "checkpoint-2").is_dir() == (action != "warn"), "saved, though save_strategy is no"
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["step"] == trainer.state.global_step
