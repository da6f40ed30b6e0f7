"""Imports OpenCV. It cannot be loaded on machines without display libraries; the message says what to install."""

from __future__ import annotations

import importlib
import types

from vrft.errors import UserError


def import_opencv(what: str) -> types.ModuleType:
    """`cv2`. what: the feature that needs it. Raises `UserError` that names it, and what to install."""
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(
            f"{what} needs OpenCV, which cannot be loaded here: {error}. Install what is missing (on Debian and "
            "Ubuntu: apt-get install libgl1 libglib2.0-0), or the build without a display: pip uninstall "
            "opencv-python, then pip install opencv-python-headless"
        ) from None
