"""One image and one question of one's own: the answer as text, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from vrft.boxes import Frame
from vrft.draw import LabelledBox, boxes_of, draw_boxes
from vrft.errors import UserError
from vrft.evaluate.generate import load_image
from vrft.evaluate.score import plain
from vrft.models.decode import generate_texts, set_thought_opening
from vrft.models.families import FAMILIES, frame_for
from vrft.models.load import load_model, load_processor
from vrft.tasks import MixedTask, load_task
from vrft.tasks.base import Parsed

_FROM_CARD = {
    "task": ("task",),
    "family": ("model", "family"),
    "min_pixels": ("memory", "min_pixels"),
    "max_pixels": ("memory", "max_pixels"),
    "max_completion_length": ("memory", "max_completion_length"),
}
"""Which settings a checkpoint's `vrft.json` gives, and where they stand in the config."""


def predict(config: dict[str, Any], *, overrides: Sequence[str] = ()) -> Parsed:
    """Ask the model about the image, print question, completion and answer, and save a picture where boxes are drawn.

    config: a frozen config with `predict: {image, ask, out}`. A checkpoint made by vrft knows its task, family and
    pixel limits (`vrft.json`); they hold unless one of `overrides`, the user's own words, sets them.
    Raises `UserError` for an image or a model that cannot be read.
    """
    config = with_card(config, overrides)
    asked, memory, model_config = config["predict"], config["memory"], config["model"]
    image = load_image(Path(asked["image"]), what="predict.image")
    limits = {"min_pixels": memory["min_pixels"], "max_pixels": memory["max_pixels"]}
    trusted = {name: model_config[name] for name in ("revision", "trust_remote_code")}
    transformers.logging.disable_progress_bar()
    processor = load_processor(model_config["path"], **limits, **trusted)
    model = load_model(
        model_config["path"],
        family=FAMILIES[model_config["family"]],
        dtype=model_config["dtype"],
        attention=model_config["attention"],
        device=config["derived"]["device"],
        **trusted,
    )
    task = load_task(**config["task"], trust_code=config["trust_code"])
    if isinstance(task, MixedTask):
        raise UserError(f"task=mixed cannot ask one question; choose one of its tasks: {', '.join(task.tasks)}")
    set_thought_opening(processor, is_prefilled=task.is_prefilled)
    frame = frame_for(FAMILIES[model_config["family"]], image.size, **limits)
    row = {"image_wh": list(image.size), **task.asked(asked["ask"])}
    question = task.question(row, frame)
    [completion] = generate_texts(
        model, processor, [question], [[image]], max_new_tokens=memory["max_completion_length"]
    )
    parsed = task.parse(completion["text"], row, frame, is_truncated=completion["is_truncated"])
    boxes = boxes_of(plain(parsed.answer))
    picture_path = Path(asked["out"])
    picture_path.parent.mkdir(parents=True, exist_ok=True)
    draw_boxes(image, predicted=boxes).save(picture_path)
    print(told(question, parsed, boxes, frame))
    print(f"picture     {picture_path}")
    return parsed


def with_card(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The config with what the checkpoint's `vrft.json` says, where there is one and no override sets the same key.

    Raises `UserError` if the file is not JSON.
    """
    path = Path(config["model"]["path"]) / "vrft.json"
    if not path.is_file():
        return config
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); delete it, or save the checkpoint again") from None
    chosen = {override.lstrip("+~").partition("=")[0] for override in overrides}
    chosen |= {"task"} if "experiment" in chosen else set()  # an experiment names its task
    merged = {section: dict(values) if isinstance(values, dict) else values for section, values in config.items()}
    for name, key in _FROM_CARD.items():
        dotted = ".".join(key)
        is_chosen = any(one == dotted or dotted.startswith(f"{one}.") or one.startswith(f"{dotted}.") for one in chosen)
        if name not in card or is_chosen:
            continue
        section = merged if len(key) == 1 else merged[key[0]]
        section[key[-1]] = card[name]
    return merged


def told(question: str, parsed: Parsed, boxes: Sequence[LabelledBox], frame: Frame) -> str:
    """What was asked and answered, as lines for the terminal; boxes in pixels of the original image."""
    width, height = frame.image_wh
    lines = [f"question    {question}", f"completion  {parsed.text}"]
    if parsed.answer is None:
        cut = " (it was cut at memory.max_completion_length)" if parsed.is_truncated else ""
        lines.append(f"answer      unreadable: {parsed.reason}{cut}")
    elif boxes:
        is_point = len(parsed.answer) == 2 and isinstance(parsed.answer[0], float)
        for number, (xyxy, label) in enumerate(boxes):
            corners = ", ".join(f"{value:.1f}" for value in (xyxy[:2] if is_point else xyxy))
            lines.append(f"{'answer' if number == 0 else '':12}[{corners}]{f', {label}' if label else ''}")
        named = "x, y" if is_point else "x1, y1, x2, y2"
        lines.append(f"{'':12}{named} in pixels of the image, {width} × {height}")
    else:
        lines.append(f"answer      {'no objects' if parsed.answer == [] else parsed.answer}")
    return "\n".join(line.replace("\n", f"\n{'':12}") for line in lines)
