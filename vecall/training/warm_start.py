"""Initial weights from an older model: the rows of its embedding tables are matched by item id and feature value."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.id_map import UNKNOWN_ROW, IdMap
from vecall.data.vocabulary import MISSING, OOV, Vocabulary
from vecall.errors import TrainingError
from vecall.towers.features import to_module_key
from vecall.towers.two_tower import TwoTower

logger = logging.getLogger(__name__)

_ITEM_ID_WEIGHT = "item_id_embedding.weight"
# Of the new interactions, not of the older run.
_SPECTRAL = {"spectral_vectors", "item_tower.parts.share", "user_tower.parts.share"}


@dataclass(frozen=True)
class ModelVocabulary:
    """Item ids and feature values that the rows of a model's embedding tables represent.

    Attributes:
        item_id_map: Ids of the item id table.
        item_encoder: Values of the tables of item features.
        user_encoder: Values of the tables of user features.
    """

    item_id_map: IdMap
    item_encoder: FeatureEncoder
    user_encoder: FeatureEncoder


def warm_start(
    towers: TwoTower, vocabulary: ModelVocabulary, old_weights: Mapping[str, Tensor], old_vocabulary: ModelVocabulary
) -> None:
    """Overwrite the weights of new towers by those of an older model.

    Ids and values that the older model does not know start from its rows of the unknown item and of unseen values. Item
    ids start at random, as in new towers, if that row is 0 and items have no features: a vector of length 0 has no
    direction that training could turn.
    Spectral vectors and their weight are left as they are: they are found for the new interactions.

    Args:
        towers: New towers; overwritten.
        vocabulary: Vocabulary of the new towers.
        old_weights: State dict of the older towers.
        old_vocabulary: Vocabulary of the older towers.

    Raises:
        TrainingError: The older model has other layers or shapes, or its item ids are of another type.
    """
    new_weights = towers.state_dict()  # the weights themselves, written to below
    differing = sorted((set(new_weights) ^ set(old_weights)) - _SPECTRAL)
    if differing:
        raise TrainingError(
            f"--init: the older run has other layers ({', '.join(differing[:4])}); use its [model] and features"
        )
    if vocabulary.item_id_map.id_type != old_vocabulary.item_id_map.id_type:
        raise TrainingError(
            f"--init: the older run's item ids are of type {old_vocabulary.item_id_map.id_type}, expected "
            f"{vocabulary.item_id_map.id_type}; use its schema.items.id_type"
        )
    old_rows_by_table = _map_table_rows(vocabulary, old_vocabulary)
    for name, new_weight in new_weights.items():
        if name in _SPECTRAL:
            continue
        old_weight = old_weights[name]
        if name in old_rows_by_table:
            stay_random = name == _ITEM_ID_WEIGHT and not vocabulary.item_encoder.specs
            _copy_rows(name, new_weight, old_weight, old_rows_by_table[name], stay_random=stay_random)
        elif new_weight.shape == old_weight.shape:
            new_weight.copy_(old_weight)
        else:
            raise _build_shape_error(name, new_weight, old_weight)


def _copy_rows(
    name: str, new_weight: Tensor, old_weight: Tensor, old_rows: NDArray[np.int64], *, stay_random: bool
) -> None:
    """Copy row old_rows[i] of the old table to row i of the new one; UNKNOWN_ROW stands for the row of unknown ids.

    Where that is 0, the rows of new ids stay as they are if `stay_random`.
    """
    if old_weight.shape[1:] != new_weight.shape[1:]:
        raise _build_shape_error(name, new_weight, old_weight)
    fallback_row = len(old_weight) - 1 if name == _ITEM_ID_WEIGHT else OOV
    source_rows = torch.from_numpy(np.where(old_rows == UNKNOWN_ROW, fallback_row, old_rows))
    is_new = torch.from_numpy(old_rows == UNKNOWN_ROW)
    is_new[-1] = False  # the unknown item itself
    random_rows = new_weight[is_new] if stay_random and not old_weight[fallback_row].any() else None
    torch.index_select(old_weight, 0, source_rows, out=new_weight)  # without a copy of the rows in between
    if random_rows is not None:
        new_weight[is_new] = random_rows
    logger.info("%s: %d of %d rows start from the older run", name, int((old_rows != UNKNOWN_ROW).sum()), len(old_rows))


def _build_shape_error(name: str, new_weight: Tensor, old_weight: Tensor) -> TrainingError:
    return TrainingError(
        f"--init: {name} has shape {list(old_weight.shape)} in the older run, expected {list(new_weight.shape)}; "
        "use the older run's [model] and features"
    )


def _map_table_rows(vocabulary: ModelVocabulary, old_vocabulary: ModelVocabulary) -> dict[str, NDArray[np.int64]]:
    """Return the old row of each new row, by the name of the table; UNKNOWN_ROW for a new id or value."""
    old_item_rows = old_vocabulary.item_id_map.column_to_rows(vocabulary.item_id_map.to_column())
    # The last row of the table is that of the unknown item.
    old_rows_by_table = {_ITEM_ID_WEIGHT: np.append(old_item_rows, UNKNOWN_ROW)}
    for side, encoder, old_encoder in (
        ("item", vocabulary.item_encoder, old_vocabulary.item_encoder),
        ("user", vocabulary.user_encoder, old_vocabulary.user_encoder),
    ):
        for feature, state in encoder.state.categorical.items():
            old_state = old_encoder.state.categorical.get(feature)
            if old_state is None:
                continue
            old_value_rows = Vocabulary(old_state.values).to_rows(pl.Series(state.values, dtype=pl.String))
            old_rows = np.append([MISSING, OOV], np.where(old_value_rows == OOV, UNKNOWN_ROW, old_value_rows))
            layer = f"{side}_tower.combiner.feature_embedding.layers.{to_module_key(feature)}"
            for suffix in ("weight", "table.weight"):  # of a categorical and of a multi-value feature
                old_rows_by_table[f"{layer}.{suffix}"] = old_rows
    return old_rows_by_table
