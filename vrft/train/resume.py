"""Training that goes on after anything: the trainer's own checkpoints, whole or not there, with all that it holds.

transformers saves weights, optimizer, scheduler, random states and the position in the data, file after file into the
final folder. Missing for a run that ends with the same bits: what GRPO has generated and not yet used, a reference
model that moves, and a folder that is never half written.
"""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from safetensors.torch import load_file, load_model, save_file, save_model
from trl.trainer.utils import RepeatSampler

from vrft.errors import UserError, phase
from vrft.files import DamagedFolderError, check_whole, publish
from vrft.train.alarms import NonFiniteError, agreed_maximum
from vrft.train.callbacks import Validation
from vrft.train.deepspeed_state import named_once, readable_state, recount_steps
from vrft.train.micro_batches import in_pieces

_NEARLY_FULL = 2**20  # bytes left
_REFERENCE = "reference.safetensors"


def newest_checkpoint(folder: Path) -> Path | None:
    """The trainer's checkpoint with the most steps in `folder` that is whole, or None.

    Damaged ones are named on the standard error and passed over.
    """
    for path in reversed(_checkpoints(folder)):
        try:
            check_whole(path)
        except DamagedFolderError as error:
            print(f"warning: {error}; passed over", file=sys.stderr)
        else:
            return path
    return None


def step_of(checkpoint: Path) -> int:
    """The step at which a trainer's checkpoint was saved, by its name."""
    return int(checkpoint.name.partition("-")[2])


def _checkpoints(folder: Path) -> list[Path]:
    """The trainer's checkpoints in a folder, whole or not, the newest last."""
    return sorted((path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()), key=step_of)


