"""Alarms: rules from `conf/alarms/` that watch the training logs and may end a training that goes wrong."""

from __future__ import annotations

import difflib
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from vrft.files import append_lines
from vrft.tasks.rows import counted

ACTIONS = ("off", "warn", "stop", "stop_keep_best")  # in rising order
FIGURES = (  # metrics of the shipped rules; not every run logs them all
    "frac_reward_zero_std",
    "parse_rate",
    "completions/clipped_ratio",
    "completions/mean_length",
    "repetition",
    "kl",
    "entropy",
    "validation",
    "confidence_gap",
)
_ROUNDING = 1e-9  # 0.3 - 0.4 is below -0.1 in floating point
_SELDOM = ("validation/", "term_faults/")  # prefixes of metrics that the first log may lack


class Rule:
    """One rule and the values of its metric so far: feed it each logged value; it reports the first step at which its
    condition holds."""

    def __init__(self, name: str, settings: Mapping[str, Any], window: int) -> None:
        """settings: `metric`, `above`, `below`, `of`, `while_rising`, `action`, `hint`, as in `conf/alarms/`."""
        self.name, self.settings, self.window = name, settings, window
        self.values: list[float] = []
        self.first: float | None = None
        self.best, self.other_at_best = -math.inf, math.nan
        self.is_broken = False

    def update(self, value: float, other: float = math.nan, *, n: float | None = None) -> tuple[float, str] | None:
        """Add the metric's next value. other: the mean over the window of the metric that `while_rising` names.

        n: of a validation, the number of rows or images that the value is a mean over. Its distance from the best then
        has to be more than chance, too. Returns the value compared and the limit, such as `(4.0, "above 3")`, if the
        condition holds now and did not before; else None.
        """
        self.values = [*self.values, value][-self.window :]
        if len(self.values) < self.window:
            return None
        mean = statistics.fmean(self.values)
        self.first = mean if self.first is None else self.first
        if mean > self.best:
            self.best, self.other_at_best = mean, other
        if math.isnan(self.other_at_best):
            self.other_at_best = other  # at the first validation no reward is logged yet
        of = self.settings.get("of") or "value"
        if of == "first" and not self.first:
            return None
        compared = {"value": mean, "first": mean / (self.first or 1.0), "best": mean - self.best}[of]
        is_rising = not self.settings.get("while_rising") or other > self.other_at_best
        above, below = self.settings.get("above"), self.settings.get("below")
        chance = _chance(mean, self.best, n) if of == "best" and n else 0.0
        limit = next(
            (
                f"{word} {bound:g}" + (f" and beyond the ±{chance:.2g} of chance" if chance else "")
                for word, bound, is_over in (("above", above, 1), ("below", below, -1))
                if bound is not None and is_over * (compared - bound) > _ROUNDING and abs(compared) > chance
            ),
            None,
        )
        was_broken, self.is_broken = self.is_broken, limit is not None and is_rising
        return (compared, limit) if self.is_broken and not was_broken else None


def _chance(mean: float, best: float, n: float) -> float:
    """Half of the 95 % interval of the difference of two means over `n` values in [0, 1]; 0 for means outside.

    The variance of such values is at most p(1 - p). That both means are over the same rows is not used: the interval
    of the paired difference would be smaller, but needs each row's value.

    >>> round(_chance(0.3, 0.4, 20), 3), round(_chance(0.3, 0.4, 2000), 3)
    (0.294, 0.029)
    """
    return 1.96 * math.sqrt(sum(max(p * (1 - p), 0.0) for p in (mean, best)) / n)


