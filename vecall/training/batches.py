"""Samples of an epoch in shuffled batches, each with the history up to its own position and never beyond."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.arrays import Rows
from vecall.data.ragged import RaggedArray
from vecall.data.split import LabeledNegatives
from vecall.towers.two_tower import FeatureTensors, TwoTower
from vecall.training.seeding import build_epoch_rng


@dataclass(frozen=True)
class Samples:
    """n (user, item, label) with the place in the user's history that the label was given at.

    Attributes:
        users: [n] user rows.
        items: [n] item rows.
        positions: [n] how many items of the user's history came before.
        labels: [n] float32, 1 for a positive.
    """

    users: Rows
    items: Rows
    positions: Rows
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.users)


def build_positive_samples(histories: RaggedArray, *, min_history: int = 0) -> Samples:
    """Every position of every history is a positive to be told from what came before it.

    Args:
        histories: histories.
        min_history: positions with fewer items before them are left out.
    """
    users = histories.segment_ids
    positions = np.arange(len(histories.values)) - histories.offsets[:-1][users]
    kept = positions >= min_history
    labels = np.ones(int(kept.sum()), dtype=np.float32)
    return Samples(users[kept], histories.values[kept], positions[kept], labels)


def add_negative_samples(positives: Samples, negatives: LabeledNegatives) -> Samples:
    """The positives, then the known negatives."""
    return Samples(
        np.concatenate([positives.users, negatives.users]),
        np.concatenate([positives.items, negatives.items]),
        np.concatenate([positives.positions, negatives.positions]),
        np.concatenate([positives.labels, np.zeros(len(negatives.users), dtype=np.float32)]),
    )


@dataclass(frozen=True)
class SampleBatch:
    """B samples as tensors.

    Attributes:
        users: [B] user rows.
        target_items: [B] item rows.
        labels: [B] 1 for a positive.
        histories: [B, L] item rows, oldest first, padded at the end with 0.
        lengths: [B] how many places of each history count.
    """

    users: Tensor
    target_items: Tensor
    labels: Tensor
    histories: Tensor
    lengths: Tensor

    @property
    def input_items(self) -> Tensor:
        """All items that the users are read from."""
        return self.histories

    @property
    def target_users(self) -> Tensor:
        """[B] the user row of each positive."""
        return self.users

    def replace_input_items(self, input_items: Tensor) -> "SampleBatch":
        """The same batch with other names for those items, such as places in a smaller table."""
        return replace(self, histories=input_items)

    def encode_users(self, towers: TwoTower, item_vectors: Tensor, features: FeatureTensors) -> Tensor:
        """[B, D] the users, from the vectors that `rows` point to and [B] users' features."""
        return towers.encode_users(item_vectors, self.histories, self.lengths, features)


class SampleBatches:
    """The batches of one epoch, in the order that (seed, epoch) gives."""

    def __init__(
        self, samples: Samples, histories: RaggedArray, *, history_length: int, batch_size: int, seed: int, epoch: int
    ) -> None:
        self._samples, self._histories, self._history_length, self._batch_size = (
            samples,
            histories,
            history_length,
            batch_size,
        )
        self._seed, self._epoch = seed, epoch

    def __len__(self) -> int:
        return max(1, len(self._samples) // self._batch_size)

    def __iter__(self) -> Iterator[SampleBatch]:
        # The odd few at the end wait for an epoch that shuffles them forward: batch norm dislikes tiny batches.
        order = build_epoch_rng(self._seed, self._epoch).permutation(len(self._samples))
        for step in range(len(self)):
            yield self._build_batch(order[step * self._batch_size : (step + 1) * self._batch_size])

    def _build_batch(self, indices: Rows) -> SampleBatch:
        samples = self._samples
        users, positions = samples.users[indices], samples.positions[indices]
        histories, lengths = gather_histories(self._histories, users, positions, self._history_length)
        return SampleBatch(
            users=torch.from_numpy(users),
            target_items=torch.from_numpy(samples.items[indices]),
            labels=torch.from_numpy(samples.labels[indices]),
            histories=torch.from_numpy(histories),
            lengths=torch.from_numpy(lengths),
        )


def gather_histories(histories: RaggedArray, users: Rows, positions: Rows, max_length: int) -> tuple[Rows, Rows]:
    """The newest `max_length` items before each position: [B, L] rows padded at the end with 0, and [B] lengths."""
    ends = histories.offsets[users] + positions
    lengths = np.minimum(positions, max_length)
    places = np.arange(int(lengths.max(initial=0)))  # [L]
    filled = places < lengths[:, None]  # [B, L]
    sources = np.where(filled, (ends - lengths)[:, None] + places, 0)
    return np.where(filled, histories.values[sources] if len(histories.values) else 0, 0), lengths
