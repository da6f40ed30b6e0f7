"""The confusion of a classification run: a matrix for few classes, the most confused pairs for many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vrft.report.run_files import RunFiles
from vrft.tasks.answers import normal_name
from vrft.tasks.rows import Row

OTHER, UNREADABLE = "another name", "unreadable"
_MOST_CLASSES = 16  # in a matrix; with more classes, pairs are listed
_N_PAIRS = 25


@dataclass(frozen=True)
class Matrix:
    """One side's confusion matrix. counts: rows as in `Confusion.classes`, columns as in `Confusion.answers`."""

    title: str
    counts: list[list[int]]


@dataclass(frozen=True)
class Pair:
    """An answered class in place of the gold class. n_gold: questions of the gold class. counts: on each side."""

    gold: str
    answer: str
    n_gold: int
    counts: list[int]


@dataclass(frozen=True)
class Confusion:
    """classes: the classes that are gold in some row. answers: the same, then `OTHER` and `UNREADABLE`.

    matrices: one for each side; empty with too many classes.
    pairs: the most confused pairs of the last side first; empty if there are matrices. n_pairs: of all pairs.
    n_other, n_unreadable: answers on each side.
    """

    sides: list[str]
    classes: list[str]
    answers: list[str]
    matrices: list[Matrix]
    pairs: list[Pair]
    n_pairs: int
    n_other: list[int]
    n_unreadable: list[int]


def confusion(run: RunFiles, *, split: str = "test") -> Confusion | None:
    """The confusion on a test set; None if the run does not classify, or the test set was not evaluated."""
    rows, kinds = run.rows(split), run.judged_kinds(split)
    if run.config["protocol"]["scorer"] != "classification" or not rows or not kinds:
        return None
    known = class_names(rows)
    classes = sorted(set(known.values()))
    counts = [count_answers(rows, run.scores(kind, split), known) for kind in kinds]
    titles = run.side_titles(split)
    answers = [*classes, OTHER, UNREADABLE]
    is_small = len(classes) <= _MOST_CLASSES
    tables = [[[one[gold, answer] for answer in answers] for gold in classes] for one in counts] if is_small else []
    pairs = [] if is_small else most_confused(counts)
    return Confusion(
        sides=titles,
        classes=classes,
        answers=answers,
        matrices=[Matrix(title, table) for title, table in zip(titles, tables, strict=is_small)],
        pairs=pairs[:_N_PAIRS],
        n_pairs=len(pairs),
        n_other=[sum(n for (_, answer), n in one.items() if answer == OTHER) for one in counts],
        n_unreadable=[sum(n for (_, answer), n in one.items() if answer == UNREADABLE) for one in counts],
    )


def class_names(rows: Sequence[Row]) -> dict[str, str]:
    """`{normal name: class}` of all golds and their aliases; a class has the name of its first row.

    >>> class_names([{"gold": "Maine Coon", "aliases": ["coon"]}, {"gold": "maine_coon"}])
    {'mainecoon': 'Maine Coon', 'coon': 'Maine Coon'}
    """
    known: dict[str, str] = {}
    for row in rows:
        known.setdefault(normal_name(row["gold"]), row["gold"])
    for row in rows:
        for alias in row.get("aliases", ()):
            known.setdefault(normal_name(alias), known[normal_name(row["gold"])])
    return known


def count_answers(rows: Sequence[Row], scored: Sequence[dict], known: dict[str, str]) -> Counter:
    """The number of each answer for each gold class, `{(class, answer): n}`.

    known: as returned by `class_names`. An answer is a class, `OTHER` or `UNREADABLE`; the metric `accuracy` decides
    whether it is right.
    """
    counts: Counter = Counter()
    for row, one in zip(rows, scored, strict=True):
        gold = known[normal_name(row["gold"])]
        if one["answer"] is None:
            answer = UNREADABLE
        elif one["metrics"]["accuracy"] == 1:
            answer = gold
        else:
            answer = known.get(normal_name(one["answer"]), OTHER)
            answer = OTHER if answer == gold else answer  # an alias that is right only for other rows of the class
        counts[gold, answer] += 1
    return counts


def most_confused(counts: Sequence[Counter]) -> list[Pair]:
    """The pairs of different classes, sorted by count on the last side, largest first, then on the sides before."""
    n_gold: Counter = Counter()
    for (gold, _), n in counts[-1].items():
        n_gold[gold] += n
    keys = {key for one in counts for key in one if key[0] != key[1] and key[1] not in (OTHER, UNREADABLE)}
    pairs = [Pair(gold, answer, n_gold[gold], [one[gold, answer] for one in counts]) for gold, answer in keys]
    return sorted(pairs, key=lambda pair: ([-n for n in reversed(pair.counts)], pair.gold, pair.answer))
