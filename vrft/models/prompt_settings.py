"""How a checkpoint was asked, kept beside its weights as `vrft.json`, so that it is asked the same way again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrft.errors import UserError
from vrft.tasks import MixedTask, Task
from vrft.tasks.boxes import Frame
from vrft.tasks.rows import Row

FROM_CARD = {
    "task": ("task",),
    "family": ("model", "family"),
    "min_pixels": ("memory", "min_pixels"),
    "max_pixels": ("memory", "max_pixels"),
    "max_completion_length": ("memory", "max_completion_length"),
}
"""Which settings a card gives, and where they stand in the config."""
_PLACEHOLDER = "{question}"
_NOT_ASKED = ("images", "row_id", "gold", "thought", "distractors")


def make_card(
    settings: Mapping[str, Any],
    *,
    base: str,
    trainer: str,
    task: Task | MixedTask,
    row: Row,
    frame: Frame,
    prompt_of: Callable[[str], str],
) -> dict[str, Any]:
    """The card of a checkpoint.

    settings: by the names of `FROM_CARD`. base: the model that was trained, a folder or hub name. trainer: `grpo` or
    `sft`. row, frame: one training row and its frame, whose question is kept as an example of the wording.
    prompt_of: a function of a question to the whole prompt, the system's text included.
    """
    return {
        "base": base,
        "trainer": trainer,
        **settings,
        "prompt": prompt_of(_PLACEHOLDER),
        "example": {
            "row": {column: value for column, value in row.items() if column not in _NOT_ASKED},
            "frame": [frame.name, list(frame.image_wh), list(frame.seen_wh), frame.coordinate_step],
            "question": task.question(row, frame),
        },
    }


def read_card(model_path: str | None) -> dict[str, Any]:
    """The card of a checkpoint's folder; empty where there is none. Raises `UserError` if it is no JSON object."""
    path = Path(model_path or "") / "vrft.json"
    if model_path is None or not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); delete it, or save the checkpoint again") from None
    if not isinstance(card, dict):
        raise UserError(f"{path} holds a {type(card).__name__}, no card; delete it, or save the checkpoint again")
    return card


def with_prompt_settings(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The nested values of a config with what the card of `model.path` says, but for keys that one of the user's own
    overrides sets."""
    card = read_card(values["model"]["path"])
    chosen = {override.lstrip("+~").partition("=")[0] for override in overrides}
    chosen |= {"task"} if "experiment" in chosen else set()  # an experiment names its task
    merged = {section: dict(inner) if isinstance(inner, dict) else inner for section, inner in values.items()}
    for name, key in FROM_CARD.items():
        dotted = ".".join(key)
        is_chosen = any(one == dotted or dotted.startswith(f"{one}.") or one.startswith(f"{dotted}.") for one in chosen)
        if name in card and not is_chosen:
            (merged if len(key) == 1 else merged[key[0]])[key[-1]] = card[name]
    return merged


def setting_drift(settings: Mapping[str, Any], model_path: str | None) -> list[str]:
    """One sentence for each setting in which a run differs from the card of its model.

    settings: by the names of `FROM_CARD`.
    """
    card = read_card(model_path)
    return [
        f"{'.'.join(key)} is {settings[name]}; the checkpoint was trained with {card[name]}"
        for name, key in FROM_CARD.items()
        if name in card and card[name] != settings[name]
    ]


def wording_drift(card: dict[str, Any], *, task: Task | MixedTask, prompt_of) -> list[str]:
    """One sentence for each text in which the model would now be asked otherwise than when it was trained."""
    found = []
    if "prompt" in card and card["prompt"] != prompt_of(_PLACEHOLDER):
        found.append(f"the prompt around a question is {prompt_of(_PLACEHOLDER)!r}; it was {card['prompt']!r}")
    if "example" in card:
        row, (name, image_wh, seen_wh, step) = card["example"]["row"], card["example"]["frame"]
        frame = Frame(name, tuple(image_wh), tuple(seen_wh), step)
        try:
            question = task.question(row, frame)
        except (KeyError, ValueError):  # another task than the one trained
            return found
        if question != card["example"]["question"]:
            found.append(f"a question is worded {question!r}; it was {card['example']['question']!r}")
    return found
