"""Whole histories in batches: with a causal user tower one pass learns from every position."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.data.ragged import Rows, Sequences
from vecall.towers.two_tower import Features, TwoTower
from vecall.training.batches import histories_before
from vecall.training.seeding import shuffler

_SORTED_TOGETHER = 20  # batches whose windows are sorted by length, so that little is padding


@dataclass(frozen=True)
class Windows:
    """n pieces of histories.

    Attributes:
        users: [n] user rows.
        ends: [n] the item of the history that each ends before.
        firsts: [n] the first place that is learned; those before it are only read.
        longest: L + 1, how many items one holds where there are so many.
    """

    users: Rows
    ends: Rows
    firsts: Rows
    longest: int

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> Rows:
        """[n] items."""
        return np.minimum(self.ends, self.longest)

    @property
    def positives(self) -> Rows:
        """[n] places that are learned."""
        return self.lengths - self.firsts


def cut_windows(train: Sequences, length: int, *, least_history: int) -> Windows:
    """Every position with at least `least_history` items before it once, and L / 2 of them where there are so many.

    Args:
        train: histories.
        length: L, how many items the user tower reads.
        least_history: 0 or more.
    """
    pieces: list[NDArray[np.int64]] = []
    ends = train.lengths.copy()  # of what is not cut yet, within each history
    users = np.flatnonzero(ends > least_history)
    step = max(1, length // 2)
    while len(users):
        long = ends[users] > length + 1
        firsts = np.where(long, length + 1 - step, least_history)
        pieces.append(np.stack([users, ends[users], firsts]))
        ends[users] -= step
        users = users[long]
    together = np.concatenate(pieces, axis=1) if pieces else np.empty((3, 0), dtype=np.int64)
    return Windows(together[0], together[1], together[2], length + 1)


@dataclass(frozen=True)
class WindowBatch:
    """B windows, and the P places in them that are learned.

    Attributes:
        users: [B] user rows.
        rows: [B, W] item rows, oldest first, padded at the end with 0.
        owners: [P] the window of each place.
        places: [P] how many items of the window come before.
        items: [P] the positives.
    """

    users: Tensor
    rows: Tensor
    owners: Tensor
    places: Tensor
    items: Tensor

    @property
    def takers(self) -> Tensor:
        """[P] the user row of each positive."""
        return self.users[self.owners]

    def with_rows(self, rows: Tensor) -> "WindowBatch":
        """The same batch with other names for its items, such as places in a smaller table."""
        return replace(self, rows=rows)

    @property
    def histories(self) -> Tensor:
        """[P, W - 1] what was read before each place; only the first `lengths` count."""
        return self.rows[self.owners, :-1]

    @property
    def lengths(self) -> Tensor:
        """[P]."""
        return self.places

    def encode_users(self, towers: TwoTower, item_vectors: Tensor, features: Features) -> Tensor:
        """[P, D] the user as of each place, from the vectors that `rows` point to and [B] users' features."""
        return towers.encode_places(item_vectors, self.rows[:, :-1], self.owners, self.places, features)


class WindowBatches:
    """The batches of one epoch, in the order that (seed, epoch) gives.

    Args:
        windows: of `train`.
        train: histories.
        batch: positives a batch, about: windows are not divided.
        seed: of the order.
        epoch: the order is another in each.
    """

    def __init__(self, windows: Windows, train: Sequences, *, batch: int, seed: int, epoch: int) -> None:
        self._windows, self._train = windows, train
        random = shuffler(seed, epoch)
        order = random.permutation(len(windows))
        lengths, positives = windows.lengths, windows.positives  # once for all pools
        pools = max(1, round(positives.sum() / (_SORTED_TOGETHER * batch)))
        cut: list[Rows] = []
        for pool in np.array_split(order, pools):
            ordered = pool[np.argsort(lengths[pool], kind="stable")]
            cut += (one for one in _cut(ordered, positives[ordered], batch) if len(one))
        self._batches = [cut[number] for number in random.permutation(len(cut))]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[WindowBatch]:
        return map(self._make, self._batches)

    def _make(self, chosen: Rows) -> WindowBatch:
        windows = self._windows
        users = windows.users[chosen]
        rows, lengths = histories_before(self._train, users, windows.ends[chosen], windows.longest)  # [B, W], [B]
        places = np.arange(rows.shape[1])  # [W]
        owners, learned = np.nonzero((places < lengths[:, None]) & (places >= windows.firsts[chosen, None]))
        return WindowBatch(
            users=torch.from_numpy(users),
            rows=torch.from_numpy(rows),
            owners=torch.from_numpy(owners),
            places=torch.from_numpy(learned),
            items=torch.from_numpy(rows[owners, learned]),
        )


def _cut(windows: Rows, positives: Rows, batch: int) -> list[Rows]:
    """Windows, in their order, in pieces that hold about as many positives each."""
    each = positives.sum() / max(1, round(positives.sum() / batch))
    numbers = (np.cumsum(positives) - positives) // max(1, each)
    return np.split(windows, np.flatnonzero(np.diff(numbers)) + 1)
