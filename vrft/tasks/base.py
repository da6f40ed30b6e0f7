"""The base class of tasks: how a question is built, and how a completion is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vrft.tasks.answers import normal_name, read_answer_block
from vrft.tasks.boxes import Frame
from vrft.tasks.reward_terms import RewardOptions, well_formed, within_length, without_repetition
from vrft.tasks.rows import Row

THINKING = ("think", "prefilled", "none")
THOUGHTS = ("gold", "empty", "none")

_HOW_TO_ANSWER = {
    "think": "Think first between <think> and </think>. Then answer between <answer> and </answer>, in the form",
    "none": "Answer at once between <answer> and </answer>, in the form",
}


@dataclass(frozen=True)
class Parsed:
    """A parsed completion.

    text: the completion, with the `<think>` that a prefilled prompt ends with.
    answer: in the task's own form, boxes and points in pixels of the original image; None if unreadable.
    reason: why it is unreadable, one of `vrft.tasks.answers.REASONS`; None if it is readable.
    is_truncated: True if the length limit cut the completion before its end token.
    """

    text: str
    answer: Any | None
    reason: str | None
    is_truncated: bool = False


AnswerTerm = Callable[[Any, Row], float]
Term = Callable[[Parsed, Row], float]
Metric = Callable[[Parsed, Row], float | None]


@dataclass(frozen=True)
class Task(ABC):
    """A kind of question whose answer a program can check.

    thinking: `think` asks for a thought in <think> tags before the answer. `none` asks for the answer alone.
        `prefilled` is `think` with a prompt that already ends with <think>, as in some chat templates.
    """

    thinking: str = "think"

    name: ClassVar[str]
    answer_kind: ClassVar[str] = ""
    """`boxes` (of a `BoxListTask`), `box`, `point`, `count` or `name`; audit, pictures and dataset builders depend on
    it. "" for any other kind."""
    protocol_scorers: ClassVar[tuple[str, ...]] = ("rows",)
    """The scorers of `vrft/evaluate/protocols.py` that fit this task; the first is the default."""
    asked_column: ClassVar[str]
    """The column that names what a row asks for."""
    examples: ClassVar[tuple[Row, ...]]
    """Example rows without images, one for each kind of gold. The contract tests and the audit use them."""

    def __post_init__(self) -> None:
        if self.thinking not in THINKING:
            raise ValueError(f"thinking is {self.thinking!r}; known: {', '.join(THINKING)}")

    @abstractmethod
    def check(self, row: Row) -> None:
        """Raise ValueError with the reason if the row lacks a column, or its gold cannot be right."""

    @abstractmethod
    def ask(self, row: Row, frame: Frame) -> str:
        """The first part of the question: what to find, and in which coordinates."""

    @abstractmethod
    def answer_form(self, frame: Frame) -> str:
        """The form of an answer, as the question shows it. It must not be a readable answer itself."""

    @abstractmethod
    def write(self, gold: Any, frame: Frame) -> str:
        """The gold as text inside an answer block."""

    @abstractmethod
    def read(self, block: str, frame: Frame) -> tuple[Any | None, str | None]:
        """`(answer, None)` or `(None, reason)`. block: the text inside an answer block."""

    @abstractmethod
    def answer_terms(self, options: RewardOptions) -> dict[str, AnswerTerm]:
        """The terms of an answer that was read, by name: functions of `measure`'s value and the row to [0, 1]."""

    @property
    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """The metrics of one row, by name; results are compared by the first. None means "does not apply"."""

    @property
    def primary_metrics(self) -> tuple[str, ...]:
        """The metrics that tables and reports show first."""
        return tuple(self.metrics)[:2]

    @property
    def has_thought(self) -> bool:
        """True if a completion holds a thought before its answer."""
        return self.thinking != "none"

    @property
    def is_prefilled(self) -> bool:
        """True if the prompt ends with the <think> of the completion."""
        return self.thinking == "prefilled"

    @property
    def term_names(self) -> tuple[str, ...]:
        """The names of all reward terms."""
        return tuple(self.terms(RewardOptions()))

    def asked(self, text: str) -> Row:
        """The columns of a row that asks for `text`."""
        return {self.asked_column: text}

    def for_row(self, row: Row) -> Task:
        """The task of this row. It is this task, except in a mixture."""
        return self

    def terms(self, options: RewardOptions) -> dict[str, Term]:
        """All reward terms by name: functions of a parsed completion and its row, each in [0, 1].

        All but `format` are 0 for an unreadable answer, so that an empty completion earns nothing. `repetition` ignores
        the answer, because lists of boxes repeat their keys.
        """

        def if_read(term: AnswerTerm) -> Term:
            def value(parsed: Parsed, row: Row) -> float:
                if parsed.answer is None:
                    return 0.0
                return float(term(self.measure(parsed.answer, row, options), row))

            return value

        def length(parsed: Parsed, row: Row) -> float:
            return 0.0 if parsed.answer is None else within_length(parsed.text, options.length_limit)

        def repetition(parsed: Parsed, row: Row) -> float:
            return 0.0 if parsed.answer is None else without_repetition(parsed.text.rpartition("<answer>")[0])

        answer_terms = {name: if_read(term) for name, term in self.answer_terms(options).items()}
        return {**answer_terms, "format": self.format_term, "length": length, "repetition": repetition}

    def measure(self, answer: Any, row: Row, options: RewardOptions) -> Any:
        """What the answer terms of one completion share, computed once: the answer itself, unless a task says more."""
        return answer

    def question(self, row: Row, frame: Frame) -> str:
        """The text of the user message; a row's own `problem` is used verbatim."""
        if "problem" in row:
            return row["problem"]
        how = _HOW_TO_ANSWER["think" if self.has_thought else "none"]
        return f"{self.ask(row, frame)}\n{how} {self.answer_form(frame)}"

    def gold(self, row: Row, frame: Frame, thought: str = "gold") -> str:
        """The right completion, the target of supervised training.

        thought: `gold` (the row's own thought, empty if it has none), `empty` (empty think tags), `none` (no think
        tags). A task without thinking never writes think tags. A prefilled task always does, because the trainers cut
        off the part that the prompt contains.
        """
        if thought not in THOUGHTS:
            raise ValueError(f"thought is {thought!r}; known: {', '.join(THOUGHTS)}")
        answer = f"<answer>{self.write(row['gold'], frame)}</answer>"
        if not self.has_thought or (thought == "none" and not self.is_prefilled):
            return answer
        return f"<think>{row.get('thought', '') if thought == 'gold' else ''}</think>{answer}"

    def parse(self, text: str, row: Row, frame: Frame, *, is_truncated: bool = False) -> Parsed:
        """The parsed completion, the same in training and evaluation; never raises, whatever the text is."""
        if self.is_prefilled:
            text = f"<think>{text}"
        block, reason = read_answer_block(text)
        answer = None
        if block is not None:
            answer, reason = self.read(block, frame)
        return Parsed(text, answer, reason, is_truncated)

    def gold_of(self, solution: str, frame: Frame) -> Any:
        """The gold in the text of a dataset's `solution`, which may have answer tags.

        Boxes are not clipped, so that `check` finds those outside of the image. Raises ValueError if the text is
        unreadable or truncated.
        """
        has_tags = "<answer>" in solution or "<think>" in solution
        block, reason = read_answer_block(solution) if has_tags else (solution.strip(), "empty_answer")
        gold, reason = self.read_gold(block, frame) if block else (None, reason)
        is_open = solution.count("<answer>") != solution.count("</answer>")
        if is_open or (isinstance(gold, list) and any(block.count(a) != block.count(b) for a, b in ("{}", "[]", "()"))):
            gold, reason = None, "cut"
        if gold is None:
            right = f"<answer>{self.solution_form(frame)}</answer>"
            raise ValueError(f"solution {solution[:200]!r} cannot be read ({reason}); right: {right}")
        return gold

    def solution_form(self, frame: Frame) -> str:
        """The form of a dataset's `solution`."""
        return self.answer_form(frame)

    def read_gold(self, block: str, frame: Frame) -> tuple[Any | None, str | None]:
        """As `read`, but the answer has the form of a row's gold."""
        return self.read(block, frame)

    def confidence_gap(self, answer: Any, row: Row) -> float | None:
        """Mean confidence of the boxes minus their mean IoU with the gold, in [-1, 1]; None without confidences."""
        return None

    def format_term(self, parsed: Parsed, row: Row) -> float:
        """1.0 if the whole completion has the required form, else 0.0."""
        return well_formed(parsed.text, has_thought=self.has_thought)


