"""The trainer's callbacks: the metrics file, the progress bar, signals, validation and the best checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.models.utils import unwrap_model_for_generation

from vrft.errors import UserError
from vrft.files import append_lines
from vrft.terminal import progress_bar
from vrft.train.alarms import agreed_maximum
from vrft.train.best_and_last import save_checkpoint


class MetricsFile(TrainerCallback):
    """Appends each log of the main process to a JSON-lines file, with its step; NaN and infinity as text."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        if "train_runtime" in (logs or {}):
            return  # transformers' summary, which after a resume covers this process's steps only
        entry = {"step": state.global_step}
        for name, value in (logs or {}).items():
            is_odd = isinstance(value, float) and not math.isfinite(value)
            entry[name] = str(value) if is_odd else value
        append_lines(self.path, [entry])


class ProgressBar(TrainerCallback):
    """One progress bar for the whole training, with the latest values of the named metrics beside it."""

    def __init__(self, shown: dict[str, str]) -> None:
        self.shown = shown  # name in the logs -> short name on the bar
        self.figures: dict[str, str] = {}
        self.bar: Any = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            self.bar = progress_bar(total=state.max_steps, initial=state.global_step, desc="train", unit="step")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self.bar is None:
            return
        for name, short in self.shown.items():
            if (logs or {}).get(name) is not None:
                self.figures[short] = f"{logs[name]:.3f}"
        self.bar.set_postfix(self.figures, refresh=False)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint and stops after the step in which any process received a signal.

    received: returns the signal that this process has received, or None.
    """

    def __init__(self, received: Callable[[], int | None]) -> None:
        self.received = received

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if agreed_maximum(self.received() is not None, args):
            control.should_save = control.should_training_stop = True


class Validation(TrainerCallback):
    """Computes the validation metric every `eval_steps` steps and at both ends, and keeps the best checkpoint.

    The trainer calls `take`. No reference to the trainer is kept, so the trained model can be released after training.

    evaluate: `evaluate(model, synced_gpus=…) -> {name: {"value", "n", ...}}` on the validation split; every process
        calls it. synced_gpus: True if the weights are sharded, so that all processes must make the same forward calls.
    metric: which of these is to be maximised.
    history: `[{"step", "value", "n"}]`, in order; in a resumed run with those before the resume.
    best: the metric of the checkpoint that `folder` holds, or minus infinity.
    """

    def __init__(
        self,
        evaluate: Callable,
        *,
        metric: str,
        eval_steps: int,
        processor,
        folder: Path,
        card: dict,
        history: list[dict],
        best: float,
    ) -> None:
        self.evaluate, self.metric, self.eval_steps = evaluate, metric, eval_steps
        self.processor, self.folder, self.card = processor, folder, card
        self.history = history
        self.best = best

    def on_step_end(self, args, state, control, **kwargs) -> None:
        is_interrupted = control.should_training_stop and state.global_step < state.max_steps
        control.should_evaluate = self.is_due(state) and not is_interrupted  # the trainer then calls `take`

    def is_due(self, state) -> bool:
        """True if the metric is to be taken at this step and was not yet."""
        is_at_step = state.global_step % self.eval_steps == 0 or state.global_step == state.max_steps
        return is_at_step and not any(entry["step"] == state.global_step for entry in self.history)

    def take(self, trainer: transformers.Trainer) -> None:
        """Evaluate the trainer's policy as it is, log the metrics, and save it if it is the best so far."""
        # Under ZeRO-3 the weights are gathered for the evaluation, or all processes generate each token together.
        is_gathered = getattr(trainer.args, "ds3_gather_for_generation", True)
        with unwrap_model_for_generation(
            trainer.model_wrapped, trainer.accelerator, gather_deepspeed3_params=is_gathered
        ) as policy:
            metrics = self.evaluate(policy, synced_gpus=is_deepspeed_zero3_enabled() and not is_gathered)
        figure = metrics[self.metric]
        if figure["value"] is None:
            raise UserError(
                f"{self.metric} has no value on the validation split: none of its rows has an object to find"
            )
        entry = {"step": trainer.state.global_step, "value": figure["value"], "n": figure["n"]}
        self.history.append(entry)
        logs = {f"validation/{name}": metric["value"] for name, metric in metrics.items()}
        # Not the trainer's own log(): TRL's would flush its running training metrics into this entry.
        transformers.Trainer.log(trainer, logs | {"validation/n": entry["n"]})
        if entry["value"] > self.best:
            self.best = entry["value"]
            card = self.card | {"step": entry["step"], "validation": {self.metric: entry}}
            save_checkpoint(trainer, self.processor, self.folder, card)
