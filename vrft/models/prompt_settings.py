"""`vrft.json`: how a checkpoint was prompted in training, so that later prompts are the same.

Another wording, frame or image size than in training raises no error; it only changes the metrics. So these settings
are saved beside the weights. They are the defaults of every run with that checkpoint, and differences are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from vrft.files import read_written
from vrft.tasks import MixedTask, Task
from vrft.tasks.boxes import Frame
from vrft.tasks.rows import Row

PROMPT_SETTINGS = {
    "task": ("task",),
    "family": ("model", "family"),
    "min_pixels": ("memory", "min_pixels"),
    "max_pixels": ("memory", "max_pixels"),
    "max_completion_length": ("memory", "max_completion_length"),
}
"""The settings in `vrft.json`, and the config key of each."""
_PLACEHOLDER = "{question}"
_NOT_IN_QUESTION = ("images", "row_id", "gold", "thought", "distractors")


def make_prompt_settings(
    settings: Mapping[str, Any],
    *,
    base: str,
    base_hash: str | None,
    trainer: str,
    task: Task | MixedTask,
    row: Row,
    frame: Frame,
    prompt_of: Callable[[str], str],
) -> dict[str, Any]:
    """The content of `vrft.json`.

    settings: values by the names of `PROMPT_SETTINGS`. base: the model that was trained, a folder or a hub name.
    base_hash: of its weights (`vrft.files.weight_hash`). trainer: `grpo` or `sft`. row, frame: one training row and its
    frame; its question is saved as an example of the wording. prompt_of: a function of a question that returns the
    whole prompt, system message included.
    """
    return {
        "base": base,
        "base_hash": base_hash,
        "trainer": trainer,
        **settings,
        "prompt": prompt_of(_PLACEHOLDER),
        "example": {
            "row": {column: value for column, value in row.items() if column not in _NOT_IN_QUESTION},
            "frame": [frame.name, list(frame.image_wh), list(frame.seen_wh), frame.coordinate_step],
            "question": task.question(row, frame),
        },
    }


class _Example(BaseModel):
    row: dict[str, Any]
    frame: Annotated[list[str | int | float | list[int] | None], Field(min_length=4, max_length=4)]
    question: str


class _Card(BaseModel):
    """`vrft.json`; the settings themselves are checked with the config that takes them."""

    family: str | None = None
    prompt: str | None = None
    example: _Example = None  # it may be missing, but not null


def read_prompt_settings(model_path: str | None) -> dict[str, Any]:
    """The `vrft.json` of a checkpoint folder; empty if there is none. Raises `UserError` if it is damaged."""
    path = Path(model_path or "") / "vrft.json"
    return read_written(path, _Card) if model_path is not None and path.is_file() else {}


def with_prompt_settings(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the nested config with the prompt settings of `model.path`, except for keys that an override sets."""
    saved = read_prompt_settings(values["model"]["path"])
    overridden = {override.lstrip("+~").partition("=")[0] for override in overrides}
    overridden |= {"task"} if "experiment" in overridden else set()  # an experiment names its task
    merged = {section: dict(inner) if isinstance(inner, dict) else inner for section, inner in values.items()}
    for name, key in PROMPT_SETTINGS.items():
        dotted = ".".join(key)
        # An override of `task` or of any key in it, such as `task.thinking`, keeps the saved task out.
        is_overridden = any(
            one == dotted or dotted.startswith(f"{one}.") or one.startswith(f"{dotted}.") for one in overridden
        )
        if name in saved and not is_overridden:
            (merged if len(key) == 1 else merged[key[0]])[key[-1]] = saved[name]
    return merged


def setting_drift(settings: Mapping[str, Any], model_path: str | None) -> list[str]:
    """One message for each setting of a run that differs from its model's `vrft.json`.

    settings: values by the names of `PROMPT_SETTINGS`.
    """
    saved = read_prompt_settings(model_path)
    return [
        f"{'.'.join(key)} is {settings[name]}; the checkpoint was trained with {saved[name]}"
        for name, key in PROMPT_SETTINGS.items()
        if name in saved and saved[name] != settings[name]
    ]


def wording_drift(saved: dict[str, Any], *, task: Task | MixedTask, prompt_of) -> list[str]:
    """One message for each text of the prompt that differs from the training of the checkpoint.

    saved: the content of `vrft.json`. Equal settings are not enough: a new version may word a question in another way.
    """
    found = []
    if "prompt" in saved and saved["prompt"] != prompt_of(_PLACEHOLDER):
        found.append(f"the prompt around a question is {prompt_of(_PLACEHOLDER)!r}; it was {saved['prompt']!r}")
    if "example" in saved:
        row, (name, image_wh, seen_wh, step) = saved["example"]["row"], saved["example"]["frame"]
        frame = Frame(name, tuple(image_wh), tuple(seen_wh), step)
        try:
            question = task.question(row, frame)
        except (KeyError, ValueError):  # the run has another task than the training had
            return found
        if question != saved["example"]["question"]:
            found.append(f"a question is worded {question!r}; it was {saved['example']['question']!r}")
    return found
