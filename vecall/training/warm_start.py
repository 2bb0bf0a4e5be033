"""First weights from an older model: the same layers, and the rows of each table found again by id or by value."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.data.feature_encoder import MISSING, OOV, FeatureEncoder
from vecall.data.id_map import UNKNOWN_ROW, IdMap
from vecall.errors import TrainingError
from vecall.towers.features import to_module_key
from vecall.towers.two_tower import TwoTower

logger = logging.getLogger(__name__)

_ITEM_ID_WEIGHT = "item_id_embedding.weight"


@dataclass(frozen=True)
class ModelVocabulary:
    """What the rows of a model's tables stand for.

    Attributes:
        item_id_map: of the id table.
        item_encoder: of the item features' tables.
        user_encoder: of the user features' tables.
    """

    item_id_map: IdMap
    item_encoder: FeatureEncoder
    user_encoder: FeatureEncoder


def warm_start(
    towers: TwoTower, vocabulary: ModelVocabulary, old_weights: Mapping[str, Tensor], old_vocabulary: ModelVocabulary
) -> None:
    """Overwrite fresh weights by old ones; new ids and values start where unknown ones stood.

    Args:
        towers: fresh; overwritten.
        vocabulary: what their tables stand for.
        old_weights: the older model's, by name.
        old_vocabulary: what its tables stand for.

    Raises:
        TrainingError: the older model has other layers, or its ids are of another type.
    """
    weights = towers.state_dict()
    if set(weights) != set(old_weights):
        differing = sorted(set(weights) ^ set(old_weights))
        raise TrainingError(
            f"--init: the older run has other layers ({', '.join(differing[:4])}); use its [model] and features"
        )
    if vocabulary.item_id_map.id_type != old_vocabulary.item_id_map.id_type:
        raise TrainingError(
            f"--init: the older run's item ids are of type {old_vocabulary.item_id_map.id_type}; keep schema.items.id_type"
        )
    sources = _map_table_rows(vocabulary, old_vocabulary)
    for name, fresh in weights.items():
        before = old_weights[name]
        if name in sources:
            _copy_rows(name, fresh, before, sources[name])
        elif fresh.shape == before.shape:
            fresh.copy_(before)
        else:
            raise _build_shape_error(name, fresh, before)
    towers.load_state_dict(weights)


def _copy_rows(name: str, new_weight: Tensor, old_weight: Tensor, old_rows: NDArray[np.int64]) -> None:
    if old_weight.shape[1:] != new_weight.shape[1:]:
        raise _build_shape_error(name, new_weight, old_weight)
    unknown = len(old_weight) - 1 if name == _ITEM_ID_WEIGHT else OOV
    new_weight.copy_(old_weight[torch.from_numpy(np.where(old_rows == UNKNOWN_ROW, unknown, old_rows))])
    logger.info("%s: %d of %d rows start from the older run", name, int((old_rows != UNKNOWN_ROW).sum()), len(old_rows))


def _build_shape_error(name: str, new_weight: Tensor, old_weight: Tensor) -> TrainingError:
    return TrainingError(
        f"--init: {name} was {list(old_weight.shape)} and is {list(new_weight.shape)}; keep the older run's [model] and features"
    )


def _map_table_rows(vocabulary: ModelVocabulary, old_vocabulary: ModelVocabulary) -> dict[str, NDArray[np.int64]]:
    """For each table of a new model, by its name, the old row of each new row; -1 for a new one."""
    everything = np.arange(len(vocabulary.item_id_map))
    found = old_vocabulary.item_id_map.to_rows(vocabulary.item_id_map.to_ids(everything))
    sources = {_ITEM_ID_WEIGHT: np.append(found, UNKNOWN_ROW)}  # the last row is the unknown item's own
    for side, new_side, old_side in (
        ("item", vocabulary.item_encoder, old_vocabulary.item_encoder),
        ("user", vocabulary.user_encoder, old_vocabulary.user_encoder),
    ):
        for feature, fitted in new_side.state.categorical.items():
            before = old_side.state.categorical.get(feature)
            if before is None:
                continue
            row_of = {value: row for row, value in enumerate(before.values, OOV + 1)}
            rows = [MISSING, OOV, *(row_of.get(value, UNKNOWN_ROW) for value in fitted.values)]
            for suffix in ("weight", "table.weight"):
                sources[f"{side}_tower.combiner.feature_embedding.layers.{to_module_key(feature)}.{suffix}"] = np.array(
                    rows, dtype=np.int64
                )
    return sources
