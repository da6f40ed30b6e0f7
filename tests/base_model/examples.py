"""Pre-training examples of the tiny model: every task on clean scenes, with and without thoughts, and where to look.

All text comes from the tasks (`Task.question`, `Task.gold`); a tenth of the questions are put in other words.
Legend: `B` examples, `T` tokens, 16 cells = the image tokens of a 56 x 56 picture, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from base_model.model import COORDINATES, END, MERGE, PATCH, single_token_ids
from transformers import Qwen2VLProcessor

from vrft.data.digits import KIND_OF_TASK, compose_row
from vrft.data.digits.scenes import DIGIT_NAMES, SIDE, Scene
from vrft.models.families import FAMILIES, frame_for
from vrft.models.generate import render_prompt
from vrft.tasks import Task, load_task
from vrft.tasks.rows import Row

MIXTURE = {"detection": 0.2, "classification": 0.14, "grounding": 0.2, "riddle": 0.26, "arithmetic": 0.2}
TASK_OF_KIND = {kind: task for task, kind in KIND_OF_TASK.items()} | {"arithmetic": "classification"}
THINKING_SHARES = {"think": 0.8, "empty": 0.1, "none": 0.1}
"""Gold thought · asked to think, with an empty thought · not asked to think. Riddles without a thought are out of reach
(chance 1/3); they teach the form, so that a forced empty thought is followed by a box."""
ONE_STEP_SHARE = 0.25
NEGATIVES = 0.25  # at 0.1, and detection a share of 0.12, the model never answered No Objects
REWORDED_SHARE = 0.1
CELL = PATCH * MERGE
N_CELLS = (SIDE // CELL) ** 2
BACKGROUND = len(DIGIT_NAMES)
FRAME = frame_for(FAMILIES["tiny"], (SIDE, SIDE), min_pixels=SIDE**2, max_pixels=SIDE**2)

REWORDINGS = {
    "detection": (
        "Where is each {category} in the image? Box all of them, or answer No Objects.",
        "Detect all instances of {category}. Answer No Objects if nothing is found.",
        "Box every {category} you can see.",
    ),
    "grounding": (
        "Where is {phrase}?",
        "Point out {phrase} with a box.",
        "Locate {phrase} in the image.",
    ),
    "riddle": (
        "Which digit is {phrase}? Box it.",
        "Locate the result of {phrase} in the image.",
        "Find the digit that equals {phrase}.",
    ),
    "classification": (
        "What digit is this?",
        "Which digit does the image show?",
        "Name the class of the object in the image.",
    ),
    "arithmetic": (
        "What is the digit in the image {operations}?",
        "Take the digit in the image {operations}. What is the result?",
    ),
}
"""Other ways to ask; what follows the first line of a question (how to answer) stays."""


@dataclass(frozen=True)
class Example:
    """One question with its completion, and what the guiding losses need.

    token_cells: (T, 16) bool, the cells that a digit's name at that position speaks of; target_cells: the same for
    positions that predict a coordinate; target_names: (T, T) positions of the target's name, for positions that
    predict a coordinate.
    """

    ids: list[int]
    completion_start: int
    weights: list[float]
    scene: Scene
    cell_classes: np.ndarray
    token_cells: np.ndarray
    target_cells: np.ndarray
    target_names: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Right-padded examples. ids (B, T); weights (B, T) of predicting the *next* token, each row sums to 1; pixels
    (B, 56, 56, 3) uint8; cell_classes (B, 16); masks as in `Example`, (B, T, 16) and (B, T, T)."""

    ids: torch.Tensor
    weights: torch.Tensor
    pixels: torch.Tensor
    cell_classes: torch.Tensor
    token_cells: torch.Tensor
    target_cells: torch.Tensor
    target_names: torch.Tensor
    image_start: int


class ExampleMaker:
    """Draws examples; knows the tokenizer, the tasks and the ids of digit names and coordinates."""

    def __init__(self, processor: Qwen2VLProcessor) -> None:
        self.tokenizer = processor.tokenizer
        prompt = render_prompt(processor, "\0", 1).replace("<|image_pad|>", "<|image_pad|>" * N_CELLS)
        self.before_question, self.after_question = prompt.split("\0")
        self.image_start = self._encode(self.before_question).index(processor.image_token_id)
        self.name_ids = single_token_ids(self.tokenizer, DIGIT_NAMES)
        self.coordinate_ids = set(single_token_ids(self.tokenizer, COORDINATES))
        self.tasks = load_tasks()

    def draw_batch(self, n_examples: int, rng: np.random.Generator) -> Batch:
        """Return a batch of the mixture."""
        kinds = rng.choice(len(MIXTURE), size=n_examples, p=list(MIXTURE.values()))
        return collate(
            [self.draw(list(MIXTURE)[kind], rng) for kind in kinds], self.tokenizer.pad_token_id, self.image_start
        )

    def draw(self, kind: str, rng: np.random.Generator) -> Example:
        """Return one example of that kind: any digit, any thinking, a tenth in other words."""
        row, scene, question, completion, has_thought = draw_text(kind, self.tasks, rng)
        prompt_ids = self._encode(self.before_question + question + self.after_question)
        ids = prompt_ids + self._encode(completion + END)
        is_coordinate = np.array([i >= len(prompt_ids) and t in self.coordinate_ids for i, t in enumerate(ids)])
        token_cells, covered = np.zeros((len(ids), N_CELLS), bool), cells_of_boxes(scene.boxes_xyxy)
        for digit, cells in zip(scene.digits, covered, strict=True):
            token_cells[np.array(ids) == self.name_ids[digit]] |= cells
        target_cells, target_names = np.zeros_like(token_cells), np.zeros((len(ids), len(ids)), bool)
        if is_coordinate.any() and not (kind == "riddle" and not has_thought):
            before = np.flatnonzero(is_coordinate) - 1
            golds = np.reshape(row["gold"], (-1, 4))
            target_cells[before] = np.repeat(cells_of_boxes(golds), 4, axis=0)
            asked = self.name_ids[_digit_at(scene, golds[0])]
            target_names[before] = np.array(ids) == asked
            target_names &= np.tri(len(ids), dtype=bool)
        return Example(
            ids,
            len(prompt_ids),
            self._weights(ids),
            scene,
            cell_classes(scene),
            token_cells,
            target_cells,
            target_names,
        )

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _weights(self, ids: list[int]) -> list[float]:
        names = set(self.name_ids)
        return [3.0 if token in self.coordinate_ids else 2.0 if token in names else 1.0 for token in ids]


