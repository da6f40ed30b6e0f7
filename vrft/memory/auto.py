"""`memory=auto`, and what `vrft plan` shares with it: what is planned for which GPU, and the search for what fits."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vrft.config.package_files import TINY_MODEL
from vrft.config.schema import Plan
from vrft.errors import UserError
from vrft.files import parse_yaml
from vrft.memory.changes import KNOBS, Change
from vrft.memory.gpus import GIB, gpu_at_hand, gpu_bytes, gpus_called
from vrft.memory.training_setup import Setup
from vrft.terminal import progress_bar

_TEMPLATE = 64  # tokens that a chat template puts around a question; Qwen's are 25


def fitting_changes(
    setup: Setup, *, device: str, questions: Iterable[str], image_sizes: Iterable[Sequence[int]]
) -> list[Change]:
    """The changes that make a run fit the GPU at hand, or `memory.gpu`; each is printed. None where it fits.

    device: of the workers. questions, image_sizes: of all rows; the longest and the largest count. Raises `UserError`
    where nothing helps. Without a GPU there is nothing to fit.
    """
    name = setup.memory.gpu
    n_bytes = gpu_bytes(name, key="memory.gpu") if name is not None else gpu_at_hand()
    if name is None and setup.launch.name == "slurm":
        raise UserError("memory=auto cannot ask the job's GPU from here; say which it is: memory.gpu=NAME")
    if n_bytes is None:
        print("memory=auto: no GPU here, so nothing is changed; memory.gpu=NAME fits another", file=sys.stderr)
        return []
    from vrft.memory.changes import room
    from vrft.memory.plan import make_plan  # torch: not where there is no GPU
    from vrft.memory.table import advice, size

    largest = max((tuple(size) for size in image_sizes), key=math.prod, default=None)
    options = plan_options(setup, n_bytes, device=device, image_wh=largest)
    options["text_tokens"] = min(options["text_tokens"], most_text(questions))
    changes, least = search_changes(setup, n_bytes, options)
    if changes is None:
        raise UserError(f"memory=auto: {advice(None, least)}")
    for change in changes:
        print(f"memory=auto: {change.words} ({change.price})", file=sys.stderr)
        setup = change.applied(setup)
    peak = make_plan(setup, **options).peak
    print(f"memory=auto: {size(peak)} planned, of {size(room(n_bytes))}", file=sys.stderr)
    return changes


def most_text(questions: Iterable[str]) -> int:
    """Tokens that no prompt's text exceeds, found without a tokenizer: a token is a byte or more."""
    return _TEMPLATE + max((len(question.encode()) for question in questions), default=0)


def turned_knobs(run_dir: Path) -> dict[str, Any]:
    """The knobs of `memory=auto` as the run directory was created with them, by dotted key; none in a new one."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return {}
    try:
        saved = parse_yaml(path.read_text(encoding="utf-8"))
        return {key: saved[key.partition(".")[0]][key.partition(".")[2]] for key in KNOBS}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return {}  # what is wrong with the file is said by who compares the two


def named_gpu(name: str | float | None) -> tuple[str, int | None]:
    """What to call a GPU, and its bytes; of the one here if there is no name, None where there is none."""
    if name is not None:
        n_bytes, known = gpu_bytes(name), gpus_called(name)
        return known[0] if known else f"a GPU of {n_bytes / GIB:g} GiB", n_bytes
    return "the GPU here", gpu_at_hand()


def plan_options(
    setup: Setup,
    n_bytes: int | None,
    *,
    device: str,
    wanted: Plan | None = None,
    image_wh: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The options of `make_plan`: images and prompts as `wanted` has them, for a GPU unless the config says
    `launch.device=cpu`, or it is the embedded model's, which runs where there is none."""
    from vrft.memory.plan import text_length  # torch: not where there is no GPU

    is_for_cpu = setup.launch.device == "cpu" or setup.model.path == str(TINY_MODEL)
    target = "cuda" if n_bytes or not is_for_cpu else device
    if wanted and wanted.image_wh is not None:
        if len(wanted.image_wh) != 2 or min(wanted.image_wh) < 1:
            raise UserError(f"plan.image_wh is {wanted.image_wh}; a width and a height in pixels: [640,480]")
        image_wh = tuple(wanted.image_wh)
    image: Mapping[str, Any] = {"image_wh": image_wh} if image_wh else {}
    text_tokens = text_length(setup, **image, prompt_tokens=wanted.prompt_tokens if wanted else None)
    return {"target": target, "gpu_bytes": n_bytes, **image, "text_tokens": text_tokens}


def search_changes(setup: Setup, n_bytes: int, options: dict[str, Any]) -> tuple[list[Change] | None, int]:
    """As `vrft.memory.changes.changes_that_fit`, with a bar: a large model takes seconds a config. Also the smallest
    peak in bytes among the setups that were tried, or less."""
    from vrft.memory.changes import changes_that_fit, room
    from vrft.memory.plan import peak_or_more  # torch: not where there is no GPU

    peaks = []
    with progress_bar(desc="what would make it fit", unit="config", leave=False) as bar:

        def does_fit(tried: Setup) -> bool:
            bar.update()
            peaks.append(peak_or_more(tried, room(n_bytes), **options))
            return peaks[-1] <= room(n_bytes)

        return changes_that_fit(setup, does_fit), min(peaks)
