"""Shuffled batches of samples, each with the user's history before the sample's own position."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.arrays import Rows
from vecall.data.ragged import RaggedArray, offsets_from_lengths
from vecall.data.split import HardNegatives
from vecall.towers.two_tower import FeatureTensors, TwoTower
from vecall.training.seeding import build_epoch_rng
from vecall.training.shards import BatchPart, Shard, WholeBatch


@dataclass(frozen=True)
class Samples:
    """Labeled (user, item) pairs, each at a position of the user's history.

    Attributes:
        users: [n] user rows, int32 like the next two.
        items: [n] item rows.
        positions: [n] number of items of the user's history before the sample.
        labels: [n] float32, 1 for a positive, 0 for a negative.
        weights: [n] weight in the loss, above 0; None if all weigh the same.
        context_rows: [n] row in the encoded context features, that of a negative from the end; None without such.
    """

    users: Rows
    items: Rows
    positions: Rows
    labels: NDArray[np.float32]
    weights: NDArray[np.float32] | None = None
    context_rows: Rows | None = None

    def __len__(self) -> int:
        return len(self.users)


def build_positive_samples(
    histories: RaggedArray,
    *,
    min_history: int = 0,
    weights: NDArray[np.float32] | None = None,
    has_context: bool = False,
) -> Samples:
    """Make a positive sample of every position of every history that weighs more than 0.

    Args:
        histories: U histories of item rows, oldest first.
        min_history: Positions with fewer items before them are left out.
        weights: Weight in the loss of each value of `histories`; None if all weigh the same.
        has_context: Whether each value of `histories` has a row of encoded context features.
    """
    counts = np.maximum(histories.lengths - min_history, 0)  # [U] samples of each history
    users = np.repeat(np.arange(len(histories), dtype=np.int32), counts)
    firsts = (offsets_from_lengths(counts)[:-1] - min_history).astype(np.int32)
    positions = np.arange(len(users), dtype=np.int32) - np.repeat(firsts, counts)
    is_kept = np.ones(len(histories.values), dtype=np.bool_)
    for position in range(min_history):
        is_kept[(histories.offsets[:-1] + position)[histories.lengths > position]] = False
    items, labels = histories.values[is_kept], np.ones(len(users), dtype=np.float32)
    rows = np.flatnonzero(is_kept) if has_context else None
    if weights is None:
        return Samples(users, items, positions, labels, context_rows=rows)
    sample_weights = weights[is_kept]
    kept = np.flatnonzero(sample_weights)
    rows = None if rows is None else rows[kept]
    return Samples(users[kept], items[kept], positions[kept], labels[kept], sample_weights[kept], rows)


def add_negative_samples(positives: Samples, negatives: HardNegatives) -> Samples:
    """Append samples with label 0 to the positives, of whose weights they have the mean."""
    count = len(negatives.users)
    labels = np.zeros(count, dtype=np.float32)
    weights = positives.weights
    if weights is not None:
        mean = weights.mean(dtype=np.float64)
        weights = np.concatenate([weights, np.full(count, mean, dtype=np.float32)])
    return Samples(
        np.concatenate([positives.users, negatives.users.astype(np.int32)]),
        np.concatenate([positives.items, negatives.items]),
        np.concatenate([positives.positions, negatives.prior_positive_counts.astype(np.int32)]),
        np.concatenate([positives.labels, labels]),
        weights,
        None if positives.context_rows is None else np.concatenate([positives.context_rows, np.arange(-count, 0)]),
    )


@dataclass(frozen=True)
class SampleBatch(BatchPart):
    """B samples as tensors.

    Attributes:
        users: [B] user rows.
        target_items: [B] item rows.
        labels: [B] 1 for a positive, 0 for a negative.
        histories: [B, L] item rows before the sample, oldest first, padded at the end with 0.
        lengths: [B] number of items of each history.
    """

    users: Tensor
    target_items: Tensor
    labels: Tensor
    histories: Tensor
    lengths: Tensor

    @property
    def input_items(self) -> Tensor:
        """[B, L] rows of all items that the user tower reads."""
        return self.histories

    @property
    def target_users(self) -> Tensor:
        """[B] user row of each target item."""
        return self.users

    @property
    def step_targets(self) -> tuple[Tensor, Tensor]:
        """User rows and item rows of the targets of the whole batch."""
        return (self.target_users, self.target_items) if self.whole is None else (self.whole.users, self.whole.items)

    def compute_pair_weight(self, n_negatives: int) -> float:
        """Return the factor from a mean over pairs to the weight that this part's pairs have in the whole batch.

        Args:
            n_negatives: Pairs of each positive beside itself; a sample with label 0 has one pair.
        """
        if self.whole is None:
            return 1.0
        pairs = 1.0 + n_negatives * (self.whole.labels > 0)
        return float(self.select_part(pairs).mean() / pairs.mean())

    def replace_input_items(self, input_items: Tensor) -> "SampleBatch":
        """Return the batch with [B, L] other numbers for its input items, such as rows of a smaller table."""
        return replace(self, histories=input_items)

    def encode_users(self, towers: TwoTower, item_vectors: Tensor, features: FeatureTensors) -> Tensor:
        """Encode the user of each sample.

        Args:
            towers: Towers to encode with.
            item_vectors: [M, D] vectors that `input_items` are rows of.
            features: Encoded features of the B users.

        Returns:
            [B, D] vectors of length 1.
        """
        return towers.encode_users(item_vectors, self.histories, self.lengths, features)


class SampleBatches:
    """Batches of one epoch, shuffled by (seed, epoch).

    All batches are full, and the samples left over are skipped; fewer samples than a batch make one smaller batch.

    Args:
        samples: Samples to learn from.
        histories: Histories that the samples' positions refer to.
        history_length: L, number of newest items that a history is cut to.
        batch_size: B, number of samples of a batch.
        seed: Seed of the order.
        epoch: Number of the epoch.
        shard: Part of each batch to build; None for all of it.
    """

    def __init__(
        self,
        samples: Samples,
        histories: RaggedArray,
        *,
        history_length: int,
        batch_size: int,
        seed: int,
        epoch: int,
        shard: Shard | None = None,
    ) -> None:
        self._samples, self._histories = samples, histories
        self._history_length, self._batch_size = history_length, batch_size
        self._seed, self._epoch, self._shard = seed, epoch, shard

    def __len__(self) -> int:
        return max(1, len(self._samples) // self._batch_size)

    def __iter__(self) -> Iterator[SampleBatch]:
        # Batch norm does badly on a tiny last batch; another epoch shuffles the samples left out here to the front.
        order = build_epoch_rng(self._seed, self._epoch).permutation(len(self._samples))
        for step in range(len(self)):
            indices = order[step * self._batch_size : (step + 1) * self._batch_size]
            yield self._build_batch(indices) if self._shard is None else self._build_part(indices, self._shard)

    def _build_part(self, indices: Rows, shard: Shard) -> SampleBatch:
        """Build this process's part of a batch."""
        samples = self._samples
        part = shard.select(np.ones(len(indices), dtype=np.int64))
        is_padding = part.start == part.stop
        if is_padding:
            part = slice(0, 1)
        whole = WholeBatch(
            users=torch.from_numpy(samples.users[indices]),
            items=torch.from_numpy(samples.items[indices]),
            labels=torch.from_numpy(samples.labels[indices]),
            part=part,
            n_processes=shard.size,
            is_padding=is_padding,
        )
        return replace(self._build_batch(indices[part]), whole=whole)

    def _build_batch(self, indices: Rows) -> SampleBatch:
        samples = self._samples
        users, positions = samples.users[indices].astype(np.int64), samples.positions[indices].astype(np.int64)
        histories, lengths = gather_histories(self._histories, users, positions, self._history_length)
        return SampleBatch(
            users=torch.from_numpy(users),
            target_items=torch.from_numpy(samples.items[indices].astype(np.int64)),
            labels=torch.from_numpy(samples.labels[indices]),
            histories=torch.from_numpy(histories),
            lengths=torch.from_numpy(lengths),
            weights=None if samples.weights is None else torch.from_numpy(samples.weights[indices]),
            context_rows=None if samples.context_rows is None else torch.from_numpy(samples.context_rows[indices]),
        )


def gather_histories(histories: RaggedArray, users: Rows, positions: Rows, max_length: int) -> tuple[Rows, Rows]:
    """Collect the newest items before each position.

    Args:
        histories: U histories of item rows, oldest first.
        users: [B] user rows.
        positions: [B] number of items of the user's history before the position.
        max_length: Most items to take.

    Returns:
        [B, L] item rows, oldest first, padded at the end with 0, and [B] lengths, both int64; L is the largest length.
    """
    ends = histories.offsets[users] + positions
    lengths = np.minimum(positions, max_length)
    columns = np.arange(int(lengths.max(initial=0)))  # [L]
    is_item = columns < lengths[:, None]  # [B, L]
    sources = np.where(is_item, (ends - lengths)[:, None] + columns, 0)
    items = histories.values[sources].astype(np.int64) if len(histories.values) else np.zeros_like(sources)
    return np.where(is_item, items, 0), lengths
