"""Choice of the number of training threads: measured once and kept with the run.

A resumed run must use the same number, because the result of a parallel sum of floats depends on it. See
docs/decisions/0012-waiting-threads.md.
"""

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
from vecall.runtime.durable_files import atomic_write
from vecall.training.any_batch import AnyBatch
from vecall.training.distributed import ProcessGroup, run_on_main
from vecall.training.module import TwoTowerModule

logger = logging.getLogger(__name__)

THREADS_FILE = "threads.json"
_TIMING_ROUNDS = 5  # steps timed with each number of threads
_MAX_TIMING_SECONDS = 10.0  # for all rounds
_MIN_SPEEDUP = 1.05  # of a single thread over all threads; below it, all threads are used


@contextmanager
def use_fastest_thread_count(
    module: TwoTowerModule, directory: Path, group: ProcessGroup | None = None
) -> Iterator[None]:
    """Set torch's number of threads to the one with which a training step is fastest; restore it on exit.

    Measures on a CPU only, and only if OMP_NUM_THREADS is not set; else the number stays as it is.

    Args:
        module: Module whose steps are timed; its state is left as it was.
        directory: Directory of the run. The number is read from its `threads.json`, or measured and written there.
        group: Processes that train together, all with the number of the first one; None for a single process.

    Raises:
        TrainingError: `threads.json` cannot be read.
    """
    previous_count = torch.get_num_threads()
    torch.set_num_threads(
        run_on_main(group, lambda: _load_thread_count(directory) or _choose_thread_count(module, directory))
    )
    try:
        yield
    finally:
        torch.set_num_threads(previous_count)


def _load_thread_count(directory: Path) -> int | None:
    path = directory / THREADS_FILE
    try:
        thread_count = json.loads(path.read_text(encoding="utf-8"))["threads"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error
    if not isinstance(thread_count, int) or thread_count < 1:
        raise TrainingError(f"{path}: expected a number of threads of at least 1, got {thread_count!r:.80}")
    return thread_count


def _choose_thread_count(module: TwoTowerModule, directory: Path) -> int:
    available = torch.get_num_threads()
    chosen = available
    if available > 1 and "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        single, parallel = _time_steps(module, (1, available))
        chosen = 1 if _MIN_SPEEDUP * single < parallel else available
        logger.info(
            "training uses %d threads: a step takes %.0f ms on 1 thread, %.0f ms on %d threads",
            chosen,
            1e3 * single,
            1e3 * parallel,
            available,
        )
    atomic_write(directory / THREADS_FILE, json.dumps({"threads": chosen}).encode())
    return chosen


def _time_steps(module: TwoTowerModule, thread_counts: tuple[int, int]) -> list[float]:
    """Return the median seconds of a forward and backward pass with each number of threads.

    No weight is updated; buffers and the state of the random generator are restored.
    """
    rng_state = torch.get_rng_state()
    constant = module.towers.spectral_vectors  # which may be as large as a table
    buffers = {name: buffer.clone() for name, buffer in module.towers.named_buffers() if buffer is not constant}
    seconds: dict[int, list[float]] = {count: [] for count in thread_counts}
    module.on_fit_start()
    module.train()
    batches: Iterator[AnyBatch] = iter(module.train_dataloader())
    batch = next(batches)
    deadline = time.perf_counter() + _MAX_TIMING_SECONDS
    for round_number in range(_TIMING_ROUNDS + 1):
        for count in thread_counts:
            torch.set_num_threads(count)
            start = time.perf_counter()
            module.training_step(batch, 1).backward()  # type: ignore[no-untyped-call]
            if round_number > 0:  # round 0 is the warm-up
                seconds[count].append(time.perf_counter() - start)
            module.zero_grad(set_to_none=True)
            module.discard_reads()
        if round_number > 0 and time.perf_counter() > deadline:
            break
    with torch.no_grad():
        for name, buffer in buffers.items():
            module.towers.get_buffer(name).copy_(buffer)
    torch.set_rng_state(rng_state)
    return [median(seconds[count]) for count in thread_counts]
