"""What a training resolves once, by the size of the data and the kind of machine, and keeps when it is resumed."""

from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from vecall.arrays import Rows
from vecall.errors import TrainingError
from vecall.runtime.durable_files import atomic_write
from vecall.runtime.memory import total_memory_bytes
from vecall.towers.embedding import RowEmbedding
from vecall.towers.two_tower import TwoTower
from vecall.training.data import TrainingData
from vecall.training.settings import TrainingSettings

PLAN_FILE = "plan.json"
LossName = Literal["softmax", "sampled_softmax", "bce"]

# With more logits [B, N] in a step, loss = "auto" samples negatives; see docs/scaling.md.
_MAX_LOGITS_CPU = 20_000_000
_MAX_LOGITS_GPU = 128_000_000
# Smaller tables cost little as a whole.
MIN_ROWS_OF_ROW_TABLE = 10_000
_MIN_ITEMS_PER_CANDIDATE = 4
_MAX_MEMORY_SHARE = 1 / 3  # of the machine, for the tables that are trained by rows, with both moments and the average


class TrainingPlan(BaseModel):
    """Content of `plan.json`.

    Attributes:
        loss: The loss.
        items_by_rows: Whether the large tables of items are trained by rows: those that a step reads in part.
        row_moments: Whether tables that are trained by rows have both moments of each weight, and an average if there
            is one. Without, a row has one second moment, and the average leaves these tables out.
        tables_on_cpu: Whether these tables stay in the memory of the CPU beside a GPU.
        processes: Number of processes that train together; sums of floats depend on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    loss: LossName
    items_by_rows: bool
    row_moments: bool
    tables_on_cpu: bool = False
    processes: int = 1

    def samples_hard_negatives(self, settings: TrainingSettings) -> bool:
        """Whether steps draw hard negatives of each positive; with "bce" these are samples themselves."""
        return self.loss == "sampled_softmax" and settings.negatives.hard > 0

    @classmethod
    def make(
        cls,
        settings: TrainingSettings,
        towers: TwoTower,
        n_candidates: int,
        processes: int = 1,
        *,
        shares_tables: bool = False,
    ) -> Self:
        """Resolve the plan for this machine.

        Args:
            settings: Settings of the training.
            towers: Towers to train.
            n_candidates: Number of items that the softmax is over.
            processes: Number of processes that train together, taken to be on this machine.
            shares_tables: Whether these processes hold the tables that are trained by rows in common.

        Raises:
            TrainingError: As `resolve_loss`.
        """
        loss = resolve_loss(settings, n_candidates)
        # A full softmax reads all candidates in each step; they may still be a small part of the catalogue.
        items_by_rows = loss != "softmax" or _MIN_ITEMS_PER_CANDIDATE * n_candidates <= towers.n_items
        tables = find_row_tables(towers, items_by_rows=items_by_rows)
        table_bytes = sum(table.weight.numel() * table.weight.element_size() for table in tables)
        copies = 4 if settings.ema_decay else 3  # weights, first and second moments, average
        memory, gpu_memory = total_memory_bytes() // (1 if shares_tables else processes), _get_gpu_memory()
        tables_on_cpu = gpu_memory is not None and table_bytes > _MAX_MEMORY_SHARE * gpu_memory
        if gpu_memory is not None and not tables_on_cpu:
            memory = gpu_memory
        row_moments = copies * table_bytes <= _MAX_MEMORY_SHARE * memory
        return cls(
            loss=loss,
            items_by_rows=items_by_rows,
            row_moments=row_moments,
            tables_on_cpu=tables_on_cpu,
            processes=processes,
        )

    @classmethod
    def read_or_make(
        cls,
        directory: Path,
        settings: TrainingSettings,
        towers: TwoTower,
        n_candidates: int,
        processes: int = 1,
        *,
        shares_tables: bool = False,
    ) -> "TrainingPlan":
        """Read the plan of an interrupted training, or make one and write it.

        Raises:
            TrainingError: The file cannot be read, or is of another number of processes; or as `make`.
        """
        path = directory / PLAN_FILE
        try:
            plan = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            plan = cls.make(settings, towers, n_candidates, processes, shares_tables=shares_tables)
            atomic_write(path, plan.model_dump_json().encode())
        except (OSError, ValidationError) as error:
            raise TrainingError(f"{path}: cannot be read: {error}") from error
        if plan.processes != processes:
            raise TrainingError(
                f"{directory}: this interrupted training was started with {plan.processes} processes, got {processes}; "
                "resume it with as many (training.devices, or torchrun), or choose another --run"
            )
        return plan


def resolve_loss(settings: TrainingSettings, n_items: int) -> LossName:
    """Return the loss of the settings, with "auto" replaced by "softmax" or, for many items, "sampled_softmax".

    Args:
        settings: Loss, batch size and negatives.
        n_items: Number of items that the softmax is over.

    Raises:
        TrainingError: "sampled_softmax" is needed, and the settings have no negatives for it.
    """
    loss = select_loss(settings, n_items)
    if settings.loss == "auto" and loss != "softmax" and settings.negatives.uniform + settings.negatives.in_batch == 0:
        raise TrainingError(
            f"a softmax over all {n_items} items is too large at training.batch = {settings.batch}, and there are no "
            "negatives for a sampled one: set training.negatives.uniform or training.negatives.in_batch above 0"
        )
    return loss


def select_loss(settings: TrainingSettings, n_items: int) -> LossName:
    """Return the loss as `resolve_loss` does, whether or not there are negatives for it."""
    if settings.loss != "auto":
        return settings.loss
    max_logits = _MAX_LOGITS_GPU if torch.cuda.is_available() else _MAX_LOGITS_CPU
    return "softmax" if settings.batch * n_items <= max_logits else "sampled_softmax"


def find_row_tables(towers: TwoTower, *, items_by_rows: bool) -> list[RowEmbedding]:
    """Return the large tables of which a step reads a part: those of users and, with `items_by_rows`, of items."""
    parts = [towers] if items_by_rows else [towers.user_tower]
    return [
        module
        for part in parts
        for module in part.modules()
        if isinstance(module, RowEmbedding) and module.num_embeddings >= MIN_ROWS_OF_ROW_TABLE
    ]


def select_candidate_items(towers: TwoTower, data: TrainingData) -> Rows:
    """Return the [M] rows of the items that are negatives.

    Only with id dropout are unobserved items represented by their features, and need not be negatives. Without it, they
    must be, or nothing would keep the scores of their untrained ids low.
    """
    return data.observed_items if towers.uses_id_dropout else np.arange(data.n_items)


def _get_gpu_memory() -> int | None:
    return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None
