"""Profile of a training step by its parts, beside the time of its matrix products alone."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vecall.training import loss_module
from vecall.training.module import TwoTowerModule

_MATMUL_OPS = {"mm", "addmm", "addmm_", "bmm", "baddbmm"}  # each multiplies its last two tensors
_MATMUL_REPETITIONS = 5


class PartTimer:
    """Seconds by part; the time of a nested part does not count for the enclosing one.

    Attributes:
        seconds: by part.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._nested_seconds = [0.0]

    @contextmanager
    def time_part(self, part: str) -> Iterator[None]:
        """Add the time of the block to a part."""
        self._nested_seconds.append(0.0)
        start = time.perf_counter()
        yield
        elapsed = time.perf_counter() - start
        self.seconds[part] += elapsed - self._nested_seconds.pop()
        self._nested_seconds[-1] += elapsed

    def wrap(self, part: str, function: Any) -> Any:
        """Return a function that does the same and adds its time to a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.time_part(part):
                return function(*args, **kwargs)

        return timed


class _MatmulCounter(TorchDispatchMode):
    """Counts matrix products by the shapes of their operands."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[tuple[torch.Size, torch.Size]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func.overloadpacket.__name__ in _MATMUL_OPS:
            left, right = [x for x in args if isinstance(x, Tensor)][-2:]
            self.counts[left.shape, right.shape] += 1
        return func(*args, **(kwargs or {}))


def profile_steps(module: TwoTowerModule, *, warmup_steps: int, steps: int) -> dict[str, Any]:
    """Run training steps without Lightning, on this process's threads.

    Args:
        module: towers and training data; its weights change.
        warmup_steps: steps that are not measured.
        steps: measured steps.

    Returns:
        `positives_per_second`; `step_ms`, the median; `share` of the time by part; and `by_products`, the time of the
        steps as a multiple of the time of their matrix products alone.
    """
    optimizer = module.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    module.on_fit_start()
    module.train()
    batches: Iterator[Any] = iter(module.train_dataloader())
    for _ in range(warmup_steps):
        _run_step(module, optimizer, next(batches), PartTimer())
    timer, matmuls, positives = PartTimer(), _MatmulCounter(), 0
    step_seconds = []
    for _ in range(steps):
        with timer.time_part("batch"):
            batch = next(batches)
        start = time.perf_counter()
        _run_step(module, optimizer, batch, timer)
        step_seconds.append(time.perf_counter() - start)
        positives += len(batch.target_items)
        with matmuls:
            _run_step(module, optimizer, batch, PartTimer())
    matmul_seconds = sum(count * _time_matmul(*shapes) for shapes, count in matmuls.counts.items())
    total = sum(timer.seconds.values())
    return {
        "steps": steps,
        "positives_per_second": round(positives / total, 1),
        "step_ms": round(1e3 * median(step_seconds), 1),
        "share": {part: round(seconds / total, 3) for part, seconds in sorted(timer.seconds.items())},
        "by_products": round(sum(step_seconds) / matmul_seconds, 2),
    }


def _run_step(module: TwoTowerModule, optimizer: torch.optim.Optimizer, batch: Any, timer: PartTimer) -> None:
    """Run a step and time its parts."""
    towers, loss_name = module.towers, "chunked_cross_entropy"
    timed_loss = timer.wrap("softmax, both ways", getattr(loss_module, loss_name))
    timed_encode_items = timer.wrap("item tower", towers.encode_items)
    with (
        patch.object(loss_module, loss_name, timed_loss),
        patch.object(towers, "encode_items", timed_encode_items),
        timer.time_part("user tower"),
    ):
        loss = module.training_step(batch, 1)
    with timer.time_part("backward of the towers"):
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
    with timer.time_part("optimiser"):
        optimizer.step()
        module.on_train_batch_end()


def _time_matmul(left_shape: torch.Size, right_shape: torch.Size) -> float:
    """Return the median seconds of a product of two random matrices."""
    left, right = torch.randn(left_shape), torch.randn(right_shape)
    out = torch.matmul(left, right)
    seconds = []
    for _ in range(_MATMUL_REPETITIONS):
        start = time.perf_counter()
        torch.matmul(left, right, out=out)
        seconds.append(time.perf_counter() - start)
    return median(seconds)
