"""`vrft predict`: one image and one question of one's own: the answer as text, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import transformers

from vrft.config.schema import Config
from vrft.data.images import load_image
from vrft.errors import UserError
from vrft.evaluate.score import answer_as_json
from vrft.models.families import FAMILIES, frame_for
from vrft.models.generate import generate_texts, set_thought_opening
from vrft.models.load import load_model, load_processor
from vrft.report.draw import LabelledBox, boxes_of, draw_boxes, save_image
from vrft.tasks import MixedTask, load_task
from vrft.tasks.base import Parsed
from vrft.tasks.boxes import Frame


def run(config: Config) -> None:
    """The verb: ask, print and draw."""
    predict(config)


def predict(config: Config) -> Parsed:
    """Ask the model about the image, print question, completion and answer, and save a picture where boxes are drawn.

    config: a frozen config with `predict: {image, ask, out}`.
    Raises `UserError` for an image or a model that cannot be read.
    """
    asked, memory, model_config = config.predict, config.memory, config.model
    image, picture_path = load_image(Path(asked.image), what="predict.image"), _free_picture(asked.out, asked.image)
    limits = {"min_pixels": memory.min_pixels, "max_pixels": memory.max_pixels}
    trusted = {"revision": model_config.revision, "trust_remote_code": model_config.trust_remote_code}
    transformers.logging.disable_progress_bar()
    processor = load_processor(model_config.path, **limits, **trusted)
    model = load_model(
        model_config.path,
        family=FAMILIES[model_config.family],
        dtype=model_config.dtype,
        attention=model_config.attention,
        device=config.derived.device,
        quantization=model_config.quantization,
        **trusted,
    )
    task = load_task(**config.task, trust_code=config.trust_code)
    if isinstance(task, MixedTask):
        raise UserError(f"task=mixed cannot ask one question; choose one of its tasks: {', '.join(task.tasks)}")
    set_thought_opening(processor, is_prefilled=task.is_prefilled)
    frame = frame_for(FAMILIES[model_config.family], image.size, **limits)
    row = {"image_wh": list(image.size), **task.asked(asked.ask)}
    question = task.question(row, frame)
    [completion] = generate_texts(model, processor, [question], [[image]], max_new_tokens=memory.max_completion_length)
    parsed = task.parse(completion["text"], row, frame, is_truncated=completion["is_truncated"])
    boxes = boxes_of(answer_as_json(parsed.answer))
    picture_path.parent.mkdir(parents=True, exist_ok=True)
    replaced = ", in place of an earlier file" if picture_path.exists() else ""
    save_image(draw_boxes(image, predicted=boxes), picture_path)
    print(told(question, parsed, boxes, frame))
    print(f"picture     {picture_path}{replaced}")
    return parsed


def _free_picture(out: str, image: str) -> Path:
    """The path of the picture. Raises `UserError` for a folder, no image's name, and the image itself."""
    path = Path(out)
    if path.is_dir() or path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"predict.out is {out}; the name of a .png, .jpg or .webp is needed, as prediction.png")
    if path.exists() and path.samefile(image):
        raise UserError(f"predict.out and predict.image are both {out}; give out another name, or the image is lost")
    return path


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
