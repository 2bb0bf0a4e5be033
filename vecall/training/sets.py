"""Sets of items in batches: of each user a random part is hidden, and predicted from the rest.

For histories whose order carries nothing. The loss is that of the multinomial likelihood (Liang et al., Variational
Autoencoders for Collaborative Filtering, WWW 2018): a user has one softmax, whatever the number of hidden items.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.arrays import Rows
from vecall.data.ragged import RaggedArray, locate_segments, offsets_from_lengths
from vecall.towers.two_tower import FeatureTensors, TwoTower
from vecall.training.seeding import build_epoch_rng
from vecall.training.shards import BatchPart, Shard, WholeBatch

_BLOCK_ITEMS = 2**22  # sorted together


@dataclass(frozen=True)
class SetBatch(BatchPart):
    """B users, each with the items that are read and those that are hidden; the hidden ones are the P targets.

    Attributes:
        users: [B] user rows.
        input_items: [I] item rows that are read, user by user.
        input_counts: [B] number of items that are read of each user.
        target_items: [P] item rows that are hidden, user by user.
        target_counts: [B] number of hidden items of each user, 1 or more.
    """

    users: Tensor
    input_items: Tensor
    input_counts: Tensor
    target_items: Tensor
    target_counts: Tensor

    @property
    def input_owners(self) -> Tensor:
        """[I] number in 0 .. B - 1 of the user of each item that is read."""
        return torch.repeat_interleave(self.input_counts)

    @property
    def target_owners(self) -> Tensor:
        """[P] number in 0 .. B - 1 of the user of each target."""
        return torch.repeat_interleave(self.target_counts)

    @property
    def step_targets(self) -> tuple[Tensor, Tensor]:
        """User rows and item rows of the targets of the whole batch."""
        if self.whole is None:
            return self.users[self.target_owners], self.target_items
        return self.whole.users, self.whole.items

    def replace_input_items(self, input_items: Tensor) -> "SetBatch":
        """Return the batch with [I] other numbers for its input items, such as rows of a smaller table."""
        return replace(self, input_items=input_items)

    def encode_users(self, towers: TwoTower, item_vectors: Tensor, features: FeatureTensors) -> Tensor:
        """Encode the users.

        Args:
            towers: Towers with the history encoder "set".
            item_vectors: [M, D] vectors that `input_items` are rows of.
            features: Encoded features of the B users.

        Returns:
            [B, D] vectors of length 1.
        """
        return towers.encode_users_by_sets(item_vectors, self.input_items, self.input_counts, features)


@dataclass(frozen=True)
class Sets:
    """Histories as sets.

    Attributes:
        users: [n] rows of the users that can be learned from: 1 or more of their items may be hidden.
        items: U lists of distinct item rows, by user row.
        hideable_counts: [U] number of each user's items that may be hidden: those of a weight above 0.
        weights: Weight in the loss of each value of `items`, the highest of repeats. None if all weigh 1.
    """

    users: Rows
    items: RaggedArray
    hideable_counts: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None

    @classmethod
    def from_histories(
        cls, histories: RaggedArray, weights: NDArray[np.float32] | None = None, *, min_history: int = 1
    ) -> Self:
        """Collect the distinct items of U histories of item rows.

        Args:
            histories: The histories.
            weights: Weight in the loss of each value of `histories`; None if all weigh 1.
            min_history: Users with no more items than that are not learned from; 0 or more.
        """
        is_kept = np.zeros(len(histories.values), dtype=np.bool_)
        lengths, hideable_counts = (np.zeros(len(histories), dtype=np.int64) for _ in range(2))
        for users in _iterate_users(histories):
            values = slice(histories.offsets[users.start], histories.offsets[users.stop])
            count = users.stop - users.start
            owners = np.repeat(np.arange(count), histories.lengths[users])
            own_weights = np.ones(len(owners), dtype=np.float32) if weights is None else weights[values]
            order = np.lexsort((-own_weights, histories.values[values], owners))
            is_first = np.ones(len(order), dtype=np.bool_)
            ordered_items, ordered_owners = histories.values[values][order], owners[order]
            is_first[1:] = (np.diff(ordered_items) != 0) | (np.diff(ordered_owners) != 0)
            kept = order[is_first]
            is_kept[values][kept] = True
            lengths[users] = np.bincount(owners[kept], minlength=count)
            hideable_counts[users] = np.bincount(owners[kept][own_weights[kept] > 0], minlength=count)
        return cls(
            users=np.flatnonzero((lengths > min_history) & (hideable_counts > 0)),
            items=RaggedArray(offsets_from_lengths(lengths), histories.values[is_kept]),
            hideable_counts=hideable_counts,
            weights=None if weights is None else weights[is_kept],
        )

    def count_targets(self, users: Rows, max_length: int, hidden_share: float) -> NDArray[np.int64]:
        """Return how many items of each of [B] users an epoch hides; see `SetBatches`."""
        hideable_counts = self.hideable_counts[users]
        drawn_counts = np.minimum(hideable_counts, int(max_length / (1 - hidden_share)))
        max_targets = np.maximum(1, self.items.lengths[users] - 1)  # of several items one is read
        return np.clip(np.round(hidden_share * drawn_counts), 1, max_targets).astype(np.int64)

    def compute_target_frequencies(self, n_items: int, max_length: int, hidden_share: float) -> NDArray[np.float32]:
        """Compute the share of each item among the targets of an epoch in expectation, [N].

        A user's items of a weight above 0 are targets with the same probability.
        """
        rates = np.zeros(len(self.items))  # [U] probability that an item of the user is a target
        n_targets = self.count_targets(self.users, max_length, hidden_share)
        rates[self.users] = n_targets / self.hideable_counts[self.users]
        expected_counts = np.zeros(n_items)
        for users in _iterate_users(self.items):
            values = slice(self.items.offsets[users.start], self.items.offsets[users.stop])
            by_value = np.repeat(rates[users], self.items.lengths[users])
            if self.weights is not None:
                by_value *= self.weights[values] > 0
            expected_counts += np.bincount(self.items.values[values], by_value, minlength=n_items)
        frequencies: NDArray[np.float32] = (expected_counts / n_targets.sum()).astype(np.float32)
        return frequencies


def _iterate_users(histories: RaggedArray) -> Iterator[slice]:
    """Yield consecutive users with some millions of items together, so that sorting them takes little memory."""
    n_blocks = 1 + len(histories.values) // _BLOCK_ITEMS
    bounds = np.searchsorted(histories.offsets, np.linspace(0, len(histories.values), n_blocks + 1))
    bounds[0], bounds[-1] = 0, len(histories)
    for start, stop in pairwise(np.unique(bounds).tolist()):
        yield slice(start, stop)


class SetBatches:
    """Batches of one epoch, shuffled by (seed, epoch), and the parts of the sets that are hidden in it.

    A target weighs 1 / √(hidden items of its user): a user with four times the items counts twice, not four times.

    Args:
        sets: Sets to learn from.
        max_length: L, most items that the user tower reads; of a larger set an epoch draws L items, those of a
            weight above 0 first, and hides about as many as the share asks for beside them.
        hidden_share: Share of a user's items of a weight above 0 that is hidden, in (0, 1); at least 1 item is, and at
            least 1 of several is not.
        batch_size: About B, number of users of a batch.
        seed: Seed of the order and of what is hidden.
        epoch: Number of the epoch.
        shard: Part of each batch to build; None for all of it.
    """

    def __init__(
        self,
        sets: Sets,
        *,
        max_length: int,
        hidden_share: float,
        batch_size: int,
        seed: int,
        epoch: int,
        shard: Shard | None = None,
    ) -> None:
        self._sets, self._shard = sets, shard
        self._max_length, self._hidden_share = max_length, hidden_share
        self._seed, self._epoch = seed, epoch
        order = build_epoch_rng(seed, epoch).permutation(sets.users)
        self._batches = np.array_split(order, max(1, round(len(order) / batch_size)))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[SetBatch]:
        for step, users in enumerate(self._batches):
            batch = self._build_batch(users, np.random.default_rng((self._seed, self._epoch, step)))
            yield batch if self._shard is None else _select_part(batch, self._shard)

    def _build_batch(self, users: Rows, rng: np.random.Generator) -> SetBatch:
        """Draw the items of some users that are hidden, and those that are read."""
        sets = self._sets
        lengths = sets.items.lengths[users]
        offsets = offsets_from_lengths(lengths)
        sources = locate_segments(sets.items.offsets[users], lengths)
        weights = np.ones(len(sources), dtype=np.float32) if sets.weights is None else sets.weights[sources]
        owners = np.repeat(np.arange(len(users)), lengths)
        order = np.lexsort((rng.random(len(sources)), weights == 0, owners))  # random; those that can be hidden first
        sources, weights = sources[order], weights[order]
        ranks = np.arange(len(owners)) - np.repeat(offsets[:-1], lengths)  # within each owner
        target_counts = sets.count_targets(users, self._max_length, self._hidden_share)
        is_hidden = ranks < target_counts[owners]
        is_read = ~is_hidden & (ranks < (target_counts + self._max_length)[owners])
        items = sets.items.values[sources].astype(np.int64)
        target_weights = weights[is_hidden] / np.sqrt(target_counts[owners[is_hidden]])
        return SetBatch(
            users=torch.from_numpy(users.astype(np.int64)),
            input_items=torch.from_numpy(items[is_read]),
            input_counts=torch.from_numpy(np.bincount(owners[is_read], minlength=len(users))),
            target_items=torch.from_numpy(items[is_hidden]),
            target_counts=torch.from_numpy(target_counts),
            weights=torch.from_numpy(target_weights.astype(np.float32)),
        )


def _select_part(batch: SetBatch, shard: Shard) -> SetBatch:
    """Return this process's users of a batch, with about as many targets as those of the other processes."""
    target_counts = batch.target_counts.numpy()
    users = shard.select(target_counts)
    is_padding = users.start == users.stop
    if is_padding:
        users = slice(0, 1)
    inputs = _slice_of_users(batch.input_counts, users)
    targets = _slice_of_users(batch.target_counts, users)
    whole = WholeBatch(
        users=batch.users[batch.target_owners],
        items=batch.target_items,
        labels=torch.ones(len(batch.target_items)),
        part=targets,
        n_processes=shard.size,
        is_padding=is_padding,
    )
    return SetBatch(
        users=batch.users[users],
        input_items=batch.input_items[inputs],
        input_counts=batch.input_counts[users],
        target_items=batch.target_items[targets],
        target_counts=batch.target_counts[users],
        weights=None if batch.weights is None else batch.weights[targets],
        whole=whole,
    )


def _slice_of_users(counts: Tensor, users: slice) -> slice:
    """Return the slice of the elements of some users, of whom each has [B] counts of them."""
    return slice(int(counts[: users.start].sum()), int(counts[: users.stop].sum()))
