"""The verb plan, and `memory=auto`: what a config takes, whether it fits, and what would make it fit."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from vrft.config.package_files import TINY_MODEL
from vrft.errors import UserError
from vrft.memory.fit import KNOBS, Change
from vrft.memory.gpus import gpu_at_hand, gpu_bytes
from vrft.tasks.rows import Row

_TEMPLATE = 64  # tokens that a chat template puts around a question; Qwen's are 25


def fitted(config: dict[str, Any], rows: dict[str, list[Row]]) -> dict[str, Any]:
    """The frozen config with the changes that make it fit the GPU at hand, each printed; itself where it fits.

    rows: by split; the largest image counts, and the longest question. Raises `UserError` where nothing helps. Without
    a GPU there is nothing to fit, and the config stays as it is.
    """
    name = config["memory"].get("gpu")
    n_bytes = gpu_bytes(name, key="memory.gpu") if name is not None else gpu_at_hand()
    if name is None and config["launch"]["name"] == "slurm":
        raise UserError("memory=auto cannot ask the job's GPU from here; say which it is: memory.gpu=NAME")
    if n_bytes is None:
        print("memory=auto: no GPU here, so nothing is changed; memory.gpu=NAME fits another", file=sys.stderr)
        return config
    from vrft.memory.fit import room
    from vrft.memory.plan import make_plan
    from vrft.memory.table import advice, size

    sizes = [tuple(row["image_wh"]) for split in rows.values() for row in split if row.get("image_wh")]
    options = plan_options(config, n_bytes, image_wh=max(sizes, key=math.prod, default=None))
    options["text_tokens"] = min(options["text_tokens"], _most_text(config, rows))
    changes, least = search_changes(config, n_bytes, options)
    if changes is None:
        raise UserError(f"memory=auto: {advice(None, least)}")
    for change in changes:
        print(f"memory=auto: {change.words} ({change.price})", file=sys.stderr)
        config = change.applied(config)
    peak = make_plan(config, **options).peak
    print(f"memory=auto: {size(peak)} planned, of {size(room(n_bytes))}", file=sys.stderr)
    return config


def _most_text(config: dict[str, Any], rows: dict[str, list[Row]]) -> int:
    """Tokens that no prompt's text exceeds, told without a tokenizer: a token is a byte or more."""
    from vrft.models.families import FAMILIES, frame_for, pixel_limits
    from vrft.tasks import load_task

    task, limits = load_task(**config["task"], trust_code=config["trust_code"]), pixel_limits(config["memory"])
    family = FAMILIES[config["model"]["family"]]
    questions = (
        task.question(row, frame_for(family, row["image_wh"], **limits)) for one in rows.values() for row in one
    )
    return _TEMPLATE + max((len(question.encode()) for question in questions), default=0)


def as_begun(run_dir: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config with the knobs that `memory=auto` has turned when the run began, if it has begun."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return config
    try:
        begun = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings = {key: begun[key.partition(".")[0]][key.partition(".")[2]] for key in KNOBS}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return config  # what is wrong with the file is said by who compares the two
    return Change("", settings, "", "").applied(config)


def named_gpu(name: str | float | None) -> tuple[str, int | None]:
    if name is not None:
        return f"a GPU of {name} GiB" if isinstance(name, (int, float)) else str(name), gpu_bytes(name)
    return "the GPU here", gpu_at_hand()


def plan_options(
    config: dict[str, Any], n_bytes: int | None, image_wh: tuple[int, int] | None = None
) -> dict[str, Any]:
    """How a plan is made: of the images and prompts that the section `plan` tells, for a GPU unless the config says
    `launch.device=cpu`, or it is the embedded model's, which runs where there is none."""
    from vrft.memory.plan import text_length

    wanted = config.get("plan") or {}
    is_for_cpu = config["launch"]["device"] == "cpu" or config["model"]["path"] == str(TINY_MODEL)
    device = config["derived"]["device"] if is_for_cpu else "cuda"
    options: dict[str, Any] = {"target": "cuda" if n_bytes else device, "gpu_bytes": n_bytes}
    if wanted.get("image_wh") is not None:
        if len(wanted["image_wh"]) != 2 or min(wanted["image_wh"]) < 1:
            raise UserError(f"plan.image_wh is {wanted['image_wh']}; a width and a height in pixels: [640,480]")
        image_wh = tuple(wanted["image_wh"])
    image = {"image_wh": image_wh} if image_wh else {}
    options |= image
    options["text_tokens"] = text_length(config, **image, prompt_tokens=wanted.get("prompt_tokens"))
    return options


def search_changes(config: dict[str, Any], n_bytes: int, options: dict[str, Any]) -> tuple[list[Change] | None, int]:
    """As `vrft.memory.fit.changes_that_fit`, with a bar: a large model takes seconds a config. Also the smallest peak
    in bytes among the configs that were tried, or less."""
    from vrft.memory.fit import changes_that_fit, room
    from vrft.memory.plan import peak_or_more

    peaks = []
    with tqdm(desc="what would make it fit", unit="config", leave=False, delay=1) as bar:

        def does_fit(tried: dict[str, Any]) -> bool:
            bar.update()
            peaks.append(peak_or_more(tried, room(n_bytes), **options))
            return peaks[-1] <= room(n_bytes)

        return changes_that_fit(config, does_fit), min(peaks)
