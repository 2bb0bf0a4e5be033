"""How many threads a training takes: measured once, kept with the run, since sums of floats depend on it."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from vecall.errors import TrainingError
from vecall.training.module import AnyBatch, TwoTowerModule

logger = logging.getLogger(__name__)

THREADS_FILE = "threads.json"
_TIMING_ROUNDS = 5  # steps timed with each number
_MAX_TIMING_SECONDS = 10.0  # of timing in all
_MIN_SPEEDUP = 1.05  # times as fast with fewer threads, or all are taken


@contextmanager
def use_fastest_thread_count(module: TwoTowerModule, directory: Path) -> Iterator[None]:
    """Use the number of threads with which a step is quickest, on a CPU; the number is kept in `directory`.

    Raises:
        TrainingError: the number that was kept cannot be read.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(_load_thread_count(directory) or _choose_thread_count(module, directory))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load_thread_count(directory: Path) -> int | None:
    try:
        threads = json.loads((directory / THREADS_FILE).read_text(encoding="utf-8"))["threads"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{directory / THREADS_FILE}: cannot be read: {error}") from error
    if not isinstance(threads, int) or threads < 1:
        raise TrainingError(f"{directory / THREADS_FILE}: expected a number of threads, got {threads!r:.80}")
    return threads


def _choose_thread_count(module: TwoTowerModule, directory: Path) -> int:
    available = torch.get_num_threads()
    threads = available
    if available > 1 and "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        one, several = _time_steps(module, (1, available))
        threads = 1 if _MIN_SPEEDUP * one < several else available
        logger.info("a step takes %.0f ms on one thread, %.0f on %d", 1e3 * one, 1e3 * several, available)
    fresh = directory / f"tmp-{THREADS_FILE}"
    fresh.write_text(json.dumps({"threads": threads}), encoding="utf-8")
    fresh.replace(directory / THREADS_FILE)
    return threads


def _time_steps(module: TwoTowerModule, thread_counts: tuple[int, int]) -> list[float]:
    """Median seconds of a step's two passes with each number of threads; nothing is learned."""
    generator, buffers = torch.get_rng_state(), {name: x.clone() for name, x in module.towers.named_buffers()}
    seconds: dict[int, list[float]] = {number: [] for number in thread_counts}
    module.on_fit_start()
    module.train()
    batches: Iterator[AnyBatch] = iter(module.train_dataloader())
    batch = next(batches)
    ends = time.perf_counter() + _MAX_TIMING_SECONDS
    for turn in range(_TIMING_ROUNDS + 1):
        for number in thread_counts:
            torch.set_num_threads(number)
            began = time.perf_counter()
            module.training_step(batch, 1).backward()  # type: ignore[no-untyped-call]
            if turn:  # the first of each warms up
                seconds[number].append(time.perf_counter() - began)
            module.zero_grad(set_to_none=True)
        if turn and time.perf_counter() > ends:
            break
    with torch.no_grad():
        for name, buffer in module.towers.named_buffers():
            buffer.copy_(buffers[name])
    torch.set_rng_state(generator)
    return [median(seconds[number]) for number in thread_counts]
