"""`vrft audit`: can the reward be gamed? What every known trick would earn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vrft.cli.reward import _free_file, _read_cases
from vrft.config.verb_schema import AuditConfig
from vrft.files import write_text_atomically
from vrft.tasks import load_task
from vrft.tasks.audit import audit
from vrft.tasks.reward import RewardFunction
from vrft.tasks.rows import frame_of
from vrft.terminal import progress_bar


def run(config: AuditConfig) -> int:
    """The verb `audit`: print what each attack would earn; 1 if one succeeds, else 0.

    Raises `UserError` for rows that cannot be used.
    """
    task = load_task(**config.task, trust_code=config.trust_code)
    frame, path, out = config.frame, config.rows, config.out and _free_file(Path(config.out))
    judge = RewardFunction(task, config.reward.plain(), trust_code=config.trust_code, root=path and Path(path).parent)
    rows = [row for _, row in _read_cases(Path(path), task, frame=frame, completion="")] if path else []
    outcomes = []
    for name, one in getattr(task, "tasks", {task.name: task}).items():
        if path:
            own = [row for row in rows if row.get("task", name) == name]
        else:
            own = [{"row_id": f"example-{i}", "image_wh": [640, 480], **row} for i, row in enumerate(one.examples, 1)]
        own = [row | {"task": name} for row in own]
        found = audit(one, own, judge=judge, frame_for_row=lambda row: frame_of(row, frame)) if own else []
        known = progress_bar(found, desc=f"audit {name}", unit="attack", leave=False)
        outcomes += [{"task": name, **outcome} for outcome in known]
    print(_audit_table(outcomes, reward=config.reward.name, source=path or "the tasks' own examples"))
    if out:
        write_text_atomically(out, json.dumps(outcomes, indent=2) + "\n")
        print(f"outcomes: {out}")
    return int(any(outcome["succeeds"] for outcome in outcomes))


def _audit_table(outcomes: Sequence[Mapping], *, reward: str, source: str) -> str:
    lines = [f"{'task':26}{'attack':26}{'earns':>8}{'honest':>8}   on rows       what it does"]
    for one in outcomes:
        mark = "!" if one["succeeds"] else " "
        better = f"{mark} {one['n_better']} of {one['n_rows']}"
        earns = f"{one['earns']:8.3f}{one['honest']:8.3f}"
        lines.append(f"{one['task']:26}{one['attack']:26}{earns} {better:15} {one['what']}")
    n_successes = sum(one["succeeds"] for one in outcomes)
    lines.append(
        f"reward={reward}, on {source}: {n_successes} of {len(outcomes)} attacks succeed"
        + (" (marked !): a model will learn them" if n_successes else "")
    )
    return "\n".join(lines)
