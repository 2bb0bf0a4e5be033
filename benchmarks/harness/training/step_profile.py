"""Where a training step's time goes, and what its matrix products alone would take."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vecall.training import module as recipes
from vecall.training.module import TwoTowerModule

_MATMUL_OPS = {"mm", "addmm", "addmm_", "bmm", "baddbmm"}  # of these the last two tensors are multiplied


class PartTimer:
    """Seconds by part; a part within another is taken off it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._nested_seconds = [0.0]

    @contextmanager
    def time_part(self, part: str) -> Iterator[None]:
        """What runs within is this part's."""
        self._nested_seconds.append(0.0)
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        self.seconds[part] += spent - self._nested_seconds.pop()
        self._nested_seconds[-1] += spent

    def wrap(self, part: str, function: Any) -> Any:
        """The same function, whose time is this part's."""

        def timed(*given: Any, **named: Any) -> Any:
            with self.time_part(part):
                return function(*given, **named)

        return timed


class _MatmulCounter(TorchDispatchMode):
    """Counts matrix products by their shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[torch.Size, torch.Size]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func.overloadpacket.__name__ in _MATMUL_OPS:
            left, right = [x for x in args if isinstance(x, Tensor)][-2:]
            self.counts[left.shape, right.shape] += 1
        return func(*args, **(kwargs or {}))


def profile_steps(module: TwoTowerModule, *, warmup_steps: int, steps: int) -> dict[str, Any]:
    """Train some steps by hand, on this process's threads.

    Returns:
        Seconds and share by part, positives a second, and how long the steps' matrix products take alone.
    """
    optimizer = module.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    module.on_fit_start()
    module.train()
    batches = iter(module.train_dataloader())
    for _ in range(warmup_steps):
        _run_step(module, optimizer, next(batches), PartTimer())
    parts, products, positives = PartTimer(), _MatmulCounter(), 0
    wall = []
    for _ in range(steps):
        with parts.time_part("batch"):
            batch = next(batches)
        began = time.perf_counter()
        _run_step(module, optimizer, batch, parts)
        wall.append(time.perf_counter() - began)
        positives += len(batch.target_items)
        with products:
            _run_step(module, optimizer, batch, PartTimer())
    alone = sum(count * _time_matmul(*shapes) for shapes, count in products.counts.items())
    total = sum(parts.seconds.values())
    return {
        "steps": steps,
        "positives_per_second": round(positives / total, 1),
        "step_ms": round(1e3 * median(wall), 1),
        "share": {part: round(seconds / total, 3) for part, seconds in sorted(parts.seconds.items())},
        "by_products": round(sum(wall) / alone, 2),
    }


def _run_step(module: TwoTowerModule, optimizer: torch.optim.Optimizer, batch: Any, parts: PartTimer) -> None:
    towers, softmax = module.towers, recipes.chunked_cross_entropy
    encode_items = towers.encode_items
    recipes.chunked_cross_entropy = parts.wrap("softmax, both ways", softmax)
    towers.encode_items = parts.wrap("item tower", encode_items)  # type: ignore[method-assign]
    try:
        with parts.time_part("user tower"):
            loss = module.training_step(batch, 1)
    finally:
        recipes.chunked_cross_entropy = softmax
        towers.encode_items = encode_items  # type: ignore[method-assign]
    with parts.time_part("backward of the towers"):
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
    with parts.time_part("optimiser"):
        optimizer.step()
        module.on_train_batch_end()


def _time_matmul(left: torch.Size, right: torch.Size) -> float:
    a, b = torch.randn(left), torch.randn(right)
    out = torch.matmul(a, b)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        torch.matmul(a, b, out=out)
        seconds.append(time.perf_counter() - began)
    return median(seconds)
