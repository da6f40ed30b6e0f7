"""OpenCV, which cannot be loaded on machines without a screen's libraries: the message says what to install."""

from __future__ import annotations

import importlib
import types

from vrft.errors import UserError


def import_opencv(what: str) -> types.ModuleType:
    """`cv2`. Raises `UserError` where it cannot be loaded, naming `what` needs it and what to install."""
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(
            f"{what} needs OpenCV, which cannot be loaded here: {error}. Install what is missing (on Debian and "
            "Ubuntu: apt-get install libgl1 libglib2.0-0), or the build that needs no screen: pip uninstall "
            "opencv-python, then pip install opencv-python-headless"
        ) from None
