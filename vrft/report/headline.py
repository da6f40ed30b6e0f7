"""The text of a report: the headline, the summary under it, and the facts of the run."""

from __future__ import annotations

from collections.abc import Sequence

from vrft.evaluate.protocols import protocol_key
from vrft.report.figures import Panel, metric_label
from vrft.report.run_files import CHECKPOINT_NAMES, RunFiles

_SPLITS_FIRST = ("train", "validation", "test")
METHOD_TITLES = {"RFT": "Reinforcement fine-tuning (GRPO)", "SFT": "Supervised fine-tuning"}


def headline(run: RunFiles, panels: Sequence[Panel]) -> str:
    """The change of the primary metric on the test set, as one short sentence."""
    metric = run.primary_metrics[0]
    before, after = _value(run, "before", metric), _value(run, run.after, metric)
    label = metric_label(metric)
    name = label[0].upper() + label[1:] if label[1:2].islower() else label  # gIoU is not GIoU
    if after is None and before is None:
        return "Trained, not evaluated" if run.is_trained else "Nothing was evaluated"
    if after is None:
        return f"{name} of {number(before)} on the test set"
    if before is None:
        return f"{name} of {number(after)} on the test set after training"
    change = change_on_test(run, panels)
    low, high = (change or {}).get("interval") or (None, None)
    if low is not None and low <= 0 <= high:
        return f"{name} did not clearly change: {number(before)} before, {number(after)} after"
    return f"{name} {'rose' if after > before else 'fell'} from {number(before)} to {number(after)}"


