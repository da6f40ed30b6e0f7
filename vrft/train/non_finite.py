"""A loss or gradient that is NaN or infinite: noticed before the optimizer steps on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from accelerate.utils import gather_object

from vrft.train.alarms import agreed_maximum


class NonFiniteError(Exception):
    """A loss or gradient is NaN or infinite; the optimizer has not stepped on it."""


class NonFiniteGuard:
    """Notes the first loss or gradient of a step that is not finite, and raises before the optimizer uses it.

    One optimizer step has one or more batches (gradient accumulation). Every process calls the same methods in the
    same order: the checks are collective.
    """

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on
        self.rows_of_batch: Sequence[str] = ()
        self.rows_of_step: list[str] = []
        self.found: tuple[str, float, Sequence[str]] | None = None  # `loss` or `gradient`, its value, the rows

    def begin_batch(self, rows: Sequence[str]) -> None:
        """rows: the `row_id`s of the batch."""
        self.rows_of_batch = rows

    def end_batch(self, loss: Any) -> None:
        self._note("loss", loss, self.rows_of_batch)
        self.rows_of_step += self.rows_of_batch

    def check_loss(self, loss: Any, args: Any) -> None:
        """Raises `NonFiniteError` on all processes if the batch's loss is not finite on one."""
        self._note("loss", loss, self.rows_of_batch)
        self._raise_if_found(args)

    def check_gradient(self, norm: Any, args: Any) -> None:
        """Raises `NonFiniteError` on all processes if a loss or the gradient of the step is not finite on one."""
        self._note("gradient", norm, self.rows_of_step)
        self._raise_if_found(args)
        self.rows_of_step = []

    def _note(self, what: str, value: Any, rows: Sequence[str]) -> None:
        if not self.is_on or self.found is not None or value is None:
            return
        number = float(value)
        if not math.isfinite(number):
            self.found = (what, number, list(rows))

    def _raise_if_found(self, args: Any) -> None:
        found, self.found = self.found, None
        # Processes agree first: one that raises alone would leave the others waiting in a collective call.
        if self.is_on and agreed_maximum(found is not None, args):
            raise NonFiniteError(_message([one for one in gather_object([found]) if one]))


def _message(found: Sequence[tuple[str, float, Sequence[str]]]) -> str:
    """What is not finite, and on which rows of all processes.

    A loss that is not finite on one process makes the gradients of every process so; these say nothing about rows.
    """
    found = [one for one in found if one[0] == "loss"] or found
    what, number, _ = found[0]
    named = ", ".join(sorted({row for _, _, rows in found for row in rows}))
    return f"the {what} is {number} in the batch of rows {named}"
