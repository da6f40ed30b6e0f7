"""What a comparison of runs says beyond its table: which method is ahead, and what differs beside the method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from vrft.config.section import flat
from vrft.evaluate.protocols import protocol_key
from vrft.report.figures import Method, Panel, change_between, metric_label
from vrft.report.headline import n_steps, signed
from vrft.report.run_files import CHECKPOINT_NAMES, NOT_COMPARED, RunFiles

_OF_THE_METHOD = ("trainer.name", "trainer.args.", "trainer.sft_thought", "rollout.")
_FIRST = ("trainer.", "dataset.", "model.")


@dataclass(frozen=True)
class Difference:
    """A metric of `first` minus that of `second`, on the same rows. change: `{"value", "n", "interval"}`."""

    first: Method
    second: Method
    panel: Panel
    change: dict


def with_differences(shown: Sequence[Panel], methods: Sequence[Method]) -> tuple[list[Panel], list[Difference]]:
    """The panels with `Line.against` filled in, and the differences themselves.

    Methods are compared at the same checkpoint, RFT with SFT; the two runs of one method with each other. Without a
    difference are those that were not evaluated on the same rows by the same protocol.
    """
    found = [
        Difference(first, second, panel, change)
        for panel in shown
        for first, second in _pairs(methods)
        if (change := change_between(second, first, split=panel.split, metric=panel.metric))
        and change["value"] is not None
    ]
    filled = []
    for panel in shown:
        own = [one for one in found if one.panel is panel]
        lines = [
            replace(line, against={_name(one.second): one.change for one in own if one.first.label == line.label})
            for line in panel.lines
        ]
        filled.append(replace(panel, lines=lines))
    return filled, found


def sentences_of(runs: Sequence[RunFiles], methods: Sequence[Method], found: Sequence[Difference]) -> list[str]:
    """A sentence for each difference of the first metric on the first test set; why there is none, if there is none."""
    metric, split = runs[0].primary_metrics[0], next(iter(runs[0].splits), "test")
    shown = [one for one in found if (one.panel.metric, one.panel.split) == (metric, split)]
    if not shown and any(_pairs(methods)):
        return ["The methods were not evaluated on the same rows, so their difference is not stated."]
    return list(map(_sentence, shown))


def _sentence(one: Difference) -> str:
    first, second = _name(one.first), _name(one.second)
    low, high = one.change["interval"] or (0, 0)
    ahead = f"{first} is ahead" if low > 0 else f"{second} is ahead" if high < 0 else "neither is clearly ahead"
    kind = CHECKPOINT_NAMES.get(one.first.kind, one.first.kind)
    return (
        f"{first} − {second}, {kind}: {metric_label(one.panel.metric)} {change_text(one.change)} on {one.panel.title} "
        f"(paired, n = {one.change['n']}): {ahead}."
    )


def change_text(change: dict) -> str:
    """A change with its interval.

    >>> change_text({"value": 0.187, "n": 300, "interval": [-0.01, 0.25]})
    '+0.187 [−0.010, +0.250]'
    """
    interval = change["interval"]
    return signed(change["value"]) + (f" [{signed(interval[0])}, {signed(interval[1])}]" if interval else "")


def differing(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """`(name, its value in each run)` of what differs beside the method: steps, rows, then each config key."""
    counts, configs = [run.result["n_rows"] for run in runs], [dict(flat(run.config)) for run in runs]
    facts: list[tuple[str, list[Any]]] = [("steps taken", list(map(n_steps, runs)))]
    facts += [
        (f"{split} rows", [one.get(split) for one in counts]) for split in dict.fromkeys(s for n in counts for s in n)
    ]
    facts += [
        (name, [(run.provenance.get(key) or "").rpartition(":")[2][:12] for run in runs])
        for name, key in (("hash of rows and images", "data_hash"), ("hash of the base model", "model_hash"))
    ]
    left_out = NOT_COMPARED if len({run.method for run in runs}) == 1 else (*NOT_COMPARED, *_OF_THE_METHOD)
    keys = sorted(
        dict.fromkeys(key for config in configs for key in config), key=lambda key: not key.startswith(_FIRST)
    )
    facts += [(key, [config.get(key) for config in configs]) for key in keys if not key.startswith(left_out)]
    return [(name, list(map(_short, values))) for name, values in facts if len(set(map(str, values))) > 1]


def _pairs(methods: Sequence[Method]) -> Iterator[tuple[Method, Method]]:
    trained = [method for method in methods if method.kind != "before"]
    n_runs = len({id(method.run) for method in trained})
    for first, second in combinations(trained, 2):
        protocols = {protocol_key(one.run.config["protocol"]) for one in (first, second)}
        if first.kind != second.kind or first.run is second.run or len(protocols) > 1:
            continue
        if first.run.method != second.run.method:
            yield (first, second) if first.run.method == "RFT" else (second, first)
        elif n_runs == 2:
            yield first, second


def _name(method: Method) -> str:
    """The method's label without its checkpoint."""
    return method.label.replace(f", {CHECKPOINT_NAMES.get(method.kind, method.kind)}", "", 1)


def _short(value: Any) -> str:
    text = "–" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
