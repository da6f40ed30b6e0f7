"""The order of the packages, read from the sources: `python tests/house.py` prints its figures.

One rule: a module imports from its own package and from packages further left in `ORDER`; packages between the same two
signs (`SIDE_BY_SIDE`) never import each other. Imports inside functions count. `tests/contract/test_order.py` holds it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ORDER = [
    "errors",
    "terminal",
    "files",
    "tasks",
    "data",
    "models",
    "train",
    "evaluate",
    "config",
    "memory",
    "report",
    "run",
    "cli",
]
SIDE_BY_SIDE = [("data", "models"), ("train", "evaluate"), ("memory", "report")]
RIGHT_OF_TASKS = {"torch", "torchvision", "transformers", "trl", "peft", "accelerate", "datasets", "PIL"}
HYDRA = {"hydra", "omegaconf"}
KNOWS_HYDRA = {"vrft.config.hydra", "vrft.config.freeze", "vrft.cli"}  # modules, or packages with all their modules
SEES_ALL = {"config", "run", "cli"}  # packages whose functions may take the whole config


def sources() -> dict[str, str]:
    """`{path from the root: source}` of every module of the package."""
    paths = sorted((ROOT / "vrft").rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def module_name(path: str) -> str:
    """`vrft/data/__init__.py` -> `vrft.data`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def package_of(module: str) -> str:
    """The name of `ORDER` that a module belongs to; empty for `vrft` itself and `vrft.__main__`."""
    name = [*module.split("."), ""][1]
    return "" if name.startswith("__") else name


def imports(path: str, source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of every import, inside functions too."""
    folder = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def upward(files: dict[str, str]) -> list[str]:
    """One sentence for each import that breaks the rule, with its file and line."""
    return [
        f"{path}:{line}: {fault}"
        for path, source in files.items()
        for line, name in imports(path, source)
        if (fault := _fault(module_name(path), name))
    ]


def _fault(module: str, name: str) -> str | None:
    me, top = package_of(module), name.partition(".")[0]
    if top != "vrft":
        if top in RIGHT_OF_TASKS and me and ORDER.index(me) <= ORDER.index("tasks"):
            return f"{me} imports {top}, which stays right of tasks"
        if top in HYDRA and not {module, f"vrft.{me}"} & KNOWS_HYDRA:
            return f"{module} imports {top}, which only {', '.join(sorted(KNOWS_HYDRA))} may"
        return None
    other = package_of(name)
    if not me or not other or me == other:
        return None
    if other not in ORDER or me not in ORDER:
        return f"{other if other not in ORDER else me} is not in ORDER"
    if ORDER.index(other) > ORDER.index(me):
        return f"{me} imports {other}, which stands right of it"
    if any({me, other} == set(pair) for pair in SIDE_BY_SIDE):
        return f"{me} imports {other}, which stands beside it"
    return None


def graph(files: dict[str, str]) -> dict[str, set[str]]:
    """`{module: the modules of vrft that it imports}`, inside functions too."""
    modules = {module_name(path): path for path in files}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        named = [name for _, name in imports(path, files[path])]
        targets = {name if name in modules else name.rpartition(".")[0] for name in named}
        found[module] = (targets & modules.keys()) - {module}
    return found


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach each other (Tarjan's strongly connected components of more than one)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(edges):
        if name not in number:
            visit(name)
    return found


def by_package(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between the names of `ORDER`."""
    found: dict[str, set[str]] = {name: set() for name in ORDER}
    for module, others in edges.items():
        if me := package_of(module):
            found[me] |= {package_of(other) for other in others} - {me, ""}
    return found


def floors(edges: dict[str, set[str]]) -> int:
    """The longest chain of imports between packages."""

    @functools.cache
    def height(name: str) -> int:
        return 1 + max((height(other) for other in edges[name]), default=0)

    return max(height(name) for name in edges)


def reachable(start: str, files: dict[str, str]) -> set[str]:
    """The modules that importing `start` may import, inside functions too, their packages included."""
    edges, seen, waiting = graph(files), set(), [start]
    while waiting:
        module = waiting.pop()
        if module and module not in seen:
            seen.add(module)
            waiting += [*edges.get(module, ()), module.rpartition(".")[0]]
    return seen & edges.keys()


def takes_whole_config(files: dict[str, str]) -> list[str]:
    """Functions outside of `SEES_ALL` with a parameter `config` or `frozen`, or one that is annotated as `Config`."""
    found = []
    for path, source in files.items():
        if package_of(module_name(path)) in SEES_ALL:
            continue
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for one in given:
                kind = ast.unparse(one.annotation) if one.annotation else ""
                if kind == "Config" or (one.arg in ("config", "frozen") and (not kind or kind.startswith("dict"))):
                    found.append(f"{path}:{node.lineno}: {node.name}({one.arg})")
    return found


def main() -> None:
    """Print the figures, and where something is wrong, where."""
    files = sources()
    edges = graph(files)
    faults, circles, whole = upward(files), cycles(edges), takes_whole_config(files)
    n_lines = sum(source.count("\n") for source in files.values())
    print(f"modules {len(files)}, lines {n_lines}")
    print(f"import floors between packages {floors(by_package(edges))}")
    print(f"upward imports {len(faults)}", *faults, sep="\n  ")
    print(f"cycles {len(circles) + len(cycles(by_package(edges)))}", *map(" - ".join, circles), sep="\n  ")
    print(f"functions below run/ that take the whole config {len(whole)}", *whole, sep="\n  ")


if __name__ == "__main__":
    main()
