"""Where rows come from: each builder is a module with `build(options, *, task, out_dir, seed)`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from vrft.errors import UserError
from vrft.rows import Row

BUILDERS = ("digits", "records", "built", "coco", "lvis", "folders", "reasonseg", "refcoco")


def load_builder(name: str) -> Callable[..., dict[str, list[Row]]]:
    """Return the `build` function of that name. Raises `UserError` for an unknown one."""
    if name not in BUILDERS:
        raise UserError(f"dataset.builder is {name!r}; known builders: {', '.join(BUILDERS)}")
    return importlib.import_module(f"vrft.data.{name}").build
