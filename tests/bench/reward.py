"""How long reading and judging take, as two tables; `tests/unit/tasks/test_reward_growth.py` asserts.

    python tests/bench/reward.py

The first table: completions of 16,000 characters (about 4,000 tokens: a long thought and a right answer), read and
judged by the preset `strict`; milliseconds of wall time a completion, median and 99th percentile of 2,000 calls. The
second: milliseconds of CPU time to read and judge one answer of 0.5 MB and of 1 MB for each attack shape of that test,
one run each. About a minute on one core; set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import runpy
import time
from pathlib import Path

import numpy as np
import yaml

from vrft.tasks import load_task, task_names
from vrft.tasks.box_list import Detection, write_boxes
from vrft.tasks.reward import RewardFunction

ROOT = Path(__file__).parents[2]
GROWTH = runpy.run_path(str(ROOT / "tests" / "unit" / "tasks" / "test_reward_growth.py"))  # its attack shapes
FRAME, SHAPES, TASKS, reader = (GROWTH[name] for name in ("FRAME", "SHAPES", "TASKS", "reader"))

N_CHARACTERS, N_CALLS, N_WARM = 16_000, 2_000, 50
WORDS = ["the", "red", "one", "by", "door", "left", "of", "a", "tall", "lamp", "and", "near", "its", "shadow"]


def main() -> None:
    reward = yaml.safe_load((ROOT / "conf" / "reward" / "strict.yaml").read_text(encoding="utf-8"))
    print(f"parse + RewardFunction(strict), completions of {N_CHARACTERS:,} characters, {N_CALLS:,} calls")
    print(f"{'task':<28}{'answer':<26}{'median ms':>10}{'p99 ms':>10}{'total':>8}")
    for label, options, n_pred, n_gold in cases():
        task = load_task(label, **options)
        row, text = completion(task, n_pred, n_gold)
        judge = RewardFunction(task, reward)
        times, total = call_ms(
            lambda task=task, row=row, text=text, judge=judge: judge(task.parse(text, row, FRAME), row)
        )
        answer = (f"{n_pred} boxes, {n_gold} golds" if n_gold else "right") + (", labels" if options else "")
        print(f"{label:<28}{answer:<26}{np.median(times):>10.3f}{np.percentile(times, 99):>10.3f}{total:>8.3f}")

    print("\nparse + all terms, CPU ms for an answer of 0.5 MB / of 1 MB")
    print(f"{'shape':<36}" + "".join(f"{label.replace('detection, ', ''):>16}" for label in TASKS))
    judges = [reader(label)[0] for label in TASKS]
    for name, shape in SHAPES.items():
        cells = [" / ".join(f"{attack_ms(judge, shape(n)):.0f}" for n in (500_000, 1_000_000)) for judge in judges]
        print(f"{name:<36}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def cases() -> list[tuple[str, dict, int, int]]:
    """`(task, options, n_pred, n_gold)`; the counts are 0 where an answer is no list of boxes."""
    found = []
    for name in task_names():
        if load_task(name).answer_kind != "boxes":
            found.append((name, {}, 0, 0))
            continue
        found += [(name, options, *counts) for options in ({}, {"labelled": True}) for counts in ((100, 20), (10, 5))]
    return found


def completion(task, n_pred: int, n_gold: int) -> tuple[dict, str]:
    """A row, and a completion of `N_CHARACTERS` characters for it; of the boxes the first `n_gold` are near a gold."""
    rng = np.random.default_rng(0)
    row = {"row_id": "r0", "images": ["a.png"], "image_wh": list(FRAME.image_wh), **task.examples[0]}
    answer = task.write(row["gold"], FRAME)
    if n_pred:
        corners = rng.uniform(0, 400, (n_pred, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(20, 80, (n_pred, 2))], axis=1)
        names = row.get("categories", [""])
        labels = [names[i % len(names)] for i in range(n_pred)]
        near = boxes[:n_gold] + rng.uniform(-2, 2, (n_gold, 4))
        golds = np.clip(near, 0, 480).tolist()
        row["gold"] = (
            [{"label": label, "xyxy": xyxy} for label, xyxy in zip(labels, golds, strict=False)]
            if task.labelled
            else golds
        )
        confidences = rng.uniform(0, 1, n_pred)
        answer = write_boxes([Detection(*one) for one in zip(boxes.tolist(), confidences, labels, strict=True)], FRAME)
    task.check(row)
    around = f"<think></think><answer>{answer}</answer>"
    thought = " ".join(rng.choice(WORDS, N_CHARACTERS // 2))[: N_CHARACTERS - len(around)]
    text = around.replace("<think>", f"<think>{thought}")
    assert len(text) == N_CHARACTERS
    assert task.parse(text, row, FRAME).answer is not None
    return row, text


def call_ms(call) -> tuple[np.ndarray, float]:
    """Milliseconds of each of `N_CALLS` calls, and the reward they give."""
    times = []
    for _ in range(N_WARM + N_CALLS):
        started = time.perf_counter()
        judged = call()
        times.append(1000 * (time.perf_counter() - started))
    return np.array(times[N_WARM:]), judged["total"]


def attack_ms(judge, attack: str) -> float:
    text = f"<think></think><answer>{attack}</answer>"
    started = time.process_time()
    judge(text)
    return 1000 * (time.process_time() - started)


if __name__ == "__main__":
    main()
