"""The stages of a run, base, train and judge, each with one model in memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from vrft.config.schema import Evaluate
from vrft.files import check_whole
from vrft.run.context import RunContext, open_other
from vrft.run.evaluation import evaluate_splits, known_evaluation
from vrft.run.rows import other_names
from vrft.run.training import NON_FINITE, Start, load_policy, open_engine, train


def checkpoints_to_judge(wanted: Evaluate, stopped_by: dict | None) -> tuple[str, list[str]]:
    """Which checkpoint is the run's result, and the names of all to be judged, that one first.

    wanted: the section `evaluate`. stopped_by: the alarm that ended the training, or None. After `non_finite` there is
    no `last`, and with its action `stop` nothing is judged.
    """
    is_best = bool(stopped_by) and stopped_by["action"] == "stop_keep_best"
    after_is = "best" if is_best else wanted.checkpoint
    if not (wanted.train and wanted.after) or (is_non_finite(stopped_by) and not is_best):
        return after_is, []
    also = [] if is_non_finite(stopped_by) else wanted.also
    return after_is, list(dict.fromkeys([after_is, *also]))


def is_non_finite(stopped_by: dict | None) -> bool:
    """True where a loss or gradient that is no number has ended the training."""
    return bool(stopped_by) and stopped_by["rule"] == NON_FINITE


class Stages:
    """The stages of a run. Each works on one model, and what the one before has left is gone when a model is loaded.

    others: the views of the run with which the tasks of `evaluate.others` are judged.
    """

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.others = [open_other(context, name) for name in other_names(context.config)]
        self._path: str | None = None  # of the checkpoint whose weights the model has
        self._model: Any = None

    def base(self) -> dict[str, dict]:
        """Judge the model of `model.path`, unless a run that is resumed has done it. As `judge`."""
        config = self.context.config
        load = open_engine if config.rollout.evaluate else load_policy
        known = [known_evaluation(one, "before") for one in (self.context, *self.others)]
        model = None if all(known) else self._model_of(config.model.path, load)
        return self._evaluated("before", model, known)

    def train(self, start: Start) -> tuple[list[dict], dict | None]:
        """The validation history, and the alarm that ended the training or None; `last` stays in memory if it can."""
        model_config = self.context.config.model
        if start.checkpoint and not model_config.peft:
            # The trainer itself would keep the base weights in silence: saved and live parameter names differ.
            model = self._model_of(str(start.checkpoint))
            model.config._name_or_path = model_config.path  # from where TRL loads the reference model
        else:
            model = self._model_of(model_config.path)
        with self.context.timed("train"):
            outcome = train(self.context, model, start)
        unset_hf_deepspeed_config()  # or a checkpoint would be loaded in parts, one a process
        zero = self.context.config.deepspeed.zero
        self._path = None if zero.get("stage") == 3 else self._folder("last")  # ZeRO-3 leaves each process its part
        return outcome

    def judge(self, name: str) -> dict[str, dict]:
        """Judge a checkpoint: by test set, and by `others/NAME` for each other task, `{protocol: metrics}`."""
        folder = self._folder(name)
        if folder != self._path:
            check_whole(Path(folder))
        return self._evaluated(name, self._model_of(folder), [None] * (1 + len(self.others)))

    def _folder(self, name: str) -> str:
        return str(self.context.run_dir / "checkpoints" / name)

    def _model_of(self, path: str, load: Callable[[RunContext, str], Any] = load_policy) -> Any:
        """The model of a folder or hub name. There is never another beside it, nor what a training has left behind."""
        if path != self._path:
            self._model = self._path = None
        gc.collect()  # trainer, optimizer and reference hold each other in cycles
        torch.cuda.empty_cache()  # nothing without a GPU
        if self._model is None:
            self._model, self._path = load(self.context, path), path
        return self._model

    def _evaluated(self, name: str, model: Any, known: Sequence[dict | None]) -> dict[str, dict]:
        """known: for the run and each of the others what is known already."""
        found = {}
        with self.context.timed(f"evaluate_{name}"):
            for one, by_split in zip((self.context, *self.others), known, strict=True):
                by_split = by_split or evaluate_splits(one, model, one.test_splits, name=name)
                found |= by_split if one.other is None else {f"others/{one.other}": by_split["test"]}
        return found