def sentences(run: RunFiles, panels: Sequence[Panel]) -> list[str]:
    """The summary: what was trained, how certain the change is, and what went wrong."""
    metric, n_rows = run.primary_metrics[0], run.result.get("n_rows", {})
    summary = []
    if run.is_trained:
        steps = f", {n_steps(run)} steps" if n_steps(run) else ""
        seconds = run.result.get("durations_s", {}).get("train")
        took = f" in {duration(seconds)}" if seconds else ""
        title = METHOD_TITLES.get(run.method, run.method)
        summary.append(f"{title} on {n_rows.get('train', '?')} training rows{steps}{took}.")
        ended = [alarm for alarm in run.alarms if alarm["action"] != "warn" and alarm["step"] >= n_steps(run)]
        if ended:
            summary.append(f"The alarm {ended[-1]['rule']} stopped the training at step {ended[-1]['step']}.")
        elif run.alarms:  # one that stopped the training counts here, too, if the run was resumed afterwards
            summary.append(
                f"It raised {'an alarm' if len(run.alarms) == 1 else f'{len(run.alarms)} alarms'}, see below."
            )
        failed = {
            name: n
            for entry in run.logs
            for name, n in entry.items()
            if name.startswith("term_faults/") and isinstance(n, int | float)
        }
        if failed:
            named = ", ".join(f"{name.partition('/')[2]} on {n:.0f} completions" for name, n in failed.items())
            summary.append(f"A reward term failed and paid 0: {named}.")
    else:
        summary.append("The model was evaluated; nothing was trained.")
    change = change_on_test(run, panels)
    if change and change["interval"]:
        interval = f" (95 % interval {signed(change['interval'][0])} to {signed(change['interval'][1])})"
        n_test = n_rows.get("test", change["n"])
        summary.append(
            f"On {n_test} held-out questions {metric_label(metric)} changed by {signed(change['value'])}{interval}."
        )
    others = []
    for split in run.splits:
        pair = [_value(run, name, metric, split) for name in ("before", run.after)]
        if split != "test" and None not in pair:
            others.append(f"{run.title(split)} {number(pair[0])} → {number(pair[1])}")
    if others:
        summary.append(f"Other test sets: {', '.join(others)}.")
    if run.after:
        summary.append(_checkpoint_sentence(run))
    unreadable = [_value(run, name, "unreadable") for name in ("before", run.after)]
    if None not in unreadable:
        summary.append(f"Answers that could not be read: {share(unreadable[0])} before, {share(unreadable[1])} after.")
    return summary


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Names and values of the settings that a reader asks for first."""
    config, choices = run.config, run.provenance.get("choices") or {}
    counts = run.result.get("n_rows", {})
    n_rows = ", ".join(
        f"{counts[split]} {split}" for split in dict.fromkeys((*_SPLITS_FIRST, *counts)) if split in counts
    )
    trainer, memory = config["trainer"], config["memory"]
    found = [
        ("Model", run.model_name),
        ("Task", config["task"]["name"]),
        ("Dataset", str(choices.get("dataset") or config["dataset"]["builder"])),
        ("Rows", n_rows),
        ("Protocol", protocol_key(config["protocol"])),
    ]
    if run.is_trained:
        step = f"{trainer['prompts_per_step']} prompts"
        step += f" × {memory['num_generations']} completions" if run.method == "RFT" else ""
        weights = ", ".join(f"{name} × {weight:g}" for name, weight in run.result["reward_terms"])
        found += [("Method", METHOD_TITLES.get(run.method, run.method)), ("One step", step)]
        found += [("Learning rate", f"{trainer['learning_rate']:g}")]
        found += [("Reward", f"{config['reward']['name']}: {weights}")] if run.method == "RFT" else []
    found.append(("Seed", str(run.result.get("seed", config["run"]["seed"]))))
    times = run.result.get("durations_s", {})
    found.append(("Wall time", ", ".join(f"{name.replace('_', ' ')} {duration(s)}" for name, s in times.items())))
    return [(name, value) for name, value in found if value]


def origin(run: RunFiles) -> list[tuple[str, str]]:
    """Names and values of the provenance: what is needed to reproduce the figures."""
    record = run.provenance
    commit = record.get("commit")
    state = {True: " with uncommitted changes", False: ""}.get(record.get("is_dirty"), "")
    found = [
        ("Run directory", run.run_dir.name),
        ("Commit", f"{commit}{state}" if commit else "not in a git checkout"),
        ("Config hash", record.get("config_hash")),
        ("Data hash", record.get("data_hash")),
        ("Model revision", record.get("model_revision")),
        ("Model weights", record.get("model_hash")),
        ("Overrides", " ".join(record.get("overrides") or [])),
        ("Python", record.get("python")),
        ("Platform", record.get("platform")),
        ("Packages", ", ".join(f"{name} {v}" for name, v in (record.get("versions") or {}).items() if v)),
    ]
    return [(name, str(value)) for name, value in found if value]


def change_on_test(run: RunFiles, panels: Sequence[Panel]) -> dict | None:
    """The paired change of the primary metric on the test set, `{"value", "n", "interval"}`; None if unknown."""
    for panel in panels:
        if (panel.split, panel.metric) == ("test", run.primary_metrics[0]):
            return next((line.change for line in panel.lines if line.run == run and line.kind == run.after), None)
    return None


def n_steps(run: RunFiles) -> int:
    """The last step in the logs; 0 without training."""
    return max((entry["step"] for entry in run.logs), default=0)


def number(value: float | None) -> str:
    """A figure in [0, 1] with three decimals.

    >>> number(0.5), number(None)
    ('0.500', '–')
    """
    return "–" if value is None else f"{value:.3f}"


def signed(value: float) -> str:
    """A change with its sign.

    >>> signed(0.25), signed(-0.1), signed(0.0)
    ('+0.250', '−0.100', '0.000')
    """
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


def share(value: float) -> str:
    """A share in percent.

    >>> share(0.0333)
    '3.3 %'
    """
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """A wall time for readers.

    >>> duration(7.31), duration(38.2), duration(125), duration(7300)
    ('7.3 s', '38 s', '2 min 5 s', '2 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _checkpoint_sentence(run: RunFiles) -> str:
    if run.after == "best" and run.best_step is not None:
        where = "the untrained model" if run.best_step == 0 else f"step {run.best_step} of {n_steps(run)}"
        return f"“After” is the checkpoint with the best validation figure: {where}."
    return f"“After” is the checkpoint “{CHECKPOINT_NAMES.get(run.after, run.after)}”."


def _value(run: RunFiles, name: str | None, metric: str, split: str = "test") -> float | None:
    return run.metrics(name, split).get(metric, {}).get("value") if name else None
