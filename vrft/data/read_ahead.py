"""Decodes the images of the next rows on all cores, while earlier rows are checked."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from typing import Any, TypeVar

from vrft.data.images import ImageReader, Unread, decode_images
from vrft.errors import UserError

N_ROWS = 32
"""Rows per unit of work. Embedded images stay in memory until they are decoded."""
N_ALONE = 256
"""Images that this process decodes before it starts others, which takes half a second."""

Item = TypeVar("Item")


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_ahead(
    items: Iterable[Item], images: ImageReader, *, values: Callable[[Item], Iterable[Any]], n_processes: int
) -> Iterator[Item]:
    """Yield the items in their order. When an item is yielded, `images` has read the images among its `values`.

    At most `3 * n_processes` units of work are queued. Raises `UserError` if a process is killed.
    """
    items, waiting, n_images, pool = iter(items), deque(), 0, None
    try:
        while batch := list(islice(items, N_ROWS)):
            unread = images.unread(value for item in batch for value in values(item))
            n_images += len(unread)
            if pool is None and n_processes > 1 and n_images > N_ALONE:
                pool = _start(n_processes)
            work = pool.submit(decode_images, unread, images.out_dir) if pool and unread else None
            waiting.append((batch, unread, work))
            while len(waiting) > (3 * n_processes if pool else 0):
                yield from _finished(images, *waiting.popleft())
        while waiting:
            yield from _finished(images, *waiting.popleft())
    except BrokenProcessPool:
        raise UserError(
            "A process that decoded images was killed, probably because memory ran out; lower dataset.n_processes. "
            "The same command resumes after the images that were checked."
        ) from None
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _finished(images: ImageReader, batch: list[Item], unread: list[Unread], work: Future | None) -> list[Item]:
    images.keep(unread, work.result() if work else decode_images(unread, images.out_dir))
    return batch


def _start(n_processes: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks that other threads hold
    return ProcessPoolExecutor(n_processes, mp_context=context, initializer=_follow_parent)


def _follow_parent() -> None:
    """Ignore Ctrl-C, which the parent handles. Exit when the parent is gone: if killed, it cannot stop its children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
