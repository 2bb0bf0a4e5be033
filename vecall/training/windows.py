"""Windows of whole histories in batches: with a causal user tower, one pass learns every position of a window."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.arrays import Rows
from vecall.data.ragged import RaggedArray, locate_segments, offsets_from_lengths
from vecall.towers.two_tower import FeatureTensors, TwoTower
from vecall.training.batches import gather_histories
from vecall.training.seeding import build_epoch_rng
from vecall.training.shards import BatchPart, Shard, WholeBatch

_SORT_POOL_BATCHES = 20  # about so many batches of windows are sorted by length together, which leaves little padding


@dataclass(frozen=True)
class Windows:
    """n windows, each a run of consecutive items of a history.

    Attributes:
        users: [n] user rows.
        ends: [n] end of the window in the user's history, exclusive.
        loss_starts: [n] first position of the window with a loss; the items before it are only read.
        max_length: L + 1, the most items of a window.
        target_counts: [n] number of positions with a loss, 1 or more.
        weights: Weight in the loss of each value of the histories; those of weight 0 have none. None if all weigh the
            same.
    """

    users: Rows
    ends: Rows
    loss_starts: Rows
    max_length: int
    target_counts: Rows
    weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> Rows:
        """[n] number of items of each window."""
        return np.minimum(self.ends, self.max_length)


def cut_windows(
    histories: RaggedArray, history_length: int, *, min_history: int, weights: NDArray[np.float32] | None = None
) -> Windows:
    """Cut histories into overlapping windows so that each position has a loss in exactly one of them.

    At a position with a loss the window holds all items before it, or at least the newest L / 2 of a longer history.

    Args:
        histories: U histories of item rows, oldest first.
        history_length: L, number of items that the user tower reads.
        min_history: Positions with fewer items before them have no loss; 0 or more.
        weights: Weight in the loss of each value of `histories`; where it is 0, a position has none. None if all weigh
            the same.
    """
    pieces: list[NDArray[np.int64]] = []
    ends = histories.lengths.copy()  # [U] end of the part of each history that is not cut yet
    users = np.flatnonzero(ends > min_history)
    step = max(1, history_length // 2)
    while len(users):
        is_long = ends[users] > history_length + 1
        loss_starts = np.where(is_long, history_length + 1 - step, min_history)
        pieces.append(np.stack([users, ends[users], loss_starts]))
        ends[users] -= step
        users = users[is_long]
    stacked = np.concatenate(pieces, axis=1) if pieces else np.empty((3, 0), dtype=np.int64)  # [3, n]
    users, ends, loss_starts = stacked
    lengths = np.minimum(ends, history_length + 1)
    if weights is None:
        return Windows(users, ends, loss_starts, history_length + 1, lengths - loss_starts)
    counts = offsets_from_lengths((weights > 0).astype(np.int64))  # of the positions with a loss before each
    stops = histories.offsets[users] + ends
    target_counts = counts[stops] - counts[stops - lengths + loss_starts]
    kept = np.flatnonzero(target_counts)
    return Windows(users[kept], ends[kept], loss_starts[kept], history_length + 1, target_counts[kept], weights)


@dataclass(frozen=True)
class WindowBatch(BatchPart):
    """B windows of up to W items, with a loss at P positions of them.

    Attributes:
        users: [B] user rows.
        input_items: [B, W] item rows, oldest first, padded at the end with 0.
        window_index: [P] window of each position.
        positions: [P] number of items of the window before the position.
        target_items: [P] item rows of the positives.
    """

    users: Tensor
    input_items: Tensor
    window_index: Tensor
    positions: Tensor
    target_items: Tensor

    @property
    def target_users(self) -> Tensor:
        """[P] user row of each positive."""
        return self.users[self.window_index]

    @property
    def step_targets(self) -> tuple[Tensor, Tensor]:
        """User rows and item rows of the targets of the whole batch."""
        return (self.target_users, self.target_items) if self.whole is None else (self.whole.users, self.whole.items)

    def replace_input_items(self, input_items: Tensor) -> "WindowBatch":
        """Return the batch with [B, W] other numbers for its input items, such as rows of a smaller table."""
        return replace(self, input_items=input_items)

    @property
    def histories(self) -> Tensor:
        """[P, W - 1] input items of each position's window; only the first `lengths` are read at the position."""
        return self.input_items[self.window_index, :-1]

    @property
    def lengths(self) -> Tensor:
        """[P] number of items read at each position."""
        return self.positions

    def encode_users(self, towers: TwoTower, item_vectors: Tensor, features: FeatureTensors) -> Tensor:
        """Encode the user at each position.

        Args:
            towers: Causal towers to encode with.
            item_vectors: [M, D] vectors that `input_items` are rows of.
            features: Encoded features of the user at each position, [P, ...] each.

        Returns:
            [P, D] vectors of length 1.
        """
        return towers.encode_users_at_positions(
            item_vectors, self.input_items[:, :-1], self.window_index, self.positions, features
        )


