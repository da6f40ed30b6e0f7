"""A trainer's checkpoints: written whole or not at all, with all the state that a resumed run needs to the last bit.

transformers saves weights, optimizer, scheduler, random states and the position in the data, file after file into the
final folder. Three things are missing for a resumed run that ends with the same bits: completions that GRPO has
generated and not yet used, a reference model that moves, and a folder that is never half written.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from transformers import Trainer

from vrft.errors import UserError
from vrft.files import DamagedFolderError, check_whole, flush_to_disk, publish, remove
from vrft.train.micro_batches import in_pieces

_PROBE = 2**20  # bytes
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


def remove_superfluous(folder: Path, *, limit: int | None, resumed_step: int, written: Collection[str]) -> None:
    """Remove the checkpoints that a newly completed one makes superfluous; the newest `limit` good ones stay.

    limit: None, 0 or less keeps all good ones. resumed_step: where this process resumed, or 0. A checkpoint of a later
    step that this process has not `written` was found damaged and passed over: it takes no good one's place.
    """
    found = _checkpoints(folder)
    damaged = [path for path in found if step_of(path) > resumed_step and path.name not in written]
    good = [path for path in found if path not in damaged]
    for path in [*damaged, *(good[:-limit] if limit and limit > 0 else ()), *folder.glob("*.previous")]:
        remove(path)


@contextmanager
def staged(folder: Path, *, is_main: bool, wait: Callable[[], None]) -> Iterator[Path]:
    """A folder beside `folder` to write a checkpoint in, as `STAGED / folder.name`; published once the block has ended.

    All processes call this; `wait` waits for all. Raises `OSError` where a write failed as the disk takes no more.
    """
    staging = folder.with_name("checkpoint.partial")
    try:
        if is_main:
            remove(staging)
        wait()
        yield staging
        wait()
        if is_main:
            for path in (staging / folder.name).glob("*"):
                if path.name == "training_args.bin" or path.suffix == ".py":
                    path.unlink()  # a pickle, and DeepSpeed's scripts, that nobody needs
            publish(staging / folder.name, folder)  # over a damaged one that was passed over
    except RuntimeError:
        _raise_of_disk(staging)  # torch reports a full disk as a RuntimeError without a cause
        raise
    finally:
        if is_main:
            remove(staging)


def _raise_of_disk(staging: Path) -> None:
    """Raise the `OSError` of the disk if it takes no more after what was written last."""
    files = [path for path in staging.rglob("*") if path.is_file()]
    if files:
        with max(files, key=lambda path: path.stat().st_mtime_ns).open("ab") as file:
            file.write(bytes(_PROBE))
            file.flush()
            flush_to_disk(file.fileno())


@contextmanager
def tensors_only(checkpoint: str | None) -> Iterator[None]:
    """Torch refuses files that would run code; the error then names the checkpoint."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(f"{checkpoint} holds more than tensors and plain values, and is not loaded: {error}") from None


def save_own_state(trainer: Trainer, folder: Path) -> None:
    """Write what transformers does not know of: counts, the generation in use, a reference model that moves.

    Each process writes its own part, as `vrft/rank_N.json` and `vrft/rank_N.safetensors`.
    """
    state: dict[str, Any] = {"counts": trainer.counts, "n_tokens": getattr(trainer, "_total_train_tokens", None)}
    tensors: dict[str, torch.Tensor] = {}
    if hasattr(trainer, "_buffered_inputs"):  # GRPO
        generate_every = trainer.args.steps_per_generation * trainer.num_iterations
        # After their last use TRL still holds the micro-batches, but it generates before it reads them again.
        is_used_up = trainer._step % generate_every == 0
        values, tensors = without_tensors([] if is_used_up else trainer._buffered_inputs)
        state |= {"step": trainer._step, "accumulation": trainer.args.gradient_accumulation_steps, "buffer": values}
    values_file, tensors_file = _own_files(trainer, folder)
    values_file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, tensors_file)
    values_file.write_text(json.dumps(state) + "\n", encoding="utf-8")
    if trainer.args.should_save and _moves_reference(trainer):
        save_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(folder / _REFERENCE))


def load_own_state(trainer: Trainer, folder: Path) -> None:
    """Give a trainer what `save_own_state` has written. Raises `UserError` as `recut` does."""
    values_file, tensors_file = _own_files(trainer, folder)
    state = json.loads(values_file.read_text(encoding="utf-8"))
    if trainer.counts is not None:
        trainer.counts.update(state["counts"])
    if state["n_tokens"] is not None:
        trainer._total_train_tokens = state["n_tokens"]  # which SFT logs
    if hasattr(trainer, "_buffered_inputs"):
        buffer = with_tensors(state["buffer"], load_file(tensors_file), device=trainer.args.device)
        now = trainer.args.gradient_accumulation_steps
        trainer._step, buffer = recut(buffer, state["step"], saved=state.get("accumulation"), now=now, folder=folder)
        trainer._buffered_inputs = buffer or None
    if _moves_reference(trainer):
        load_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(folder / _REFERENCE))


def without_tensors(buffer: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Micro-batches as their plain values, and their tensors by `NUMBER/NAME`: one file for each kind."""
    values, tensors = [], {}
    for number, batch in enumerate(buffer):
        held = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        # Cloned, as micro-batches are views of one generation, and safetensors refuses tensors that share memory.
        tensors |= {f"{number}/{name}": value.clone().contiguous() for name, value in held.items()}
        values.append({name: value for name, value in batch.items() if name not in held})
    return values, tensors


def with_tensors(
    values: Sequence[dict[str, Any]], tensors: dict[str, torch.Tensor], *, device: Any
) -> list[dict[str, Any]]:
    """The micro-batches of `without_tensors`."""
    buffer = [dict(batch) for batch in values]
    for name, value in tensors.items():
        number, _, field = name.partition("/")
        buffer[int(number)][field] = value.to(device)
    return buffer


def recut(
    buffer: list[dict[str, Any]], step: int, *, saved: int | None, now: int, folder: Path
) -> tuple[int, list[dict[str, Any]]]:
    """TRL's step counter and micro-batches where a step has `now` micro-batches and had `saved` when they were saved.

    A run that was out of memory resumes with smaller micro-batches, and TRL counts its steps in micro-batches. saved:
    None in a checkpoint that does not say it. Raises `UserError` where the micro-batches cannot be cut evenly.
    """
    if saved is None or saved == now:
        return step, buffer
    n_pieces, rest = divmod(now, saved)
    if buffer and rest:
        raise UserError(
            f"{folder} holds {saved} micro-batches a step, which cannot be cut into "
            f"{now}; choose a memory.completions_per_device that divides"
        )
    return step * now // saved, [piece for batch in buffer for piece in in_pieces(batch, n_pieces)]


def _moves_reference(trainer: Trainer) -> bool:
    return getattr(trainer.args, "sync_ref_model", False) and trainer.ref_model is not None


def _own_files(trainer: Trainer, folder: Path) -> tuple[Path, Path]:
    """Of this process: the file of plain values, and that of tensors."""
    stem = folder / "vrft" / f"rank_{trainer.args.process_index}"
    return stem.with_suffix(".json"), stem.with_suffix(".safetensors")
