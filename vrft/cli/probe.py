"""`vrft probe`: what the model earns before it is trained, and whether there is anything to learn from it."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrft.config.schema import Config
from vrft.errors import UserError
from vrft.evaluate.score import answer_as_json
from vrft.files import write_rows, write_text_atomically
from vrft.report.contact_sheet import contact_sheet
from vrft.report.draw import boxes_of, save_image
from vrft.run.context import RunContext, check_questions, make_experiment
from vrft.run.directory import fresh_run_dir
from vrft.run.evaluation import completions_of
from vrft.run.rows import prepare_rows
from vrft.run.training import load_policy
from vrft.tasks.boxes import FRAMES, Frame, from_frame, iou_matrix
from vrft.tasks.rows import Row

_MOSTLY, _NEARLY_ALL = 0.5, 0.8
_PAID = 0.5  # of what the reward can pay: a gold that earns less cannot be answered rightly
_FRAME_GAIN = 0.2  # of mean IoU: another frame that explains so much more is no accident
_ORDERS = {
    "y1, x1, y2, x2": lambda boxes: [[x1, y1, x2, y2] for y1, x1, y2, x2 in boxes],
    "x, y, width, height": lambda boxes: [[x, y, x + width, y + height] for x, y, width, height in boxes],
}


def run(config: Config) -> int:
    """Sample completions of training rows by the untrained model, judge them, print the figures and a verdict.

    Writes `probe.json`, `completions.jsonl` and `probe.png` to `run.dir`; returns 1 if something stands in the way,
    else 0. Sampling is at `rollout.temperature`; `top_p` and `top_k` are left out. Raises `UserError` as training
    would.
    """
    out, asked = Path(config.run.dir), config.probe
    with fresh_run_dir(out, is_resuming=False):
        _, splits, _ = prepare_rows(config, out)
        experiment = make_experiment(out, config, splits)
        check_questions(experiment)
        rows = _spread(experiment.training_rows, asked.rows)
        if not rows:
            raise UserError("the split train has no rows to probe; look at the keys of `dataset`")
        cases = sample(experiment, rows, n_samples=asked.completions)
        report = figures(experiment, rows, cases)
        report |= {"is_ready": (fault := obstacle(report, config)) is None, "verdict": fault or _ready(report)}
        write_rows(out / "completions.jsonl", cases)
        write_text_atomically(out / "probe.json", json.dumps(report, indent=2) + "\n")
        predicted = {case["row_id"]: boxes_of(case["answer"]) for case in reversed(cases)}
        save_image(contact_sheet({"train": rows}, root=out / "data", predicted=predicted), out / "probe.png")
    print("\n".join(told(report)))
    print(f"\nverdict: {report['verdict']}")
    print(f"completions: {out / 'completions.jsonl'}; golds (solid) and first answers (dashed): {out / 'probe.png'}")
    return int(not report["is_ready"])


def sample(experiment: RunContext, rows: Sequence[Row], *, n_samples: int) -> list[dict]:
    """`n_samples` judged completions of each row, row after row."""
    config, task = experiment.config, experiment.task
    completions = completions_of(
        experiment,
        load_policy(experiment, config.model.path),
        rows,
        progress="probe",
        n_samples=n_samples,
        temperature=config.rollout.temperature,
        seed=config.run.seed,
    )
    by_id, cases = {row["row_id"]: row for row in rows}, []
    for completion in completions:
        if completion["sample"] == 0:  # the greedy one, which training never sees
            continue
        row = by_id[completion["row_id"]]
        cut = completion["is_truncated"]
        parsed = task.parse(completion["text"], row, experiment.frame_for_row(row), is_truncated=cut)
        judged = {"answer": answer_as_json(parsed.answer), "reason": parsed.reason, **experiment.judge(parsed, row)}
        cases.append({**completion, **judged})
    return cases


def figures(experiment: RunContext, rows: Sequence[Row], cases: Sequence[dict]) -> dict[str, Any]:
    """What the completions earn, how much they differ within a group, and why some cannot be read."""
    groups: dict[str, list[dict]] = {}
    for case in cases:
        groups.setdefault(case["row_id"], []).append(case)
    golds = {row["row_id"]: _gold_judged(experiment, row) for row in rows}
    most = {row["row_id"]: sum(experiment.judge.weights(row).values()) for row in rows}
    terms = dict.fromkeys(term for case in cases for term in case["terms"])
    totals = [[case["total"] for case in group] for group in groups.values()]
    return {
        "n_rows": len(rows),
        "n_completions": len(cases),
        "reward": _spread_of(totals)
        | {
            "most": statistics.fmean(most.values()),
            "gold": statistics.fmean(gold["total"] for gold in golds.values()),
        },
        "terms": {
            term: _spread_of([[c["terms"][term] for c in group if term in c["terms"]] for group in groups.values()])
            | {"gold": statistics.fmean(gold[term] for gold in (g["terms"] for g in golds.values()) if term in gold)}
            for term in terms
        },
        "groups_without_signal": statistics.fmean(max(group) == min(group) for group in totals),
        "groups_of_one_text": statistics.fmean(len({c["text"] for c in group}) == 1 for group in groups.values()),
        "readable": statistics.fmean(case["reason"] is None for case in cases),
        "unreadable": dict(Counter(case["reason"] for case in cases if case["reason"]).most_common()),
        "truncated": statistics.fmean(case["is_truncated"] for case in cases),
        "n_tokens": statistics.fmean(case["n_tokens"] for case in cases),
        "golds_not_paid": [
            {"row_id": row_id, "earns": gold["total"], "of": most[row_id]}
            for row_id, gold in golds.items()
            if gold["total"] < _PAID * most[row_id] or not gold["answer_pays"]
        ],
        "frames": frame_figures(experiment, rows, cases),
        "term_faults": dict(experiment.judge.faults),
    }


def frame_figures(experiment: RunContext, rows: Sequence[Row], cases: Sequence[dict]) -> dict[str, Any]:
    """The mean of each answer's best IoU with a gold box: as it is read, and if the model spoke, or the golds were, in
    another frame or order. Empty where neither golds nor answers are boxes."""
    by_id = {row["row_id"]: row for row in rows}
    overlaps: dict[str, list[float]] = {}
    own = set()
    for case in cases:
        row = by_id[case["row_id"]]
        gold = [list(box) for box, _ in boxes_of(row["gold"])]
        if not gold or case["reason"] is not None or experiment.task.for_row(row).answer_kind not in ("box", "boxes"):
            continue
        frame = experiment.frame_for_row(row)
        own.add(frame.name)
        for name in FRAMES:
            other = Frame(name, frame.image_wh, frame.seen_wh)
            parsed = experiment.task.parse(case["text"], row, other)
            spoken = _best_iou(answer_as_json(parsed.answer), gold)
            if name == frame.name:
                overlaps.setdefault("as it is", []).append(_best_iou(case["answer"], gold))
            else:
                overlaps.setdefault(f"the model speaks {name}", []).append(spoken)
            if name != "pixels":
                in_pixels = [from_frame(box, other) for box in gold]
                overlaps.setdefault(f"the golds are in {name}", []).append(_best_iou(case["answer"], in_pixels))
        for order, turned in _ORDERS.items():
            overlaps.setdefault(f"the golds are {order}", []).append(_best_iou(case["answer"], turned(gold)))
    return {"read_in": ", ".join(sorted(own)), **{name: statistics.fmean(ious) for name, ious in overlaps.items()}}


def obstacle(report: Mapping[str, Any], config: Config) -> str | None:
    """One sentence: what stands in the way of training, and the knob to turn; or None."""
    memory, unpaid = config.memory, report["golds_not_paid"]
    as_it_is, better, iou = _better_frames(report["frames"])
    if better and iou > as_it_is + _FRAME_GAIN:
        knobs = ["give gold boxes as [x1, y1, x2, y2] in pixels of the image"] * any("gold" in one for one in better)
        knobs += ["look at model.family"] * any("model" in one for one in better)
        return (
            f"boxes look as if {' or '.join(better)} (read in {report['frames']['read_in']}): the mean IoU would be "
            f"{iou:.2f} in place of {as_it_is:.2f}; {', or '.join(knobs)}"
        )
    if report["term_faults"]:
        named = ", ".join(f"{name} on {n}" for name, n in report["term_faults"].items())
        return f"reward terms of your own fail on completions ({named}) and pay 0 there; mend them"
    if len(unpaid) == report["n_rows"]:
        return (
            f"right answers themselves earn nothing for being right (terms of the golds: {_gold_terms(report)}), so "
            f"reward={config.reward.name} is not one for task={config.task['name']}; choose another reward"
        )
    if report["truncated"] > _MOSTLY:
        return (
            f"{report['truncated']:.0%} of the completions are cut at memory.max_completion_length="
            f"{memory.max_completion_length} before they end; raise it"
        )
    if unpaid:
        named = ", ".join(one["row_id"] for one in unpaid[:5]) + (", …" if len(unpaid) > 5 else "")
        return (
            f"no answer can match the gold of {len(unpaid)} of {report['n_rows']} rows ({named}): written as the model "
            "would write it, the gold itself is not paid; mend or remove these rows"
        )
    if report["readable"] < _MOSTLY:
        why, n = next(iter(report["unreadable"].items()))
        return (
            f"{1 - report['readable']:.0%} of the answers cannot be read, most of them ({n}) for {why}; train the form "
            "first (trainer=sft), or look at the completions and the question's text"
        )
    if report["groups_of_one_text"] > _NEARLY_ALL:
        return (
            f"in {report['groups_of_one_text']:.0%} of the groups all completions are one text, so there is nothing to "
            f"compare; raise rollout.temperature={config.rollout.temperature:g} (1 is usual)"
        )
    if report["groups_without_signal"] > _NEARLY_ALL:
        share = f"{report['groups_without_signal']:.0%} of the groups earn the same throughout"
        if report["reward"]["mean"] > 0.9 * report["reward"]["most"]:
            return f"{share} and nearly all there is: the rows are too easy; choose harder ones"
        return (
            f"{share}: the rows are too hard for this model; raise memory.num_generations="
            f"{memory.num_generations}, choose easier rows, or begin with trainer=sft"
        )
    return None


def _better_frames(frames: Mapping[str, Any]) -> tuple[float, list[str], float]:
    """The mean IoU as it is, and the readings by which it would be highest (several may come to the same)."""
    others = {name: iou for name, iou in frames.items() if name not in ("read_in", "as it is")}
    highest = max(others.values(), default=0.0)
    return frames.get("as it is", 0.0), [name for name, iou in others.items() if iou > highest - 1e-9], highest


def _ready(report: Mapping[str, Any]) -> str:
    n_learn = f"{1 - report['groups_without_signal']:.0%}"
    return (
        f"ready to train: {report['readable']:.0%} of the answers are readable, and {n_learn} of groups have something "
        "to learn from"
    )


def told(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the figures as lines for the terminal."""
    yield f"{report['n_completions']} completions of {report['n_rows']} training rows by the model as it is"
    yield f"{'':14} {'mean':>7} {'spread within a group':>22} {'what the gold earns':>20}"
    for name, one in (("reward", report["reward"]), *report["terms"].items()):
        gold = f"{one['gold']:>20.3f}" if "gold" in one else ""
        yield f"{name:14} {one['mean']:7.3f} {one['within']:22.3f} {gold}".rstrip()
    yield f"groups without signal {report['groups_without_signal']:.0%}, of one text {report['groups_of_one_text']:.0%}"
    reasons = ", ".join(f"{reason} {n}" for reason, n in report["unreadable"].items())
    yield f"readable {report['readable']:.0%}" + (f" ({reasons})" if reasons else "")
    yield f"cut at the length limit {report['truncated']:.0%}, {report['n_tokens']:.0f} tokens on average"
    as_it_is, better, iou = _better_frames(report["frames"])
    if better:
        if_other = f"; if {' or '.join(better)}, {iou:.2f}" if iou > as_it_is else ""
        yield f"mean best IoU of a box, read in {report['frames']['read_in']}, {as_it_is:.2f}{if_other}"


