"""First weights from an older model: the same layers, and the rows of each table found again by id or by value."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.data.encode import Encoders
from vecall.data.vocabulary import UNKNOWN, Vocabulary
from vecall.errors import TrainingError
from vecall.towers.two_tower import TwoTower

logger = logging.getLogger(__name__)

_ID_TABLE = "item_ids.weight"


@dataclass(frozen=True)
class Known:
    """What the rows of a model's tables stand for.

    Attributes:
        items: of the id table.
        item_encoders: of the item features' tables.
        user_encoders: of the user features' tables.
    """

    items: Vocabulary
    item_encoders: Encoders
    user_encoders: Encoders


def warm_start(towers: TwoTower, known: Known, old_weights: Mapping[str, Tensor], old: Known) -> None:
    """Overwrite fresh weights by old ones; new ids start where the unknown item stood, new values stay fresh.

    Raises:
        TrainingError: the old model has other layers.
    """
    weights = towers.state_dict()
    if set(weights) != set(old_weights):
        differing = sorted(set(weights) ^ set(old_weights))
        raise TrainingError(f"--init: the older run has other layers ({differing[:4]}); use its [model] settings")
    sources = _row_sources(known, old)
    for name, fresh in weights.items():
        before = old_weights[name]
        if name in sources:
            _copy_rows(fresh, before, sources[name], fill_with_last=name == _ID_TABLE)
        elif fresh.shape == before.shape:
            fresh.copy_(before)
        else:
            raise TrainingError(f"--init: {name} was {list(before.shape)} and is {list(fresh.shape)}; keep [model]")
    towers.load_state_dict(weights)


def _copy_rows(fresh: Tensor, before: Tensor, source: NDArray[np.int64], *, fill_with_last: bool) -> None:
    if before.shape[1:] != fresh.shape[1:]:
        raise TrainingError(f"--init: model.dim was {before.shape[1]} and is {fresh.shape[1]}; keep [model]")
    if fill_with_last:
        fresh.copy_(before[-1:].expand_as(fresh))
    found = source != UNKNOWN
    fresh[torch.from_numpy(np.flatnonzero(found))] = before[torch.from_numpy(source[found])]
    logger.info("%d of %d rows start from the older run", int(found.sum()), len(found))


def _row_sources(known: Known, old: Known) -> dict[str, NDArray[np.int64]]:
    """For each table of a new model, by its name, the old row of each new row; -1 for a new one."""
    everything = np.arange(len(known.items))
    sources = {_ID_TABLE: old.items.rows(known.items.ids(everything))}
    for side, new_side, old_side in (
        ("item", known.item_encoders, old.item_encoders),
        ("user", known.user_encoders, old.user_encoders),
    ):
        for feature, fitted in new_side.state.values.items():
            before = old_side.state.values.get(feature)
            if before is None:
                continue
            row_of = {value: row for row, value in enumerate(before.values, 2)}
            rows = [0, 1, *(row_of.get(value, UNKNOWN) for value in fitted.values)]
            for suffix in ("weight", "table.weight"):
                sources[f"{side}.combine.inputs.parts.{feature}.{suffix}"] = np.array(rows, dtype=np.int64)
    return sources
