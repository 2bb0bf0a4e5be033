"""Preparation of batches ahead of their step, in a thread, so that a GPU does not wait for them."""

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

from vecall.training.any_batch import AnyBatch

_DEPTH = 4  # batches that wait
_POLL_SECONDS = 0.1  # how often the thread looks whether its batches are still wanted


class Batches(Protocol):
    """Batches of an epoch."""

    def __len__(self) -> int:
        """Return the number of batches."""

    def __iter__(self) -> Iterator[AnyBatch]:
        """Build the batches."""


class PrefetchedBatches:
    """Batches of an epoch that a thread builds ahead, in page-locked memory, which is copied while a step runs.

    Args:
        batches: The batches.
        is_pinned: Whether the tensors are copied to page-locked memory; needs a GPU.
    """

    def __init__(self, batches: Batches, *, is_pinned: bool) -> None:
        self._batches, self._is_pinned = batches, is_pinned

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[AnyBatch]:
        """Yield the batches in their order.

        Raises:
            Exception: What building a batch raised.
        """
        ready: queue.Queue[AnyBatch | BaseException | None] = queue.Queue(_DEPTH)
        is_abandoned = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, is_abandoned), name="prefetch", daemon=True)
        thread.start()
        try:
            while (batch := ready.get()) is not None:
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
        finally:
            is_abandoned.set()
            thread.join()

    def _fill(
        self,
        ready: "queue.Queue[AnyBatch | BaseException | None]",
        is_abandoned: threading.Event,
    ) -> None:
        def put(entry: AnyBatch | BaseException | None) -> None:
            while not is_abandoned.is_set():
                with suppress(queue.Full):
                    ready.put(entry, timeout=_POLL_SECONDS)
                    return

        try:
            for batch in self._batches:
                if is_abandoned.is_set():
                    return
                put(batch.map_tensors(lambda tensor: tensor.pin_memory()) if self._is_pinned else batch)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            put(error)
        else:
            put(None)
