"""The builders of rows. Each is a function `build(options, *, task, out_dir, seed)`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from vrft.errors import UserError
from vrft.tasks.rows import Row

BUILDERS = {  # `dataset.builder`: module and function
    "digits": "digits:build",
    "records": "json_rows:build",
    "built": "prebuilt:build",
    "coco": "coco_rows:build",
    "lvis": "coco_rows:build_lvis",
    "folders": "folders:build",
    "reasonseg": "reasonseg:build",
    "refcoco": "refcoco:build",
}


def load_builder(name: str) -> Callable[..., dict[str, list[Row]]]:
    """Return the builder of that name. Raises `UserError` for an unknown one."""
    if name not in BUILDERS:
        raise UserError(f"dataset.builder is {name!r}; known builders: {', '.join(BUILDERS)}")
    module, _, function = BUILDERS[name].partition(":")
    return getattr(importlib.import_module(f"vrft.data.{module}"), function)