class WindowBatches:
    """Batches of one epoch, shuffled by (seed, epoch).

    Args:
        windows: Windows of `histories`.
        histories: U histories of item rows, oldest first.
        batch_size: Approximate number of positives of a batch; windows are not divided.
        seed: Seed of the order.
        epoch: Number of the epoch.
        shard: Part of each batch to build; None for all of it.
        has_context: Whether each value of `histories` has a row of encoded context features.
    """

    def __init__(
        self,
        windows: Windows,
        histories: RaggedArray,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        shard: Shard | None = None,
        has_context: bool = False,
    ) -> None:
        self._windows, self._histories, self._shard, self._has_context = windows, histories, shard, has_context
        rng = build_epoch_rng(seed, epoch)
        order = rng.permutation(len(windows))
        lengths, target_counts = windows.lengths, windows.target_counts
        self._target_counts = target_counts
        n_pools = max(1, round(target_counts.sum() / (_SORT_POOL_BATCHES * batch_size)))
        batches: list[Rows] = []
        for pool in np.array_split(order, n_pools):
            by_length = pool[np.argsort(lengths[pool], kind="stable")]
            batches += filter(len, _split_by_target_count(by_length, target_counts[by_length], batch_size))
        self._batches = [batches[index] for index in rng.permutation(len(batches))]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[WindowBatch]:
        for indices in self._batches:
            yield self._build_batch(indices) if self._shard is None else self._build_part(indices, self._shard)

    def _build_part(self, indices: Rows, shard: Shard) -> WindowBatch:
        """Build this process's windows of a batch, with about as many positives as those of the other processes."""
        target_counts = self._target_counts[indices]
        windows = shard.select(target_counts)
        is_padding = windows.start == windows.stop
        if is_padding:
            windows = slice(0, 1)
        starts = np.concatenate([[0], np.cumsum(target_counts)])  # of each window's targets
        items = self._histories.values[self._locate_targets(indices)]
        whole = WholeBatch(
            users=torch.from_numpy(np.repeat(self._windows.users[indices], target_counts)),
            items=torch.from_numpy(items),
            labels=torch.ones(len(items)),
            part=slice(int(starts[windows.start]), int(starts[windows.stop])),
            n_processes=shard.size,
            is_padding=is_padding,
        )
        return replace(self._build_batch(indices[windows]), whole=whole)

    def _locate_targets(self, indices: Rows) -> Rows:
        """Return where in the values of the histories the targets of some windows are, window by window."""
        windows = self._windows
        ends = self._histories.offsets[windows.users[indices]] + windows.ends[indices]
        counts = np.minimum(windows.ends[indices], windows.max_length) - windows.loss_starts[indices]
        located = locate_segments(ends - counts, counts)  # those that may be targets are the last of each window
        return located if windows.weights is None else located[windows.weights[located] > 0]

    def _build_batch(self, indices: Rows) -> WindowBatch:
        windows = self._windows
        users = windows.users[indices]
        items, lengths = gather_histories(
            self._histories, users, windows.ends[indices], windows.max_length
        )  # [B, W], [B]
        located = self._locate_targets(indices)  # [P]
        window_index = np.repeat(np.arange(len(indices)), self._target_counts[indices])  # [P]
        starts = self._histories.offsets[users] + windows.ends[indices] - lengths  # [B]
        positions = located - starts[window_index]  # [P]
        return WindowBatch(
            users=torch.from_numpy(users),
            input_items=torch.from_numpy(items),
            window_index=torch.from_numpy(window_index),
            positions=torch.from_numpy(positions),
            target_items=torch.from_numpy(items[window_index, positions]),
            weights=None if windows.weights is None else torch.from_numpy(windows.weights[located]),
            context_rows=torch.from_numpy(located) if self._has_context else None,
        )


def _split_by_target_count(windows: Rows, target_counts: Rows, batch_size: int) -> list[Rows]:
    """Split windows, in their order, into batches with about `batch_size` and about equally many targets."""
    targets_per_batch = target_counts.sum() / max(1, round(target_counts.sum() / batch_size))
    batch_numbers = (np.cumsum(target_counts) - target_counts) // max(1, targets_per_batch)
    return np.split(windows, np.flatnonzero(np.diff(batch_numbers)) + 1)
