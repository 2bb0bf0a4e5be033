"""Samples of an epoch in shuffled batches, each with the history up to its own position and never beyond."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.data.ragged import Rows, Sequences
from vecall.data.split import Pairs
from vecall.towers.two_tower import Features, TwoTower
from vecall.training.seeding import shuffler


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


def positive_samples(train: Sequences, *, least_history: int = 0) -> Samples:
    """Every position of every history is a positive to be told from what came before it.

    Args:
        train: histories.
        least_history: positions with fewer items before them are left out.
    """
    users = train.owners
    positions = np.arange(len(train.rows)) - train.offsets[:-1][users]
    kept = positions >= least_history
    labels = np.ones(int(kept.sum()), dtype=np.float32)
    return Samples(users[kept], train.rows[kept], positions[kept], labels)


def labelled_samples(positives: Samples, negatives: Pairs) -> Samples:
    """The positives, then the known negatives."""
    return Samples(
        np.concatenate([positives.users, negatives.users]),
        np.concatenate([positives.items, negatives.items]),
        np.concatenate([positives.positions, negatives.positions]),
        np.concatenate([positives.labels, np.zeros(len(negatives.users), dtype=np.float32)]),
    )


@dataclass(frozen=True)
class Batch:
    """B samples as tensors.

    Attributes:
        users: [B] user rows.
        items: [B] item rows.
        labels: [B] 1 for a positive.
        histories: [B, L] item rows, oldest first, padded at the end with 0.
        lengths: [B] how many places of each history count.
    """

    users: Tensor
    items: Tensor
    labels: Tensor
    histories: Tensor
    lengths: Tensor

    @property
    def rows(self) -> Tensor:
        """All items that the users are read from."""
        return self.histories

    @property
    def takers(self) -> Tensor:
        """[B] the user row of each positive."""
        return self.users

    def with_rows(self, rows: Tensor) -> "Batch":
        """The same batch with other names for those items, such as places in a smaller table."""
        return replace(self, histories=rows)

    def encode_users(self, towers: TwoTower, item_vectors: Tensor, features: Features) -> Tensor:
        """[B, D] the users, from the vectors that `rows` point to and [B] users' features."""
        return towers.encode_users(item_vectors, self.histories, self.lengths, features)


class EpochBatches:
    """The batches of one epoch, in the order that (seed, epoch) gives."""

    def __init__(self, samples: Samples, train: Sequences, *, length: int, batch: int, seed: int, epoch: int) -> None:
        self._samples, self._train, self._length, self._batch = samples, train, length, batch
        self._seed, self._epoch = seed, epoch

    def __len__(self) -> int:
        return max(1, len(self._samples) // self._batch)

    def __iter__(self) -> Iterator[Batch]:
        # The odd few at the end wait for an epoch that shuffles them forward: batch norm dislikes tiny batches.
        order = shuffler(self._seed, self._epoch).permutation(len(self._samples))
        for step in range(len(self)):
            yield self._make(order[step * self._batch : (step + 1) * self._batch])

    def _make(self, chosen: Rows) -> Batch:
        samples = self._samples
        users, positions = samples.users[chosen], samples.positions[chosen]
        histories, lengths = histories_before(self._train, users, positions, self._length)
        return Batch(
            users=torch.from_numpy(users),
            items=torch.from_numpy(samples.items[chosen]),
            labels=torch.from_numpy(samples.labels[chosen]),
            histories=torch.from_numpy(histories),
            lengths=torch.from_numpy(lengths),
        )


def histories_before(train: Sequences, users: Rows, positions: Rows, length: int) -> tuple[Rows, Rows]:
    """The newest `length` items before each position: [B, L] rows padded at the end with 0, and [B] lengths."""
    ends = train.offsets[users] + positions
    lengths = np.minimum(positions, length)
    places = np.arange(int(lengths.max(initial=0)))  # [L]
    filled = places < lengths[:, None]  # [B, L]
    sources = np.where(filled, (ends - lengths)[:, None] + places, 0)
    return np.where(filled, train.rows[sources] if len(train.rows) else 0, 0), lengths
