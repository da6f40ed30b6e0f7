"""Packages import in one order, Hydra stays with the parent process, and unit tests mirror the packages.

Each rule is shown to fail where it is broken.
"""

from __future__ import annotations

import pytest
from house import (
    ORDER,
    ROOT,
    SIDE_BY_SIDE,
    by_package,
    cycles,
    floors,
    graph,
    imports,
    module_name,
    package_of,
    reachable,
    sources,
    upward,
)


def test_every_import_goes_to_the_left():
    files = sources()
    assert len(files) >= 150
    assert upward(files) == []


def test_order_has_every_package_and_nothing_else():
    there = {package_of(module_name(path)) for path in sources()} - {""}
    assert there == set(ORDER)
    assert len(ORDER) == 13
    assert {name for pair in SIDE_BY_SIDE for name in pair} <= there


def test_there_are_no_cycles_and_few_floors():
    edges = graph(sources())
    assert cycles(edges) == []
    assert cycles(by_package(edges)) == []
    assert floors(by_package(edges)) <= 10


def test_a_task_imports_no_other_task():
    files = sources()
    tasks = {module_name(path) for path, source in files.items() if "/tasks/" in path and "\nTASK = " in source}
    assert len(tasks) >= 7
    for path, source in files.items():
        if module_name(path) in tasks:
            assert not {name.rpartition(".")[0] for _, name in imports(path, source)} & tasks, path


def test_the_worker_never_reaches_hydra():
    files = sources()
    modules = reachable("vrft.run.worker", files)
    assert {"vrft.train.grpo", "vrft.evaluate.score", "vrft.tasks", "vrft.tasks.boxes"} <= modules  # the walk follows
    named = {name.partition(".")[0] for path in files if module_name(path) in modules
             for _, name in imports(path, files[path])}  # fmt: skip
    assert "transformers" in named
    assert not named & {"hydra", "omegaconf"}


def test_unit_tests_mirror_the_packages():
    """`tests/unit/PACKAGE/test_MODULE.py`, or `test_MODULE_TOPIC.py` for a part of a module's tests."""
    modules = {path.removeprefix("vrft/").removesuffix(".py").removesuffix("/__init__") for path in sources()}
    unit = ROOT / "tests" / "unit"
    tests = sorted(path.relative_to(unit) for path in unit.rglob("test_*.py"))
    assert len(tests) >= 70
    for test in tests:
        folder, words = test.parent.as_posix().removeprefix("."), test.stem.removeprefix("test_").split("_")
        names = ["/".join(filter(None, [folder, "_".join(words[:n])])) for n in range(1, len(words) + 1)]
        assert modules & set(names), f"tests/unit/{test} is named after no module"


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("vrft/tasks/boxes.py", "import numpy\nimport torch\n", "vrft/tasks/boxes.py:2: tasks imports torch"),
        ("vrft/tasks/counting.py", "def f():\n    from PIL import Image\n", "counting.py:2: tasks imports PIL"),
        ("vrft/files.py", "from vrft.tasks import base\n", "files imports tasks, which stands right"),
        ("vrft/models/load.py", "from vrft import run\n", "models imports run, which stands right"),
        ("vrft/data/coco_rows.py", "import vrft.models.load\n", "data imports models"),
        ("vrft/models/load.py", "import vrft.data.coco_rows\n", "models imports data, which stands beside"),
        ("vrft/train/grpo.py", "from ..evaluate.score import x\n", "train imports evaluate"),
        ("vrft/report/page.py", "def f():\n    from vrft.memory.plan import x\n", "report imports memory"),
        ("vrft/run/worker.py", "from omegaconf import OmegaConf\n", "worker.py:1: vrft.run.worker imports omegaconf"),
        ("vrft/config/schema.py", "import hydra\n", "vrft.config.schema imports hydra"),
        ("vrft/report/page.py", "import vrft.utils\n", "utils is not in ORDER"),
    ],
)
def test_each_rule_can_fail(path, source, words):
    (found,) = upward({path: source})
    assert words in found


def test_cycles_and_floors_can_fail():
    files = {
        "vrft/run/a.py": "def f():\n    from vrft.run import b\n",
        "vrft/run/b.py": "import vrft.run.c\n",
        "vrft/run/c.py": "from vrft.run.a import x\n",
    }
    assert cycles(graph(files)) == [["vrft.run.a", "vrft.run.b", "vrft.run.c"]]
    del files["vrft/run/c.py"]
    assert cycles(graph(files)) == []
    assert floors({"a": {"b"}, "b": {"c"}, "c": set()}) == 3


def test_the_walk_to_hydra_can_fail():
    files = {
        "vrft/run/worker.py": "def f():\n    from vrft.run import processes\n",
        "vrft/run/processes.py": "import vrft.config.freeze\n",
        "vrft/config/freeze.py": "import omegaconf\n",
    }
    assert "vrft.config.freeze" in reachable("vrft.run.worker", files)