def load_tasks() -> dict[tuple[str, str], Task]:
    """Return the task of each kind of row, with and without thinking, by (kind, thinking)."""
    return {(kind, t): load_task(name, thinking=t) for kind, name in TASK_OF_KIND.items() for t in ("think", "none")}


def draw_text(
    kind: str, tasks: dict[tuple[str, str], Task], rng: np.random.Generator, reworded_share: float = REWORDED_SHARE
) -> tuple[Row, Scene, str, str, bool]:
    """Return a pre-training row, its scene, a question, the completion, and whether the completion holds a thought."""
    expressions = "one_step" if rng.random() < ONE_STEP_SHARE else "seen"
    row, scene = compose_row(
        kind,
        int(rng.integers(10)),
        pool="pretraining",
        domain="clean",
        rng=rng,
        expressions=expressions,
        negatives=NEGATIVES,
    )
    mode = list(THINKING_SHARES)[int(rng.choice(3, p=list(THINKING_SHARES.values())))]
    task = tasks[kind, "none" if mode == "none" else "think"]
    question = task.question(row, FRAME)
    if rng.random() < reworded_share:
        question = reword(kind, row, question, rng)
    completion = task.gold(row, FRAME, thought="empty" if mode == "empty" else "gold")
    return row, scene, question, completion, mode == "think"


def reword(kind: str, row: Row, question: str, rng: np.random.Generator) -> str:
    """Return the question with its first line in other words."""
    wording = REWORDINGS[kind][int(rng.integers(len(REWORDINGS[kind])))]
    operations = row.get("instruction", "").removeprefix("Name the digit in the image ").removesuffix(".")
    asked = wording.format(category=row.get("category"), phrase=row.get("phrase"), operations=operations)
    return asked + question[question.index("\n") :]


def cells_of_boxes(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return, for boxes (n, 4) in pixels, the cells (n, 16) each covers to at least a fifth, or else its fullest."""
    coverage = _coverage(boxes_xyxy)
    return (coverage >= 0.2) | (coverage == coverage.max(axis=1, keepdims=True))


def cell_classes(scene: Scene) -> np.ndarray:
    """Return the digit that covers most of each cell, (16,), or `BACKGROUND` where none covers a fifth."""
    coverage = _coverage(scene.boxes_xyxy)
    digits = np.array(scene.digits)[coverage.argmax(axis=0)]
    return np.where(coverage.max(axis=0) >= 0.2, digits, BACKGROUND)


def _coverage(boxes_xyxy: np.ndarray) -> np.ndarray:
    edges = np.arange(0, SIDE, CELL)
    x1, y1, x2, y2 = np.asarray(boxes_xyxy, float).T[:, :, None]
    width = np.clip(np.minimum(x2, edges + CELL) - np.maximum(x1, edges), 0, None)
    height = np.clip(np.minimum(y2, edges + CELL) - np.maximum(y1, edges), 0, None)
    return (height[:, :, None] * width[:, None, :]).reshape(len(boxes_xyxy), -1) / CELL**2


def _digit_at(scene: Scene, xyxy: np.ndarray) -> int:
    return scene.digits[int(np.abs(scene.boxes_xyxy - xyxy).sum(axis=1).argmin())]


def collate(examples: list[Example], pad_id: int, image_start: int) -> Batch:
    """Return the examples as one batch, padded on the right."""
    n, length = len(examples), max(len(example.ids) for example in examples)
    ids, weights = np.full((n, length), pad_id), np.zeros((n, length), np.float32)
    token_cells, target_cells = np.zeros((n, length, N_CELLS), bool), np.zeros((n, length, N_CELLS), bool)
    target_names = np.zeros((n, length, length), bool)
    for i, example in enumerate(examples):
        end, start = len(example.ids), example.completion_start
        ids[i, :end] = example.ids
        predicted = np.array(example.weights[start:], np.float32)
        weights[i, start - 1 : end - 1] = predicted / predicted.sum()
        token_cells[i, :end], target_cells[i, :end] = example.token_cells, example.target_cells
        target_names[i, :end, :end] = example.target_names
    arrays = (
        ids,
        weights,
        np.stack([example.scene.pixels for example in examples]),
        np.stack([example.cell_classes for example in examples]),
        token_cells,
        target_cells,
        target_names,
    )
    return Batch(*(torch.from_numpy(array) for array in arrays), image_start=image_start)
