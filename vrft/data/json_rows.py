"""Users' own rows, and the published data sets of `image, problem, solution`.

    {"image": "dogs/1.jpg", "problem": "Where is …", "solution": "<answer>(10,20),(300,400)</answer>"}
    {"image": "dogs/1.jpg", "category": "dog", "gold": [[12.5, 30, 96, 118]]}

A row names its image (`image` or `image_path`, or a list in `images`). It has either its task's own columns (`gold` in
pixels of the upright image), or a `solution`, which the task reads in `dataset.frame`. A `problem` is the question,
verbatim.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vrft.data.assemble import build_splits
from vrft.data.options import CommonOptions
from vrft.data.readers import Located, read_hub, read_path
from vrft.tasks import Task
from vrft.tasks.rows import Row


class Options(CommonOptions):
    """The keys of `dataset` that only this source has; exactly one of `path` and `hub` is needed.

    path, split: a file, or a folder and one of its splits (see `vrft.data.readers.read_path`).
    hub, revision: a data set on the Hugging Face hub, in place of `path`. Only this one uses the network.
    test_path, test_split: a separate test set. If only one is given, the other is that of the training rows.
    """

    path: str | None = None
    split: str = "train"
    hub: str | None = None
    revision: str | None = None
    test_split: str | None = None
    test_path: str | None = None

    def faults(self) -> list[str]:
        """Keys that contradict each other."""
        if (self.path is None) != (self.hub is None):
            return []
        return [f"dataset.path is {self.path!r} and dataset.hub is {self.hub!r}; give exactly one of them"]


def build(options: dict, *, task: Task, out_dir: Path, seed: int) -> dict[str, list[Row]]:
    """The rows as `{"train", "validation", "test"}`. Raises `UserError` that lists all their faults."""
    return build_splits(options, own=Options, read=read, task=task, out_dir=out_dir, seed=seed)


def read(options: Options, *, is_test: bool, faults: list[str]) -> tuple[Iterator[Located], Path | None]:
    """The raw rows of the training or test source, and the folder of relative image paths (None for the hub)."""
    path = (options.test_path if is_test else None) or options.path
    split = (options.test_split if is_test else None) or options.split
    if path is None:
        return read_hub(options.hub, split=split, revision=options.revision), None
    key = "dataset.test_path" if is_test and options.test_path else "dataset.path"
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return read_path(Path(path), key=key, split=split, faults=faults), folder
