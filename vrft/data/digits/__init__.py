"""The embedded data set: scenes of handwritten digits for each task, with a shifted domain and few-shot splits.

    detection            "seven" -> the boxes of all sevens (none in a tenth of the scenes)
    grounding            "the digit seven" -> its box, among three different digits
    reasoning_grounding  "two plus three minus one" -> the box of the four, among three different digits
    classification       one digit -> its name; with `arithmetic`, "the digit in the image plus three" -> a name

Splits share no glyph. Riddles and arithmetic are also split by expression: training, validation and `seen` rows have
expressions that pre-training has seen, `test` rows have unseen ones. `clean` repeats the test scenes in the domain of
pre-training. Test scenes depend only on the task and the domain, never on `k_shot` or the seed. Training rows are
nested: the 1-shot rows of a seed are the first of its 4-shot rows. Glyphs: Optical Recognition of Handwritten Digits
(Alpaydin & Kaynak, UCI, CC BY 4.0; see README.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import AfterValidator

from vrft.data.digits.riddles import riddles
from vrft.data.digits.scenes import DIGIT_NAMES, SIDE, Scene, draw_scene
from vrft.data.images import content_of
from vrft.data.options import AtLeastOne, DatasetOptions, read_options
from vrft.data.splits import Checked, write_manifest
from vrft.errors import UserError
from vrft.files import written_whole
from vrft.tasks import Task
from vrft.tasks.rows import Row

SMALL, LARGE = (18, 30), (20, 44)  # side of a glyph's square in pixels: with others in a scene, and alone
KIND_OF_TASK = {
    "detection": "detection",
    "grounding": "grounding",
    "reasoning_grounding": "riddle",
    "classification": "classification",
}
KINDS = (*KIND_OF_TASK.values(), "arithmetic")


def _share(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError("a share of at least 0 and below 1 is needed")
    return value


class DigitsOptions(DatasetOptions):
    """domain: `clean` or `dim` (35 % ink). k_shot: training rows for each of the ten classes. negatives: share of
    detection scenes without the asked digit, in [0, 1) (never a class's first training row). arithmetic: True makes
    classification ask for the result of an expression."""

    domain: Literal["clean", "dim"] = "dim"
    k_shot: AtLeastOne = 4
    n_validation: AtLeastOne = 200
    n_test: AtLeastOne = 300
    negatives: Annotated[float, AfterValidator(_share)] = 0.1
    arithmetic: bool = False


def build(options: dict, *, task: Task, out_dir: Path, seed: int) -> dict[str, list[Row]]:
    """Return the rows of every split, and write their images to `out_dir/images`, and a manifest.

    Keys: train, validation, test, and further test sets: `seen` (riddles and arithmetic), `clean` (unless that is the
    domain). Raises `UserError` for an unknown option, a value out of range, or a task without digits.
    """
    settings = read_options({key: value for key, value in options.items() if key != "frame"}, DigitsOptions)
    kind = _kind_for(task, settings)
    writer = _SceneWriter(kind, settings, Path(out_dir))
    has_expressions = kind in ("riddle", "arithmetic")
    fresh = "unseen" if has_expressions else "seen"
    splits = {
        "train": [
            writer.write_row("train", pool="few_shot", digit=digit, number=10 * shot + digit, stream=f"seed {seed}")
            for shot in range(settings.k_shot)
            for digit in range(10)
        ],
        "validation": writer.write_split("validation", settings.n_validation, pool="validation"),
        "test": writer.write_split("test", settings.n_test, expressions=fresh),
    }
    if has_expressions:
        splits["seen"] = writer.write_split("seen", settings.n_test)
    if settings.domain != "clean":
        splits["clean"] = writer.write_split("clean", settings.n_test, expressions=fresh, domain="clean", stream="test")
    checked = {
        split: [Checked(row, [writer.contents[path] for path in row["images"]]) for row in rows]
        for split, rows in splits.items()
    }
    write_manifest(Path(out_dir), checked, options=options, seed=seed, notes={}, n_skipped=0)
    return splits


def compose_row(
    kind: str,
    digit: int,
    *,
    pool: str,
    domain: str,
    rng: np.random.Generator,
    expressions: str = "seen",
    negatives: float = 0.1,
) -> tuple[Row, Scene]:
    """Return a row whose answer is `digit`, without row_id and images, and its scene.

    For arithmetic the scene shows the expression's first number instead. kind: one of `KINDS`.
    """
    row: Row = {"image_wh": [SIDE, SIDE]}
    name = DIGIT_NAMES[digit]
    if kind in ("classification", "arithmetic"):
        shown = digit
        row |= {
            "instruction": "Name the digit in the image.",
            "thought": f"The strokes look like {name}.",
            "gold": name,
        }
        if kind == "arithmetic":
            riddle = _pick(riddles(expressions)[digit], rng)
            shown = riddle.first
            row |= {"instruction": f"Name the digit in the image {riddle.operations}.", "thought": riddle.thought}
        return row, draw_scene((shown,), pool=pool, domain=domain, sizes=LARGE, rng=rng)
    if kind == "detection":
        digits = _detection_digits(digit, rng, negatives)
        thought = f"I look for each {name}." if digit in digits else f"There is no {name}."
        row |= {"category": name, "thought": thought}
    elif kind == "grounding":
        digits = (digit, *_others((digit,), 2, rng))
        row |= {"phrase": f"the digit {name}", "thought": f"I look for the {name}."}
    else:
        riddle = _pick(riddles(expressions)[digit], rng)
        digits = (digit, *_riddle_distractors(riddle, rng))
        row |= {"phrase": riddle.phrase, "thought": riddle.thought}
    scene = draw_scene(digits, pool=pool, domain=domain, sizes=SMALL, rng=rng)
    boxes = list(zip(digits, scene.boxes_xyxy.tolist(), strict=True))
    asked = [xyxy for shown, xyxy in boxes if shown == digit]
    others = [xyxy for shown, xyxy in boxes if shown != digit]
    # From left to right: among several right orders a model could only guess.
    row |= {"gold": sorted(asked) if kind == "detection" else asked[0], "distractors": others}
    return row, scene


def _pick(choices: tuple, rng: np.random.Generator):
    return choices[int(rng.integers(len(choices)))]


def _others(taken: tuple[int, ...], count: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Return `count` different digits, none of them in `taken`."""
    free = [digit for digit in range(10) if digit not in taken]
    return tuple(int(digit) for digit in rng.permutation(free)[:count])


def _detection_digits(asked: int, rng: np.random.Generator, negatives: float) -> tuple[int, ...]:
    """Return one to three digits: the asked one and others (a fifth of them the asked one again), or only others."""
    is_negative = rng.random() < negatives
    digits = [] if is_negative else [asked]
    for _ in range(int(rng.integers(1, 4)) - len(digits)):
        is_again = rng.random() < 0.2 and not is_negative
        digits.append(asked if is_again else _others((asked,), 1, rng)[0])
    return tuple(digits)


def _riddle_distractors(riddle, rng: np.random.Generator) -> tuple[int, ...]:
    """Return two digits that differ from the answer; in half of the scenes one is an operand or a partial result."""
    answer = riddle.results[-1]
    mentioned = {riddle.first, *(operand for _, operand in riddle.steps), *riddle.results} - {answer}
    lure = (_pick(tuple(sorted(mentioned)), rng),) if mentioned and rng.random() < 0.5 else ()
    return (*lure, *_others((answer, *lure), 2 - len(lure), rng))


@dataclass(frozen=True)
class _SceneWriter:
    """contents: of each image that was written, by its path."""

    kind: str
    settings: DigitsOptions
    out_dir: Path
    contents: dict[str, str] = field(default_factory=dict)

    def write_split(
        self,
        split: str,
        n_rows: int,
        *,
        pool: str = "test",
        expressions: str = "seen",
        domain: str | None = None,
        stream: str | None = None,
    ) -> list[Row]:
        """Return `n_rows` rows that cycle through the ten digits. stream: seeds the random numbers; None: the split."""
        return [
            self.write_row(
                split,
                pool=pool,
                digit=number % 10,
                number=number,
                stream=stream or split,
                expressions=expressions,
                domain=domain,
            )
            for number in range(n_rows)
        ]

    def write_row(
        self,
        split: str,
        *,
        pool: str,
        digit: int,
        number: int,
        stream: str,
        expressions: str = "seen",
        domain: str | None = None,
    ) -> Row:
        rng = np.random.default_rng(list(f"{stream}, {self.kind}, {number}".encode()))
        row, scene = compose_row(
            self.kind,
            digit,
            pool=pool,
            domain=domain or self.settings.domain,
            rng=rng,
            expressions=expressions,
            negatives=0.0 if split == "train" and number < 10 else self.settings.negatives,
        )
        row_id = f"{split}-{number:04d}"
        path = self.out_dir / "images" / f"{row_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(scene.pixels)
        with written_whole(path) as file:
            image.save(file, "PNG")
        self.contents[f"images/{row_id}.png"] = content_of(image.convert("RGB"))
        return {"row_id": row_id, "images": [f"images/{row_id}.png"]} | row


def _kind_for(task: Task, settings: DigitsOptions) -> str:
    if task.name not in KIND_OF_TASK:
        raise UserError(f"task={task.name} has no rows in dataset=digits; tasks with digits: {', '.join(KIND_OF_TASK)}")
    if settings.arithmetic and task.name != "classification":
        raise UserError(f"dataset.arithmetic is true, and task={task.name}; it works only with task=classification")
    return "arithmetic" if settings.arithmetic else KIND_OF_TASK[task.name]
