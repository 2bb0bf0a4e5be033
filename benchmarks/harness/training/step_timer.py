"""Timing of training steps without Lightning's loop, on any device and in any precision."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vecall.training.module import TwoTowerModule


class StepTimer:
    """Runs the training steps of a module, batches and schedule included, and times them.

    Args:
        module: towers and training data; its weights change.
        device: where the steps run.
        precision: "32" or "bf16".
    """

    def __init__(self, module: TwoTowerModule, *, device: str = "cpu", precision: str = "32") -> None:
        self.module, self.device, self.precision = module.to(device), torch.device(device), precision
        configured = module.configure_optimizers()
        self.optimizer: torch.optim.Optimizer = configured["optimizer"]
        self.scheduler: Any = configured["lr_scheduler"]["scheduler"]
        module.on_fit_start()
        module.train()
        self._batches: Iterator[Any] = iter(())
        self._steps_done = 0

    def run(self, steps: int) -> list[float]:
        """Run steps and return the seconds of each."""
        return [self._time_step() for _ in range(steps)]

    def count_targets(self, steps: int) -> float:
        """Return the mean number of positives of the next batches, which are skipped."""
        return sum(len(self._next_batch().target_items) for _ in range(steps)) / steps

    def count_flops(self) -> int:
        """Run a step and return the floating-point operations of its matrix products."""
        with FlopCounterMode(display=False) as counter:
            self._time_step()
        return int(counter.get_total_flops())

    def _next_batch(self) -> Any:
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self.module.train_dataloader())
            batch = next(self._batches)
        return batch

    def _time_step(self) -> float:
        start = time.perf_counter()
        batch = self.module.transfer_batch_to_device(self._next_batch(), self.device, 0)
        self.optimizer.zero_grad()
        with self._autocast():
            loss = self.module.training_step(batch, 1 + self._steps_done)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.step()
        self.module.on_train_batch_end()
        self._steps_done += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def time_in_turns(timers: dict[str, StepTimer], *, rounds: int, steps: int, warmup_steps: int = 5) -> dict[str, float]:
    """Return the median milliseconds of a step of each timer; they take turns, so that noise hits all of them.

    Args:
        timers: by name.
        rounds: turns of each.
        steps: steps of a turn.
        warmup_steps: steps before the first round, not measured.
    """
    for timer in timers.values():
        timer.run(warmup_steps)
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name] += timer.run(steps)
    return {name: round(1e3 * median(values), 2) for name, values in seconds.items()}