class Alarms(TrainerCallback):
    """Applies the rules to every log; an alarm is printed, appended to a file, and may end the training.

    stopped_by: the alarm that ended the training, as in the file; None while there is none.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        file: Path,
        *,
        validation: str,
        known: Sequence[dict],
        known_alarms: Sequence[dict],
    ) -> None:
        """settings: the group `alarms` of a frozen config. validation: the metric that rules call `validation`.

        known, known_alarms: the logs and alarms up to the checkpoint that a run resumes from. They update the rules
        without raising alarms again. A training that an alarm ended stays ended unless the rule's action has changed.
        """
        self.window = settings["window"]
        self.rules = [
            # Validations are rare, so each is a window of its own.
            Rule(name, rule, 1 if rule["metric"] == "validation" else self.window)
            for name, rule in settings["rules"].items()
            if rule["action"] != "off"
        ]
        self.validation, self.file = f"validation/{validation}", file
        self._has_looked = False
        self.recent: dict[str, list[float]] = defaultdict(list)
        now = {rule.name: rule.settings["action"] for rule in self.rules}
        self.stopped_by: dict | None = None
        for alarm in known_alarms:
            self._note(alarm | {"action": now.get(alarm["rule"], "off")})
        for entry in known:
            self._alarms_of(entry)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        control.should_training_stop |= self.stopped_by is not None
        if self.stopped_by is not None and state.is_world_process_zero:
            rule = self.stopped_by["rule"]
            print(
                f"alarm {rule} has ended the training at step {self.stopped_by['step']}; to go on, change "
                f"alarms.rules.{rule}.action",
                file=sys.stderr,
            )

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        level = 0
        if state.is_world_process_zero:
            if "loss" in (logs or {}) and not self._has_looked:
                self._has_looked = True
                self._warn_of_figures(logs)
            for alarm in self._alarms_of(logs or {}):
                alarm = {"step": state.global_step, **alarm}
                report(alarm, self.file)
                level = max(level, ACTIONS.index(alarm["action"]))
                self._note(alarm)
        if agreed_maximum(level, args) > 1:
            control.should_training_stop = control.should_save = True

    def _warn_of_figures(self, logs: Mapping[str, Any]) -> None:
        """Warn of rules on metrics that this run does not log."""
        for rule in self.rules:
            metric = rule.settings["metric"]
            if metric not in logs and metric not in FIGURES and not metric.startswith(_SELDOM):
                near = difflib.get_close_matches(metric, logs, 1)
                print(
                    f"\nwarning: alarms.rules.{rule.name} looks at {metric!r}, which this run does not log"
                    + (f"; did you mean {near[0]!r}?" if near else f"; it logs {', '.join(logs)}"),
                    file=sys.stderr,
                )

    def _note(self, alarm: dict) -> None:
        """Keep the alarm if it ends the training and its action is stronger than that of the one kept."""
        level = ACTIONS.index(alarm["action"])
        if level > 1 and (self.stopped_by is None or level > ACTIONS.index(self.stopped_by["action"])):
            self.stopped_by = alarm

    def _alarms_of(self, logs: Mapping[str, Any]) -> list[dict]:
        """The alarms that this log raises."""
        values = {
            "validation" if name == self.validation else name: value
            for name, value in logs.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        found = []
        for name in {rule.settings.get("while_rising") for rule in self.rules} & set(values):
            self.recent[name] = [*self.recent[name], values[name]][-self.window :]
        for rule in self.rules:
            value = values.get(rule.settings["metric"])
            if value is None:
                continue
            other = self.recent.get(rule.settings.get("while_rising"))
            n = values.get("validation/n") if rule.settings["metric"] == "validation" else None
            broken = rule.update(value, statistics.fmean(other) if other else math.nan, n=n)
            if broken:
                of = {"first": " times its first mean", "best": " from its best mean"}.get(rule.settings.get("of"), "")
                of += f" on {counted(n, self.validation.partition('/')[2])}" if n else ""
                message = f"{rule.settings['metric']} is {broken[0]:.3g}{of}, {broken[1]}: {rule.settings['hint']}"
                found.append({"rule": rule.name, "action": rule.settings["action"], "message": message})
        return found


def report(alarm: Mapping[str, Any], file: Path) -> None:
    """Append an alarm to the file and print it."""
    append_lines(file, [alarm])
    then = {"stop": "; training ends here", "stop_keep_best": "; training ends here, and the best checkpoint is judged"}
    print(
        f"\nalarm {alarm['rule']} at step {alarm['step']}: {alarm['message']}{then.get(alarm['action'], '')}",
        file=sys.stderr,
    )


def agreed_maximum(level: float, args) -> float:
    """The highest of all processes' levels; every process calls this."""
    if args.world_size == 1:
        return level
    highest = torch.tensor(float(level), device=args.device)
    torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    return highest.item()
