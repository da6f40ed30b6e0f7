"""TODO"""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import types
import warnings
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from vrft.errors import UserError
from vrft.evaluate.bootstrap import (
    LVIS_FIGURES,
    lvis_matches,
)
from vrft.evaluate.coco import (
    LVIS_LIMIT,
    Evaluation,
    _by_class,
)
from vrft.evaluate.opencv import _opencv_message


def evaluate_lvis(dataset: dict, detections: Sequence[dict], category_ids: Collection) -> Evaluation:
    """LVIS's figures of boxes, over these categories; the 300 surest of an image are taken of all categories."""
    with lvis_package() as lvis:
        evaluator = _lvis_evaluator(lvis, dataset, detections)
        evaluator.params.cat_ids = sorted(category_ids)
        evaluator.run()
    found = {name: None if value < 0 else float(value) for name, value in evaluator.get_results().items()}
    precision, recall = (evaluator.eval[key][..., None] for key in ("precision", "recall"))
    by_class = _by_class(precision, recall, LVIS_FIGURES, evaluator.params.area_rng_lbl, [LVIS_LIMIT])
    return Evaluation({name: found[name] for name in LVIS_FIGURES}, by_class, lvis_matches(evaluator))


def _lvis_evaluator(lvis, dataset: dict, detections: Sequence[dict]):
    class Given(lvis.LVIS):
        """Ground truth from memory: the official class reads only files."""

        def _load_json(self, path):
            return path

    gold = Given(copy.deepcopy(dataset))
    # The official reader of results fails for an empty list: one box stands in until the reader is done.
    box = {"image_id": dataset["images"][0]["id"], "category_id": dataset["categories"][0]["id"], "score": 0.0}
    found = lvis.LVISResults(gold, [dict(one) for one in detections] or [box | {"bbox": [0, 0, 1, 1]}])
    if not detections:
        found.dataset["annotations"] = []
        found._create_index()
    return lvis.LVISEval(gold, found, iou_type="bbox")


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
