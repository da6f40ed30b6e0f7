"""Official packages that do more than their work when they are imported: imported without it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import types
import warnings
from collections.abc import Iterator

import numpy as np

from vrft.errors import UserError


def import_opencv(what: str) -> types.ModuleType:
    """`cv2`. Raises `UserError` where it cannot be loaded, naming `what` needs it and what to install."""
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(_opencv_message(what, error)) from None


@contextlib.contextmanager
def lvis_package() -> Iterator[types.ModuleType]:
    """The package `lvis` for the length of the block, on any numpy and quiet.

    Release 0.5.3 asks numpy for `float`, which numpy 1.24 dropped; configures the root logger when it is imported;
    warns of what is checked already; and imports OpenCV for pictures that nobody asked for. All of it is put back.
    Raises `UserError` where it cannot be imported.
    """
    try:
        with _logging_kept():
            package = importlib.import_module("lvis")
    except ImportError as error:
        if "lvis" in str(getattr(error, "name", "")):
            raise UserError(f"the package lvis is not installed ({error}); pip install 'lvis>=0.5.3'") from None
        raise UserError(_opencv_message("the package lvis, the official scorer of LVIS,", error)) from None
    evaluator, logger = importlib.import_module("lvis.eval"), logging.getLogger("lvis")
    level = logger.level
    evaluator.np = _numpy_with_float()
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of logger.warn
            yield package
    finally:
        evaluator.np = np
        logger.setLevel(level)


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """Handlers and level of the root logger, as they were before the block."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _numpy_with_float() -> types.ModuleType:
    """A module that has `float` and everything that numpy has; numpy itself is left alone."""
    module = types.ModuleType("numpy_with_float")
    module.float = float
    module.__getattr__ = lambda name: getattr(np, name)
    return module


def _opencv_message(what: str, error: ImportError) -> str:
    return (
        f"{what} needs OpenCV, which cannot be loaded here: {error}. Install what is missing (on Debian and Ubuntu: "
        "apt-get install libgl1 libglib2.0-0), or the build that needs no screen: pip uninstall opencv-python, then "
        "pip install opencv-python-headless"
    )