def coordinate_words(frame: Frame) -> str:
    """The words for the frame in a question."""
    width, height = (round(extent) for extent in frame.extent_wh)
    return {
        "norm1000": "integers from 0 to 1000",
        "seen_pixels": f"pixels of the image, {width} wide and {height} high",
        "pixels": f"pixels of the image, {width} wide and {height} high",
        "norm1": "fractions from 0 to 1",
    }[frame.name]


def require_texts(row: Row, column: str) -> list[str]:
    """The row's list of texts in that column. Raises ValueError if it is no list, is empty, or has an empty text."""
    texts = require(row, column, list)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"column {column!r} is {texts!r}; a list of texts is needed")
    return texts


def require_distinct(names: list[str], column: str) -> None:
    """Raise ValueError if two names are equal to the reward terms (see `normal_name`)."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(normal_name(name), name)) != name:
            raise ValueError(f"column {column!r} has {other!r} and {name!r}, which count as the same name; rename one")


def require_own_aliases(aliases: Mapping[str, list[str]], names: Sequence[str]) -> None:
    """Raise ValueError if an alias of one name is another name that is asked for, or an alias of another one."""
    owners = {normal_name(name): name for name in names}
    for name, alias in ((name, alias) for name, listed in aliases.items() for alias in listed):
        if normal_name(other := owners.setdefault(normal_name(alias), name)) != normal_name(name):
            raise ValueError(
                f"the alias {alias!r} of {name!r} is a name of {other!r} too, so that a right answer could "
                "count as wrong; take it out of column 'aliases'"
            )


def given(row: Row, column: str) -> Any:
    """The row's value in that column. Raises ValueError if it is missing or null."""
    if row.get(column) is None:
        there = ", ".join(name for name in row if name not in ("row_id", "image_wh", "seen_wh"))
        raise ValueError(f"column {column!r} is missing; the row has {there or 'none'}")
    return row[column]


def require(row: Row, column: str, kind: type) -> Any:
    """As `given`. Raises ValueError also if the value is of another type, or an empty text."""
    value = given(row, column)
    if not isinstance(value, kind) or value == "":
        raise ValueError(f"column {column!r} is {value!r}; a {kind.__name__} is needed")
    return value
