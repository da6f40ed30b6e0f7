"""Imports run downward only; hydra stays with the parent process. Each rule is shown to bite."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE = {"errors", "boxes", "answers", "rewards", "metrics", "rows", "heartbeat", "interruption", "whole_folder"}
LAYERS = {**dict.fromkeys(PURE, 0), "tasks": 1, "data": 2, "models": 2, "train": 3, "evaluate": 3}  # the rest: 4
STRANGERS = [{"data", "models"}, {"train", "evaluate"}]
HEAVY = {"torch", "torchvision", "transformers", "trl", "peft", "accelerate", "datasets", "PIL", "hydra", "omegaconf"}
HYDRA = {"hydra", "omegaconf"}
KNOWS_HYDRA = {"cli", "configure", "hydra_guard", "wording"}


def sources() -> dict[str, str]:
    """`{path from the root: source}` of every module of the package."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "vrft").rglob("*.py"))
    }


def imports(path: str, source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of every import, inside functions too."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def unit(dotted: str) -> str:
    """The module or package directly below `vrft`."""
    return [*dotted.split("."), ""][1]


def violations(files: dict[str, str]) -> list[str]:
    """One sentence for each import that breaks a rule, with its file and line."""
    found = []
    for path, source in files.items():
        dotted = path.removesuffix(".py").replace("/", ".")
        me, depth = unit(dotted), LAYERS.get(unit(dotted), 4)
        for line, name in imports(path, source):
            if fault := _fault(dotted, me, depth, name):
                found.append(f"{path}:{line}: {fault}")
    return found


def _fault(dotted: str, me: str, depth: int, name: str) -> str | None:
    top = name.partition(".")[0]
    if top != "vrft":
        if depth <= 1 and top in HEAVY:
            return f"layer {depth} imports {top}"
        if top in HYDRA and me not in KNOWS_HYDRA:
            return f"{me} imports {top}"
        return None
    other = unit(name)
    if depth < 4 and LAYERS.get(other, 4) > depth:
        return f"{me} (layer {depth}) imports {other}, which lies above it"
    if any({me, other} == pair for pair in STRANGERS):
        return f"{me} imports {other}"
    if me == other == "tasks":
        mine, theirs = (part.split(".")[2] if part.count(".") >= 2 else "" for part in (dotted, name))
        if mine != theirs and theirs in _task_modules() and mine not in ("", "__init__"):
            return f"the task {mine} imports the task {theirs}"
    return None


def _task_modules() -> set[str]:
    """The modules that hold a task, as `vrft.tasks.task_names` finds them."""
    files = (ROOT / "vrft" / "tasks").glob("*.py")
    return {path.stem for path in files if "\nTASK = " in path.read_text(encoding="utf-8")}


def reachable(start: str, files: dict[str, str]) -> set[str]:
    """The modules that importing `start` may import, functions included, found by following the sources."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}
    seen, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        if module in seen or module not in modules:
            continue
        seen.add(module)
        for _, name in imports(modules[module], files[modules[module]]):
            waiting += [name, name.rpartition(".")[0]]
    return seen


def test_every_import_keeps_the_layers():
    files = sources()
    assert len(files) >= 30
    assert len(_task_modules()) >= 7
    assert violations(files) == []


def test_the_worker_never_reaches_hydra():
    modules = reachable("vrft.run", sources())
    assert {"vrft.train.grpo", "vrft.evaluate.score", "vrft.tasks", "vrft.boxes"} <= modules  # the walk does follow
    assert not {module for module in modules if unit(module) in KNOWS_HYDRA}


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("vrft/boxes.py", "import numpy\nimport torch\n", "vrft/boxes.py:2: layer 0 imports torch"),
        ("vrft/tasks/counting.py", "def f():\n    from PIL import Image\n", "counting.py:2: layer 1 imports PIL"),
        ("vrft/rewards.py", "from vrft.tasks import base\n", "rewards (layer 0) imports tasks"),
        ("vrft/models/load.py", "from vrft import run\n", "models (layer 2) imports run"),
        ("vrft/data/coco.py", "import vrft.models.load\n", "data imports models"),
        ("vrft/train/grpo.py", "from ..evaluate.score import x\n", "train imports evaluate"),
        ("vrft/tasks/counting.py", "from vrft.tasks.detection import x\n", "task counting imports the task detection"),
        ("vrft/run.py", "from omegaconf import OmegaConf\n", "run.py:1: run imports omegaconf"),
    ],
)
def test_each_rule_can_fail(path, source, words):
    (found,) = violations({path: source})
    assert words in found


def test_the_walk_to_hydra_can_fail():
    files = {
        "vrft/run.py": "def f():\n    from vrft import launching\n",
        "vrft/launching.py": "import vrft.configure\n",
    }
    files["vrft/configure.py"] = "import omegaconf\n"
    assert "vrft.configure" in reachable("vrft.run", files)
