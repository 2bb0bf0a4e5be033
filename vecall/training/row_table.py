"""Embedding table whose rows are brought up to date when they are read, and updated when they have a gradient."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.towers.distinct_rows import find_distinct_rows
from vecall.towers.embedding import RowEmbedding
from vecall.training.distributed import ProcessGroup
from vecall.training.idle_steps import BETA1, BETA2, EPS, IdleSteps, bias_corrections
from vecall.training.row_kernels import read_rows, run_by_rows, update_rows
from vecall.training.shared_rows import SharedRows

_FLUSH_ROWS = 65_536  # rows that are brought up to date together


@dataclass
class _RowState:
    """Copies of the state of M rows: [M, D] each, but [M, 1] second moments if there are no first ones."""

    weight: Tensor
    exp_avg: Tensor | None
    exp_avg_sq: Tensor
    average: Tensor | None

    def add_gradients(self, gradients: Tensor, *, lr: float, weight_decay: float, step: int) -> None:
        """Update moments and weights by [M, D] gradients, in place."""
        correction1, root_correction2 = bias_corrections(step)
        self.exp_avg_sq.mul_(BETA2)
        if self.exp_avg is None:
            self.exp_avg_sq.add_(gradients.square().mean(1, keepdim=True), alpha=1 - BETA2)
            direction, size = gradients, lr
        else:
            self.exp_avg_sq.addcmul_(gradients, gradients, value=1 - BETA2)
            direction, size = self.exp_avg.lerp_(gradients, 1 - BETA1), lr / correction1
        denominator = self.exp_avg_sq.sqrt().div_(root_correction2).add_(EPS)
        self.weight.mul_(1 - lr * weight_decay).addcdiv_(direction, denominator, value=-size)


def _to_numpy(table: Tensor | None, weight: Tensor) -> NDArray[np.float32]:
    """Return a table as an array that shares its memory; None as an array [0, D]."""
    array: NDArray[np.float32] = (weight[:0] if table is None else table).detach().numpy()
    return array


def sum_by_row(rows: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the gradients of equal rows.

    Args:
        rows: [n] rows.
        gradients: [n, D].

    Returns:
        [M] distinct rows, ascending, and their [M, D] summed gradients.
    """
    distinct, index = find_distinct_rows(rows)
    return distinct, gradients.new_zeros(len(distinct), gradients.shape[1]).index_add_(0, index, gradients)