@contextmanager
def _no_code(checkpoint: str | None) -> Iterator[None]:
    """Torch refuses files that would run code; say so with the checkpoint's name."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(f"{checkpoint} holds more than tensors and plain values, and is not loaded: {error}") from None


class Resumable:
    """Mixed into a transformers trainer: its checkpoints appear complete, hold all its state, and older ones go.

    The newest `args.save_total_limit` stay. counts: of what happened so far, by name, to be gone on with.
    on_batch: called with the step and the `row_id`s of each batch before its loss is computed.
    stops_on_non_finite: True to raise `NonFiniteError` before the optimizer steps on what is no number.
    """

    counts: Counter | None = None
    validation: Validation | None = None
    on_batch: Callable[[int, list[str]], None] | None = None
    stops_on_non_finite = False
    _odd: tuple[str, float, Sequence[str]] | None = None  # of this step: what is no number, it, and on which rows
    _rows: Sequence[str] = ()  # of this step so far
    _computed: Sequence[str] = ()  # of the batch at hand
    _sampler: Any = None
    _staging: Path | None = None
    _resumed_step: int | None = None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._written: set[str] = set()  # names of checkpoints

    def _get_train_sampler(self, *args, **kwargs) -> Any:
        self._sampler = super()._get_train_sampler(*args, **kwargs)
        return self._sampler

    def _run_epoch(self, *args, epoch: int, epochs_trained: int, **kwargs) -> None:
        if isinstance(self._sampler, RepeatSampler) and epoch == epochs_trained:
            for _ in range(epochs_trained):  # GRPO's draws one epoch's order after the other; the others go by number
                next(iter(self._sampler))
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            # It would take a step before it looks.
            super()._run_epoch(*args, epoch=epoch, epochs_trained=epochs_trained, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: Any, *args, **kwargs) -> torch.Tensor:
        ids = [row["row_id"] for row in inputs] if isinstance(inputs, list) else inputs.pop("row_id")
        rows = sorted(set(ids))
        if self.on_batch:
            self.on_batch(self.state.global_step + 1, rows)
        self._computed = rows
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._note_non_finite("loss", loss, rows)
        self._rows = [*self._rows, *rows]
        return loss

    def compute_loss(self, model: torch.nn.Module, inputs: Any, *args, **kwargs) -> Any:
        """Raises `NonFiniteError` under DeepSpeed, whose backward also steps."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.is_deepspeed_enabled and isinstance(loss, torch.Tensor):
            self._note_non_finite("loss", loss.detach(), self._computed)
            self._raise_if_odd()
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Called when the gradients are there, just before the optimizer steps. Raises `NonFiniteError`."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._note_non_finite("gradient", norm, self._rows)
        self._raise_if_odd()
        self._rows = ()
        return norm

    def _raise_if_odd(self) -> None:
        """On all processes, if something is no number on one."""
        odd, self._odd = self._odd, None
        if agreed_maximum(odd is not None, self.args):
            raise NonFiniteError(_non_finite_words([one for one in gather_object([odd]) if one]))

    def _note_non_finite(self, what: str, value: Any, rows: Sequence[str]) -> None:
        number = float(0.0 if value is None else value)
        if self.stops_on_non_finite and self._odd is None and not math.isfinite(number):
            self._odd = (what, number, rows)

    def create_model_card(self, *_, **__) -> None:
        """TRL would write one of its own into `checkpoints/`, which knows neither the model nor the task."""

    def evaluate(self, **_) -> dict[str, float]:
        """Stands in for transformers' own, which would compute a loss."""
        self.control.should_evaluate = False  # or the end of an epoch would ask again
        self.validation.take(self.state)
        return {}

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict and named_once(self.model, state_dict))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.state.global_step == self._resumed_step:
            return  # nothing has happened since, and what is there was found whole
        parent = Path(self.args.output_dir)
        folder = parent / f"checkpoint-{self.state.global_step}"
        self._staging = parent / "checkpoint.partial"
        is_main = self.args.should_save
        try:
            if is_main:
                shutil.rmtree(self._staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self._save_own_state(self._staging / folder.name)
            self.accelerator.wait_for_everyone()
            if is_main:
                for path in (self._staging / folder.name).glob("*"):
                    if path.name == "training_args.bin" or path.suffix == ".py":
                        path.unlink()  # a pickle, and DeepSpeed's scripts, that nobody needs
                publish(self._staging / folder.name, folder)  # over a damaged one that was passed over
                self._written.add(folder.name)
                self._prune(parent)
        except RuntimeError as error:
            if shutil.disk_usage(parent).free > _NEARLY_FULL:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error  # torch does not say it
        finally:
            if is_main:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        self.accelerator.wait_for_everyone()

    def _prune(self, parent: Path) -> None:
        """Remove what a newly completed checkpoint makes superfluous."""
        found = _checkpoints(parent)
        begun = self._resumed_step or 0
        damaged = [path for path in found if step_of(path) > begun and path.name not in self._written]  # passed over
        good, limit = [path for path in found if path not in damaged], self.args.save_total_limit
        for path in [*damaged, *(good[:-limit] if limit and limit > 0 else ()), *parent.glob("*.previous")]:
            shutil.rmtree(path)

    def _save_own_state(self, folder: Path) -> None:
        """What transformers does not know of: each process's part of the generation, and the reference model."""
        state: dict[str, Any] = {"counts": self.counts, "n_tokens": getattr(self, "_total_train_tokens", None)}
        tensors = {}
        if hasattr(self, "_buffered_inputs"):
            is_between = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
            buffer = [] if is_between else self._buffered_inputs
            state |= {"step": self._step, "accumulation": self.args.gradient_accumulation_steps, "buffer": []}
            for number, batch in enumerate(buffer):
                held = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
                tensors |= {f"{number}/{name}": value.clone().contiguous() for name, value in held.items()}
                state["buffer"].append({name: value for name, value in batch.items() if name not in held})
        own = self._own_files(folder)
        own["tensors"].parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, own["tensors"])
        own["values"].write_text(json.dumps(state) + "\n", encoding="utf-8")
        if self.args.should_save and self._moves_reference:
            save_model(self.accelerator.unwrap_model(self.ref_model), str(folder / _REFERENCE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if isinstance(self.model, PeftModel):  # a whole model was made from the checkpoint: here its names would differ
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    @phase("loading")
    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, checkpoint: str | None) -> Any:
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, checkpoint)
        with readable_state(), _no_code(checkpoint):
            made = super()._prepare_for_training(max_steps, train_dataloader, checkpoint)
        if checkpoint:
            recount_steps(self.model_wrapped)
        return made

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _no_code(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _no_code(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        self._resumed_step = step_of(folder)
        own = self._own_files(folder)
        state = json.loads(own["values"].read_text(encoding="utf-8"))
        if self.counts is not None:
            self.counts.update(state["counts"])
        if state["n_tokens"] is not None:
            self._total_train_tokens = state["n_tokens"]  # which SFT logs
        if hasattr(self, "_buffered_inputs"):
            self._step = state["step"]
            buffer = state["buffer"]
            n_pieces, rest = divmod(self.args.gradient_accumulation_steps, state.get("accumulation") or 1)
            for name, value in load_file(own["tensors"]).items():
                number, _, field = name.partition("/")
                buffer[int(number)][field] = value.to(self.args.device)
            if state.get("accumulation") and (n_pieces, rest) != (1, 0):  # the micro-batches are smaller now
                self._step = self._step * self.args.gradient_accumulation_steps // state["accumulation"]
                if buffer and rest:
                    raise UserError(
                        f"{folder} holds {state['accumulation']} micro-batches a step, which cannot be cut into "
                        f"{self.args.gradient_accumulation_steps}; choose a memory.completions_per_device that divides"
                    )
                buffer = [piece for batch in buffer for piece in in_pieces(batch, n_pieces)]
            self._buffered_inputs = buffer or None
        if self._moves_reference:
            load_model(self.accelerator.unwrap_model(self.ref_model), str(folder / _REFERENCE))

    @property
    def _moves_reference(self) -> bool:
        return getattr(self.args, "sync_ref_model", False) and self.ref_model is not None

    def _own_files(self, folder: Path) -> dict[str, Path]:
        stem = folder / "vrft" / f"rank_{self.args.process_index}"
        return {"tensors": stem.with_suffix(".safetensors"), "values": stem.with_suffix(".json")}


def _non_finite_words(found: Sequence[tuple[str, float, Sequence[str]]]) -> str:
    """What is no number, and on which rows of all processes.

    Where a loss is none, the gradients of every process are none either, and say nothing about its rows.
    """
    found = [one for one in found if one[0] == "loss"] or found
    what, number, _ = found[0]
    named = ", ".join(sorted({row for _, _, rows in found for row in rows}))
    return f"the {what} is {number} in the batch of rows {named}"
