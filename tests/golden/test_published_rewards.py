"""Completions judged by the published method's own reward functions, beside ours.

The columns named `__no_math_verify` hold what that method intends: without the mathematics verifier that it asks first.
"""

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from vrft.boxes import Frame
from vrft.rewards import RewardOptions
from vrft.tasks import load_task

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
ON_PURPOSE = {
    "the right answer in a form that the original does not read, or cut by the length limit": {
        ("det", "apostrophe_in_value"),
        ("det", "comment_json"),
        ("det", "conf_string"),
        ("det", "ellipsis_copy"),
        ("det", "flat_coords"),
        ("det", "list_of_lists"),
        ("det", "lowercase_keys"),
        ("det", "md_fence"),
        ("det", "missing_conf"),
        ("det", "missing_conf_one"),
        ("det", "mutated"),
        ("det", "newlines_in_answer"),
        ("det", "qwen25_bbox2d"),
        ("det", "single_obj_not_list"),
        ("det", "text_after"),
        ("det", "text_before"),
        ("det", "trailing_comma"),
        ("det", "truncated"),
        ("det", "truncated_in_answer"),
        ("det", "zero_width"),
        ("lisa", "float"),
        ("lisa", "json_style"),
        ("lisa", "mutated"),
    },
    "a substring, an empty name, a list of classes or a sentence is not the class": {
        ("cls", "empty"),
        ("cls", "empty_answer"),
        ("cls", "list_all_classes"),
        ("cls", "list_half"),
        ("cls", "mutated"),
        ("cls", "one_char"),
        ("cls", "prefix_word"),
        ("cls", "punct"),
        ("cls", "verbose"),
    },
    "hyphens and blanks are one": {("cls", "hyphen_variant")},
    "an answer stands in answer tags, once, and after the thought": {
        ("cls", "no_tags"),
        ("cls", "only_think"),
        ("cls", "two_answers"),
        ("det", "answer_in_think"),
        ("det", "bare_json"),
        ("det", "nested_tags"),
        ("det", "two_answers"),
        ("lisa", "no_tags"),
    },
    "NaN, infinite, huge or boolean numbers spoil the answer": {
        ("det", "conf_bool"),
        ("det", "huge_int_pos"),
        ("det", "nan_inf_conf"),
        ("det", "nan_inf_pos"),
        ("lisa", "huge"),
    },
    "each confidence is cut to [0, 1], not their mean": {
        ("det", "conf_gt1"),
        ("det", "conf_neg"),
        ("det", "conf_neg_on_fp_only"),
    },
    "boxes are cut to the image": {("det", "over_1000"), ("lisa", "over_1000")},
    "two boxes are no answer, and swapped or equal corners no box": {
        ("lisa", "inverted"),
        ("lisa", "two_boxes"),
        ("lisa", "two_boxes_same"),
        ("lisa", "zero_area"),
    },
    "a right 'No Objects' is paid, and a wrong box pays its confidence": {
        ("det", "boxes_gt_none"),
        ("det", "no_objects_gt_none"),
    },
    "blanks after the answer are no fault of form": {("det", "suffix_text")},
    "digits are ASCII": {("lisa", "unicode_digits")},
}


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


def test_only_the_kinds_that_should_differ_do(judged):
    n_cases = Counter(kind for kind, _, _ in judged)
    differing = {
        kind for kind, ours, theirs in judged if any(not abs(ours[name] - theirs[name]) < 1e-9 for name in theirs)
    }
    expected = set().union(*ON_PURPOSE.values())
    assert expected <= set(n_cases)
    assert differing - expected == set()
    same = set(n_cases) - differing
    assert {
        ("det", "perfect"),
        ("det", "jitter"),
        ("det", "missing_some"),
        ("lisa", "jitter"),
        ("cls", "exact"),
    } <= same
    assert sum(n_cases[kind] for kind in same) >= 1500
