"""AdamW that updates embedding tables by the rows of a step, and all other parameters as usual."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from vecall.training.distributed import ProcessGroup
from vecall.training.row_table import RowTable


class RowwiseAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter, ICLR 2019) over dense parameters and over tables that are updated row by row.

    One optimizer for both: the learning rate schedule, Lightning's loop and checkpoints need no second one. The tables
    have no gradient of their own; their rows' gradients are collected by `RowTable`. The state of a table is that of
    AdamW for a parameter: `step`, `exp_avg` (only with moments) and `exp_avg_sq`.

    Args:
        parameters: Dense parameters.
        tables: Tables.
        lr: Learning rate.
        weight_decay: Weight decay.
        group: Processes that train together, each with the gradients of its part of a batch; None for a single one.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        tables: Sequence[RowTable],
        *,
        lr: float,
        weight_decay: float,
        group: ProcessGroup | None = None,
    ) -> None:
        self._dense, self._tables, self._group = list(parameters), tables, group
        super().__init__([*self._dense, *(table.weight for table in tables)], lr, weight_decay=weight_decay, fused=True)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient, and the rows that were read since the last step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        collected = [table.collect_gradients() for table in self._tables]
        for table, (rows, gradients) in zip(self._tables, collected, strict=True):
            table.publish_gradients(rows, gradients)
        if self._group is not None:
            self._group.average_gradients(self._dense)  # also a barrier, after which all have published theirs
        super().step()
        options = self.param_groups[0]
        for table, own in zip(self._tables, collected, strict=True):
            rows, gradients = table.merge_gradients(*own)
            table.step(rows, gradients, lr=options["lr"], weight_decay=options["weight_decay"])
        if self._group is not None and self._group.shares_memory:
            self._group.barrier()  # before rows are read that others update, and gradients published anew
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with all rows up to date.

        That of the tables is in `self.state` for this alone: a trainer moves what it finds there to its device, and
        tables may be larger than that.
        """
        for table in self._tables:
            table.flush()
            self.state[table.weight] = _get_state(table)
        state = super().state_dict()
        self._forget_tables()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        super().load_state_dict(state_dict)
        for table in self._tables:
            state = self.state[table.weight]
            table.restore(int(state["step"]), state.get("exp_avg"), state["exp_avg_sq"])
        self._forget_tables()

    def _forget_tables(self) -> None:
        for table in self._tables:
            self.state.pop(table.weight, None)


def _get_state(table: RowTable) -> dict[str, Tensor]:
    moments = {} if table.exp_avg is None else {"exp_avg": table.exp_avg}
    return {"step": torch.tensor(float(table.step_count)), **moments, "exp_avg_sq": table.exp_avg_sq}
