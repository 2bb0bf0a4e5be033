"""Training data as arrays, and features as tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.arrays import Rows
from vecall.data.feature_encoder import EncodedFeatures, FeatureEncoder, FeatureSpec
from vecall.data.interactions import Catalogue
from vecall.data.ragged import RaggedArray
from vecall.data.split import HardNegatives
from vecall.errors import TrainingError


class TooLittleDataError(TrainingError):
    """There is too little to learn from, which each of several processes finds alike."""


@dataclass(frozen=True)
class TrainingData:
    """Histories to learn from, with the encoded features of all items and users.

    Attributes:
        histories: U histories of item rows, oldest first.
        hard_negatives: Items that a user saw and did not take, or did not like.
        n_items: N, number of items of the catalogue.
        item_features: Encoded item features, [N, ...] each.
        user_features: Encoded user features, [U, ...] each.
        item_specs: Item features by name.
        user_specs: User features by name.
        warm_started_items: Rows of the items whose id vectors come from an older model.
        history_weights: Weight in the loss of each value of `histories`; 0: it is only read. None if all weigh 1.
        context_features: Encoded context features, [total + n, ...] each: of each value of `histories`, then of each of
            the n hard negatives. They are among `user_specs`; in `user_features` they are missing values.
        context_encoder: Encodes context features of cases to evaluate; None without such.
    """

    histories: RaggedArray
    hard_negatives: HardNegatives
    n_items: int
    item_features: EncodedFeatures
    user_features: EncodedFeatures
    item_specs: Mapping[str, FeatureSpec]
    user_specs: Mapping[str, FeatureSpec]
    warm_started_items: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    history_weights: NDArray[np.float32] | None = None
    context_features: EncodedFeatures = field(default_factory=dict)
    context_encoder: FeatureEncoder | None = None

    @cached_property
    def observed_items(self) -> Rows:
        """[M] ascending rows of the items that a user took or disliked, or that an older model learned.

        The other items are new, or occur in the test part only. Used as negatives, they would teach the model that
        nobody wants what nobody has seen yet.
        """
        is_observed = np.zeros(self.n_items, dtype=np.bool_)
        for rows in (self.histories.values, self.hard_negatives.items, self.warm_started_items):
            is_observed[rows] = True
        return np.flatnonzero(is_observed)

    @cached_property
    def weight_scale(self) -> float:
        """Factor that gives the weights above 0 a mean of 1, so that the learning rate suits any scale of them."""
        if self.history_weights is None:
            return 1.0
        weights = self.history_weights[self.history_weights > 0]
        return 1.0 / float(weights.mean(dtype=np.float64)) if len(weights) else 1.0

    @classmethod
    def from_catalogue(
        cls,
        catalogue: Catalogue,
        encoders: tuple[FeatureEncoder, FeatureEncoder],
        histories: RaggedArray,
        hard_negatives: HardNegatives,
        history_weights: NDArray[np.float32] | None = None,
        history_context: pl.DataFrame | None = None,
    ) -> "TrainingData":
        """Encode the features of all items and users of a catalogue.

        Args:
            catalogue: Items and users.
            encoders: Encoders of the item features and of the user features.
            histories: U histories of item rows, oldest first.
            hard_negatives: See the class.
            history_weights: See the class.
            history_context: Context features of each value of `histories`; None without such.
        """
        item_encoder, user_encoder = encoders
        context_encoder, context_features = None, EncodedFeatures()
        if history_context is not None:
            context_encoder = user_encoder.select(history_context.columns)
            frames = [history_context, *([] if hard_negatives.context is None else [hard_negatives.context])]
            context_features = context_encoder.encode(pl.concat(frames))
        return cls(
            histories=histories,
            hard_negatives=hard_negatives,
            n_items=len(catalogue.items),
            item_features=item_encoder.encode(catalogue.item_features),
            user_features=user_encoder.encode(catalogue.user_features),
            item_specs=item_encoder.specs,
            user_specs=user_encoder.specs,
            history_weights=history_weights,
            context_features=context_features,
            context_encoder=context_encoder,
        )


def to_tensors(features: EncodedFeatures, device: torch.device) -> dict[str, Tensor]:
    """Copy encoded features to a device."""
    return {name: torch.from_numpy(array).to(device) for name, array in features.items()}


def take(features: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Select the features of [B] rows: [N, ...] → [B, ...] each."""
    return {name: values[rows] for name, values in features.items()}
