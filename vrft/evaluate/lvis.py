"""Box AP and AR of LVIS by the official package `lvis`, with the workarounds that it needs."""

from __future__ import annotations

import copy
import importlib
import logging
import types
from collections.abc import Collection, Sequence

import numpy as np

from vrft.errors import UserError
from vrft.evaluate.bootstrap import LVIS_FIGURES, lvis_matches
from vrft.evaluate.coco import LVIS_LIMIT, Evaluation, figures_by_class
from vrft.evaluate.opencv import import_opencv


def evaluate_lvis(dataset: dict, detections: Sequence[dict], category_ids: Collection) -> Evaluation:
    """LVIS's figures of boxes over these categories. The limit of 300 detections per image is over all categories."""
    evaluator = _lvis_evaluator(import_lvis(), dataset, detections)
    evaluator.params.cat_ids = sorted(category_ids)
    evaluator.run()
    found = {name: None if value < 0 else float(value) for name, value in evaluator.get_results().items()}
    precision, recall = (evaluator.eval[key][..., None] for key in ("precision", "recall"))
    by_class = figures_by_class(precision, recall, LVIS_FIGURES, evaluator.params.area_rng_lbl, [LVIS_LIMIT])
    return Evaluation({name: found[name] for name in LVIS_FIGURES}, by_class, lvis_matches(evaluator))


def _lvis_evaluator(lvis, dataset: dict, detections: Sequence[dict]):
    class Given(lvis.LVIS):
        """Ground truth from memory: the official class reads only files."""

        def _load_json(self, path):
            return path

    gold = Given(copy.deepcopy(dataset))
    # The official reader of results fails for an empty list: it gets a placeholder box, which is removed afterwards.
    box = {"image_id": dataset["images"][0]["id"], "category_id": dataset["categories"][0]["id"], "score": 0.0}
    found = lvis.LVISResults(gold, [dict(one) for one in detections] or [box | {"bbox": [0, 0, 1, 1]}])
    if not detections:
        found.dataset["annotations"] = []
        found._create_index()
    return lvis.LVISEval(gold, found, iou_type="bbox")


def import_lvis() -> types.ModuleType:
    """The package `lvis`, without log output, for any numpy. Raises `UserError` if it or OpenCV cannot be imported.

    Release 0.5.3 uses `numpy.float`, which numpy 1.24 removed: the builtin `float` is put in its place. On import the
    package configures the root logger, which is undone. It warns of faults that are checked before: it is silenced.
    """
    import_opencv("the package lvis, the official scorer of LVIS,")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        package = importlib.import_module("lvis")
    except ImportError as error:
        raise UserError(f"the package lvis is not installed ({error}); pip install 'lvis>=0.5.3'") from None
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    logging.getLogger("lvis").setLevel(logging.ERROR)
    if "float" not in vars(np):
        np.float = float
    return package
