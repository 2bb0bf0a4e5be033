"""First weights from an older model: the same layers, and the rows of each table found again by id or by value."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.data.feature_encoder import MISSING, NEVER_SEEN, Encoders
from vecall.data.id_map import UNKNOWN, Vocabulary
from vecall.errors import TrainingError
from vecall.towers.features import part_name
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
    """Overwrite fresh weights by old ones; new ids and values start where unknown ones stood.

    Args:
        towers: fresh; overwritten.
        known: what their tables stand for.
        old_weights: the older model's, by name.
        old: what its tables stand for.

    Raises:
        TrainingError: the older model has other layers, or its ids are of another type.
    """
    weights = towers.state_dict()
    if set(weights) != set(old_weights):
        differing = sorted(set(weights) ^ set(old_weights))
        raise TrainingError(
            f"--init: the older run has other layers ({', '.join(differing[:4])}); use its [model] and features"
        )
    if known.items.id_type != old.items.id_type:
        raise TrainingError(
            f"--init: the older run's item ids are of type {old.items.id_type}; keep schema.items.id_type"
        )
    sources = _row_sources(known, old)
    for name, fresh in weights.items():
        before = old_weights[name]
        if name in sources:
            _copy_rows(name, fresh, before, sources[name])
        elif fresh.shape == before.shape:
            fresh.copy_(before)
        else:
            raise _other_shape(name, fresh, before)
    towers.load_state_dict(weights)


def _copy_rows(name: str, fresh: Tensor, before: Tensor, source: NDArray[np.int64]) -> None:
    if before.shape[1:] != fresh.shape[1:]:
        raise _other_shape(name, fresh, before)
    unknown = len(before) - 1 if name == _ID_TABLE else NEVER_SEEN
    fresh.copy_(before[torch.from_numpy(np.where(source == UNKNOWN, unknown, source))])
    logger.info("%s: %d of %d rows start from the older run", name, int((source != UNKNOWN).sum()), len(source))


def _other_shape(name: str, fresh: Tensor, before: Tensor) -> TrainingError:
    return TrainingError(
        f"--init: {name} was {list(before.shape)} and is {list(fresh.shape)}; keep the older run's [model] and features"
    )


def _row_sources(known: Known, old: Known) -> dict[str, NDArray[np.int64]]:
    """For each table of a new model, by its name, the old row of each new row; -1 for a new one."""
    everything = np.arange(len(known.items))
    found = old.items.rows(known.items.ids(everything))
    sources = {_ID_TABLE: np.append(found, UNKNOWN)}  # the last row is the unknown item's own
    for side, new_side, old_side in (
        ("item", known.item_encoders, old.item_encoders),
        ("user", known.user_encoders, old.user_encoders),
    ):
        for feature, fitted in new_side.state.values.items():
            before = old_side.state.values.get(feature)
            if before is None:
                continue
            row_of = {value: row for row, value in enumerate(before.values, NEVER_SEEN + 1)}
            rows = [MISSING, NEVER_SEEN, *(row_of.get(value, UNKNOWN) for value in fitted.values)]
            for suffix in ("weight", "table.weight"):
                sources[f"{side}.combine.inputs.parts.{part_name(feature)}.{suffix}"] = np.array(rows, dtype=np.int64)
    return sources