class RowTable:
    """Embedding table of R rows that AdamW updates row by row.

    With `has_moments` the weights are those of AdamW over the whole table, up to rounding. Without, a row has one
    second moment, the mean over its columns, and no first one, as in row-wise Adagrad and Adam of large embedding
    tables: 4 bytes per row instead of 8 per weight.

    Args:
        embedding: The table; its rows are read through this object from now on.
        has_moments: Whether both moments of each weight are kept.
        average: [R, D] moving average of the weights, or None.
        ema_decay: Decay of the average per step.
        group: Processes that train together. If they share memory, they hold one table, that of the first process, and
            each updates a share of the rows; else each holds one and updates all rows. None for a single process.

    Attributes:
        weight: [R, D] weights; up to date after `flush`.
        exp_avg: [R, D] first moments; None without moments.
        exp_avg_sq: [R, D] second moments; [R, 1] without moments.
        step_count: Steps since the start of training.
    """

    def __init__(
        self,
        embedding: RowEmbedding,
        *,
        has_moments: bool,
        average: Tensor | None = None,
        ema_decay: float = 0.0,
        group: ProcessGroup | None = None,
    ) -> None:
        embedding.row_reader = self.read
        self.weight = embedding.weight
        self.has_moments = has_moments
        self.step_count = 0
        self._average, self._ema_decay = average, ema_decay
        self._group, self._shared = group, None
        if group is not None and group.shares_memory:
            self._shared = SharedRows(group, len(self.weight), self.weight.shape[1])
            for table in (self.weight, average):
                if table is not None:
                    table.data = self._shared.share(table.data)
        self._frozen_row = embedding.padding_idx
        self._reads: list[tuple[Tensor, Tensor]] = []  # rows, and their vectors, which collect gradients
        self._allocate()

    def follow_weights(self) -> None:
        """Allocate the moments anew if the weights have moved to another device."""
        if self.exp_avg_sq.device != self.weight.device:
            self._allocate()

    def _allocate(self) -> None:
        n_rows, dim = self.weight.shape
        self.exp_avg = self._zeros(n_rows, dim) if self.has_moments else None
        self.exp_avg_sq = self._zeros(n_rows, dim if self.has_moments else 1)
        self._last_steps = self._zeros(n_rows, dtype=torch.int32)  # since the last flush
        self._idle_steps = IdleSteps(self.weight.device)

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if self._shared is not None:
            return self._shared.allocate(shape, dtype)
        return torch.zeros(shape, dtype=dtype, device=self.weight.device)

    def restore(self, step_count: int, exp_avg: Tensor | None, exp_avg_sq: Tensor) -> None:
        """Continue from a saved state, in which all rows were up to date."""
        self.step_count = step_count
        if self._shared is None:
            self.exp_avg, self.exp_avg_sq = exp_avg, exp_avg_sq
        else:
            self._shared.copy(exp_avg_sq, self.exp_avg_sq)
            if exp_avg is not None and self.exp_avg is not None:
                self._shared.copy(exp_avg, self.exp_avg)
        self._last_steps.zero_()
        self._idle_steps.reset(self.step_count)

    @torch.no_grad()
    def read(self, rows: Tensor) -> Tensor:
        """Return the up-to-date vectors [M, D] of [M] distinct rows, as a leaf that collects their gradient."""
        own_rows = rows.to(self.weight.device, torch.int64)
        up_to_date = self._read_by_kernel(own_rows) if self._uses_kernels else self._catch_up(own_rows).weight
        vectors = up_to_date.to(rows.device).requires_grad_()
        self._reads.append((own_rows, vectors))
        return vectors

    def discard_reads(self) -> None:
        """Forget the rows that were read since the last step: their gradients are not used."""
        self._reads.clear()

    def collect_gradients(self) -> tuple[Tensor, Tensor]:
        """Return the [M] distinct rows that have a gradient since the last step, ascending, and their [M, D] gradients.

        They count as used from now on.
        """
        device = self.weight.device
        reads = [(rows, vectors.grad.to(device)) for rows, vectors in self._reads if vectors.grad is not None]
        self._reads.clear()
        if len(reads) == 1:
            return reads[0]
        if not reads:
            return self._last_steps.new_zeros(0, dtype=torch.int64), self.weight.new_zeros(0, self.weight.shape[1])
        return sum_by_row(torch.cat([rows for rows, _ in reads]), torch.cat([gradients for _, gradients in reads]))

    def publish_gradients(self, rows: Tensor, gradients: Tensor) -> None:
        """Show the other processes what was collected, if they share memory; they may read it after a barrier."""
        if self._shared is not None:
            self._shared.publish(rows, gradients)

    def merge_gradients(self, rows: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Average the gradients that all processes have collected and published.

        Returns:
            [K] distinct rows that this process updates, ascending, and [K, D] their gradients.
        """
        if self._shared is not None:
            return self._shared.merge_share()
        return (rows, gradients) if self._group is None else self._group.merge_rows(rows, gradients)

    @torch.no_grad()
    def step(self, rows: Tensor, gradients: Tensor, *, lr: float, weight_decay: float) -> None:
        """Take a step of AdamW: an update of the rows with a gradient, an idle step of all others.

        Processes that share memory must wait for each other after it.

        Args:
            rows: [M] distinct rows.
            gradients: [M, D].
            lr: Learning rate.
            weight_decay: Weight decay.
        """
        self.step_count += 1
        ema_decay = 0.0 if self.step_count == 1 else self._ema_decay  # the average begins with the first step
        if self._frozen_row is not None:
            gradients = gradients.masked_fill((rows == self._frozen_row).unsqueeze(1), 0.0)
        if self._uses_kernels and self.has_moments:
            self._update_by_kernel(rows, gradients, lr, weight_decay, ema_decay)
        else:
            self._update(rows, gradients, lr, weight_decay, ema_decay)
        self._idle_steps.append(lr, weight_decay, self.step_count, ema_decay)
        self._last_steps.index_fill_(0, rows, self._idle_steps.count)

    def _update(self, rows: Tensor, gradients: Tensor, lr: float, weight_decay: float, ema_decay: float) -> None:
        state = self._catch_up(rows)
        state.add_gradients(gradients, lr=lr, weight_decay=weight_decay, step=self.step_count)
        if state.average is not None:
            state.average.lerp_(state.weight, 1 - ema_decay)
        self._write(rows, state)

    @property
    def _uses_kernels(self) -> bool:
        return self.weight.device.type == "cpu" and self.weight.dtype == torch.float32

    def _read_by_kernel(self, rows: Tensor) -> Tensor:
        vectors = self.weight.new_empty(len(rows), self.weight.shape[1])
        run_by_rows(
            read_rows,
            (rows.numpy(), vectors.numpy()),
            *(_to_numpy(table, self.weight) for table in (self.weight, self.exp_avg, self.exp_avg_sq)),
            self._last_steps.numpy(),
            self._idle_steps.coefficients.numpy(),
        )
        return vectors

    def _update_by_kernel(
        self, rows: Tensor, gradients: Tensor, lr: float, weight_decay: float, ema_decay: float
    ) -> None:
        correction1, root_correction2 = bias_corrections(self.step_count)
        rates = (1 - BETA1, BETA2, 1 - BETA2, 1 - lr * weight_decay, lr / correction1)
        step = (*rates, 1 / root_correction2, EPS, 1 - ema_decay)
        tables = (self.weight, self.exp_avg, self.exp_avg_sq, self._average)
        run_by_rows(
            update_rows,
            (rows.numpy(), gradients.numpy()),
            *(_to_numpy(table, self.weight) for table in tables),
            self._last_steps.numpy(),
            self._idle_steps.coefficients.numpy(),
            self._idle_steps.moment_decays.numpy(),
            self._idle_steps.count,
            np.array(step, dtype=np.float32),
        )

    @torch.no_grad()
    def flush(self) -> None:
        """Bring all rows up to date, in place: before the whole table is read or saved."""
        if not self._idle_steps.count:
            return
        own = range(len(self.weight)) if self._shared is None else self._shared.own_range
        for rows in torch.split(torch.arange(own.start, own.stop, device=self.weight.device), _FLUSH_ROWS):
            self._write(rows, self._catch_up(rows))
        self._last_steps[own.start : own.stop] = 0
        self._idle_steps.reset(self.step_count)
        if self._shared is not None:
            self._shared.barrier()

    def _catch_up(self, rows: Tensor) -> "_RowState":
        """Return the state of [M] rows as of the present step."""
        last_steps = self._last_steps.index_select(0, rows)
        shrink, tail, kept, weight_share, tail_share, eps = self._idle_steps.look_up(last_steps)
        beta1_power, beta2_power = self._idle_steps.decay_moments(last_steps)
        state = _RowState(
            weight=self.weight.index_select(0, rows),  # several times as fast as an index in brackets
            exp_avg=None if self.exp_avg is None else self.exp_avg.index_select(0, rows),
            exp_avg_sq=self.exp_avg_sq.index_select(0, rows),
            average=None if self._average is None else self._average.index_select(0, rows),
        )
        direction = None if state.exp_avg is None else state.exp_avg / state.exp_avg_sq.sqrt().add_(eps)
        if state.average is not None:
            state.average.mul_(kept).addcmul_(state.weight, weight_share)
            if direction is not None:
                state.average.addcmul_(direction, tail_share, value=-1)
        state.weight.mul_(shrink)
        if direction is not None and state.exp_avg is not None:
            state.weight.addcmul_(direction, tail, value=-1)
            state.exp_avg.mul_(beta1_power)
        state.exp_avg_sq.mul_(beta2_power)
        return state

    def _write(self, rows: Tensor, state: "_RowState") -> None:
        self.weight.index_copy_(0, rows, state.weight)
        self.exp_avg_sq.index_copy_(0, rows, state.exp_avg_sq)
        if self.exp_avg is not None and state.exp_avg is not None:
            self.exp_avg.index_copy_(0, rows, state.exp_avg)
        if self._average is not None and state.average is not None:
            self._average.index_copy_(0, rows, state.average)
