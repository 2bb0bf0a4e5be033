"""Whole histories in batches: with a causal user tower one pass learns from every position."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.arrays import Rows
from vecall.data.ragged import RaggedArray
from vecall.towers.two_tower import FeatureTensors, TwoTower
from vecall.training.batches import gather_histories
from vecall.training.seeding import build_epoch_rng

_SORT_POOL_BATCHES = 20  # batches whose windows are sorted by length, so that little is padding


@dataclass(frozen=True)
class Windows:
    """n pieces of histories.

    Attributes:
        users: [n] user rows.
        ends: [n] the item of the history that each ends before.
        loss_starts: [n] the first place that is learned; those before it are only read.
        max_length: L + 1, how many items one holds where there are so many.
    """

    users: Rows
    ends: Rows
    loss_starts: Rows
    max_length: int

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> Rows:
        """[n] items."""
        return np.minimum(self.ends, self.max_length)

    @property
    def target_counts(self) -> Rows:
        """[n] places that are learned."""
        return self.lengths - self.loss_starts


def cut_windows(histories: RaggedArray, history_length: int, *, min_history: int) -> Windows:
    """Every position with at least `min_history` items before it once, and L / 2 of them where there are so many.

    Args:
        histories: histories.
        history_length: L, how many items the user tower reads.
        min_history: 0 or more.
    """
    pieces: list[NDArray[np.int64]] = []
    ends = histories.lengths.copy()  # of what is not cut yet, within each history
    users = np.flatnonzero(ends > min_history)
    step = max(1, history_length // 2)
    while len(users):
        long = ends[users] > history_length + 1
        firsts = np.where(long, history_length + 1 - step, min_history)
        pieces.append(np.stack([users, ends[users], firsts]))
        ends[users] -= step
        users = users[long]
    together = np.concatenate(pieces, axis=1) if pieces else np.empty((3, 0), dtype=np.int64)
    return Windows(together[0], together[1], together[2], history_length + 1)


@dataclass(frozen=True)
class WindowBatch:
    """B windows, and the P places in them that are learned.

    Attributes:
        users: [B] user rows.
        input_items: [B, W] item rows, oldest first, padded at the end with 0.
        window_index: [P] the window of each place.
        positions: [P] how many items of the window come before.
        target_items: [P] the positives.
    """

    users: Tensor
    input_items: Tensor
    window_index: Tensor
    positions: Tensor
    target_items: Tensor

    @property
    def target_users(self) -> Tensor:
        """[P] the user row of each positive."""
        return self.users[self.window_index]

    def replace_input_items(self, input_items: Tensor) -> "WindowBatch":
        """The same batch with other names for its items, such as places in a smaller table."""
        return replace(self, input_items=input_items)

    @property
    def histories(self) -> Tensor:
        """[P, W - 1] what was read before each place; only the first `lengths` count."""
        return self.input_items[self.window_index, :-1]

    @property
    def lengths(self) -> Tensor:
        """[P]."""
        return self.positions

    def encode_users(self, towers: TwoTower, item_vectors: Tensor, features: FeatureTensors) -> Tensor:
        """[P, D] the user as of each place, from the vectors that `rows` point to and [B] users' features."""
        return towers.encode_positions(
            item_vectors, self.input_items[:, :-1], self.window_index, self.positions, features
        )


class WindowBatches:
    """The batches of one epoch, in the order that (seed, epoch) gives.

    Args:
        windows: of `histories`.
        histories: histories.
        batch_size: positives a batch, about: windows are not divided.
        seed: of the order.
        epoch: the order is another in each.
    """

    def __init__(self, windows: Windows, histories: RaggedArray, *, batch_size: int, seed: int, epoch: int) -> None:
        self._windows, self._histories = windows, histories
        random = build_epoch_rng(seed, epoch)
        order = random.permutation(len(windows))
        lengths, positives = windows.lengths, windows.target_counts  # once for all pools
        pools = max(1, round(positives.sum() / (_SORT_POOL_BATCHES * batch_size)))
        cut: list[Rows] = []
        for pool in np.array_split(order, pools):
            ordered = pool[np.argsort(lengths[pool], kind="stable")]
            cut += (one for one in _split_by_target_count(ordered, positives[ordered], batch_size) if len(one))
        self._batches = [cut[number] for number in random.permutation(len(cut))]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[WindowBatch]:
        return map(self._build_batch, self._batches)

    def _build_batch(self, indices: Rows) -> WindowBatch:
        windows = self._windows
        users = windows.users[indices]
        rows, lengths = gather_histories(
            self._histories, users, windows.ends[indices], windows.max_length
        )  # [B, W], [B]
        places = np.arange(rows.shape[1])  # [W]
        owners, learned = np.nonzero((places < lengths[:, None]) & (places >= windows.loss_starts[indices, None]))
        return WindowBatch(
            users=torch.from_numpy(users),
            input_items=torch.from_numpy(rows),
            window_index=torch.from_numpy(owners),
            positions=torch.from_numpy(learned),
            target_items=torch.from_numpy(rows[owners, learned]),
        )


def _split_by_target_count(windows: Rows, target_counts: Rows, batch_size: int) -> list[Rows]:
    """Windows, in their order, in pieces that hold about as many positives each."""
    each = target_counts.sum() / max(1, round(target_counts.sum() / batch_size))
    numbers = (np.cumsum(target_counts) - target_counts) // max(1, each)
    return np.split(windows, np.flatnonzero(np.diff(numbers)) + 1)