def _gold_judged(experiment: RunContext, row: Row) -> dict[str, Any]:
    """What the row's gold earns, written as the model would write it, and whether a term on answers pays it."""
    from vrft.tasks.reward_terms import RewardOptions

    frame, task = experiment.frame_for_row(row), experiment.task
    judged = experiment.judge(task.parse(task.gold(row, frame), row, frame), row)
    looking = set(task.for_row(row).answer_terms(RewardOptions()))
    paid = [value for term, value in judged["terms"].items() if term in looking or "." in term]
    return {**judged, "answer_pays": max(paid, default=0.0) >= _PAID}


def _gold_terms(report: Mapping[str, Any]) -> str:
    return ", ".join(f"{term} {one['gold']:.2f}" for term, one in report["terms"].items())


def _best_iou(answer: Any, gold_xyxy: Sequence) -> float:
    boxes = [box for box, _ in boxes_of(answer)]
    return float(iou_matrix(boxes, gold_xyxy).max()) if boxes else 0.0


def _spread_of(groups: Sequence[Sequence[float]]) -> dict[str, float]:
    """The mean, and the mean of the standard deviations within groups."""
    groups = [group for group in groups if group]
    return {
        "mean": statistics.fmean(value for group in groups for value in group),
        "within": statistics.fmean(statistics.pstdev(group) for group in groups),
    }


def _spread(rows: Sequence[Row], n: int) -> list[Row]:
    """`n` distinct rows, evenly from all."""
    distinct = list({row["row_id"]: row for row in rows}.values())
    n = min(n, len(distinct))
    return [distinct[index * len(distinct) // n] for index in range(n)]
