"""The bytes of all live tensors, counted while a program runs, on any device, also the meta device."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """While active, counts every storage from the operation that creates it until it is freed.

    kind: under which new storages are counted. now: live bytes by kind. peak: `now` at its largest sum, which is
    peak_bytes. Scratch memory inside a kernel is not seen.
    """

    def __init__(self, *, device: str | None = None) -> None:
        """device: the type of device to count on; None for every one."""
        super().__init__()
        self.kind = "activations"
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.total = self.peak_bytes = 0
        self._device = device
        self._known = WeakIdKeyDictionary()

    def count(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Count tensors that exist already, such as a model's weights."""
        for tensor in tensors:
            self._note(tensor, kind)

    def recount(self, tensor: torch.Tensor, kind: str) -> None:
        """From now on count a tensor's storage under another kind."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            known = self._known[storage]
            self.now[known[0]] -= known[1]
            self.now[kind] += known[1]
            known[0] = kind

    def reset_peak(self) -> None:
        """Start a new peak from what is live now."""
        self.peak, self.peak_bytes = Counter(self.now), self.total

    @contextlib.contextmanager
    def counting(self, kind: str) -> Iterator[None]:
        """Within, count new storages under `kind`."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        made = self.call(func, args, kwargs or {})
        for tensor in tensors_in((made,)):
            self._note(tensor, self.kind)
        return made

    def call(self, func, args: tuple, kwargs: dict) -> Any:
        """Run one operation."""
        return func(*args, **kwargs)

    def _note(self, tensor: torch.Tensor, kind: str) -> None:
        if self._device is not None and tensor.device.type != self._device:
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if not size or storage in self._known:
            return
        known = [kind, size, None]
        known[2] = weakref.ref(storage, functools.partial(self._forget, known))
        self._known[storage] = known
        self.now[kind] += size
        self.total += size
        if self.total > self.peak_bytes:
            self.peak, self.peak_bytes = Counter(self.now), self.total

    def _forget(self, known: list, _: Any) -> None:
        kind, size, _ = known
        self.now[kind] -= size
        self.total -= size


def tensors_in(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among an operation's arguments or results, those in lists too; torch's own walk takes ten times as
    long."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found
