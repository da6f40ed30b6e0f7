"""Completions judged by the published method's own reward functions, beside ours.

The columns named `__no_math_verify` hold what that method intends: without the mathematics verifier that it asks first.
"""

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from vrft.tasks import load_task
from vrft.tasks.boxes import Frame
from vrft.tasks.reward_terms import RewardOptions

CASES = Path(__file__).parents[3] / "shared" / "data" / "visual_rft" / "reward_cases.jsonl.gz"
FRAME = Frame("norm1000", (1000, 1000), (1000, 1000))
TASKS = {"det": "detection", "lisa": "reasoning_grounding", "cls": "classification"}
PUBLISHED = {  # our term: their column, and how many times ours it is
    "det": {
        "iou": ("accuracy_reward_iou__no_math_verify", 1),
        "confidence": ("accuracy_reward_confidence__no_math_verify", 1),
        "format": ("format_reward", 1),
    },
    "lisa": {"giou": ("accuracy_reward__no_math_verify", 2), "format": ("format_reward", 1)},
    "cls": {"accuracy": ("accuracy_reward__no_math_verify", 1), "format": ("format_reward", 1)},
}
INTENDED = {
    "det": (
        "perfect jitter jitter_dq missing_some many_extra dup_exact nested_brackets float_coords no_think suffix_text"
    ),
    "cls": "exact case underscore_space wrong",
    "lisa": "exact jitter disjoint",
}
README = Path(__file__).parents[2] / "conf" / "reward" / "README.md"


def on_purpose() -> dict[tuple[str, str], str]:
    """The kinds that differ on purpose, as the table of `conf/reward/README.md` lists them, and why."""
    table = README.read_text(encoding="utf-8").partition("| on purpose |")[2].partition("\n\n")[0]
    kinds = {}
    for line in table.splitlines()[2:]:
        what, listed, _ = (cell.strip() for cell in line.strip("|").split("|"))
        for part in listed.split(";"):
            task, _, names = part.strip().partition(": ")
            kinds |= {(task, name.strip()): what for name in names.split(",")}
    return kinds


@pytest.fixture(scope="module")
def judged():
    """`[(task and kind, our terms, their values on our scale)]` of every case."""
    if not CASES.is_file():
        pytest.skip(f"{CASES} is not there: it holds the published reward functions' outputs, and is not part of vrft")
    tasks = {key: load_task(name) for key, name in TASKS.items()}
    results = []
    for line in gzip.decompress(CASES.read_bytes()).splitlines():
        case = json.loads(line)
        task = tasks[case["task"]]
        row = {"image_wh": [1000, 1000], "gold": task.gold_of(case["solution"], FRAME)}
        parsed = task.parse(case["completion"], row, FRAME)
        ours = {name: term(parsed, row) for name, term in task.terms(RewardOptions()).items()}
        columns = PUBLISHED[case["task"]]
        theirs = {name: float(case["seed"][column]) / times for name, (column, times) in columns.items()}
        results.append(((case["task"], case["kind"]), ours, theirs))
    return results


def test_every_case_earns_a_number_between_0_and_1(judged):
    assert len(judged) == 2994
    for _, ours, _ in judged:
        assert all(math.isfinite(value) and 0 <= value <= 1 for value in ours.values())


def test_only_the_kinds_that_the_readme_lists_differ(judged):
    n_cases = Counter(kind for kind, _, _ in judged)
    differing = {
        kind for kind, ours, theirs in judged if any(not abs(ours[name] - theirs[name]) < 1e-9 for name in theirs)
    }
    listed = on_purpose()
    assert len(listed) >= 50
    assert differing == set(listed)
    intended = {(task, kind) for task, kinds in INTENDED.items() for kind in kinds.split()}
    assert intended <= set(n_cases)
    assert not intended & differing
    assert sum(n for kind, n in n_cases.items() if kind not in differing) >= 1480
