"""What a peer gets and returns: a split as a file of arrays, and the best items of each test user.

Runs in the peers' own environment, without vecall.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VALIDATION_K = 100  # of the recall that chooses settings and epochs
LIST_LENGTH = 500  # items that a peer returns for each test user

Rows = NDArray[np.int64]
Recommend = Callable[["ItemLists", Rows, int], Rows]
"""Maps histories of B users, their user rows and k to the rows of the k best unseen items, [B, k]; -1 for none."""


@dataclass(frozen=True)
class ItemLists:
    """Lists of item rows: the values, and the n + 1 offsets of n lists in them."""

    values: Rows
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Rows:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[Rows]:
        return (self[index] for index in range(len(self)))

    @property
    def owners(self) -> Rows:
        """Index of the list of each value."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


@dataclass(frozen=True)
class PeerCases:
    """A split, by user and item rows.

    Attributes:
        n_items: number of items.
        train: training histories of all users.
        valid_users: users of the validation.
        valid_histories: their histories.
        valid_targets: their held-out items.
        test_users: users of the test.
        test_histories: their histories.
    """

    n_items: int
    train: ItemLists
    valid_users: Rows
    valid_histories: ItemLists
    valid_targets: ItemLists
    test_users: Rows
    test_histories: ItemLists

    @classmethod
    def load(cls, path: Path) -> "PeerCases":
        """Read the arrays that `harness.accuracy.peer_process` has written."""
        with np.load(path) as arrays:

            def read_lists(name: str) -> ItemLists:
                return ItemLists(arrays[f"{name}_values"], arrays[f"{name}_offsets"])

            return cls(
                n_items=int(arrays["n_items"]),
                train=read_lists("train"),
                valid_users=arrays["valid_users"],
                valid_histories=read_lists("valid_histories"),
                valid_targets=read_lists("valid_targets"),
                test_users=arrays["test_users"],
                test_histories=read_lists("test_histories"),
            )


class TimedSearch:
    """Keeps the test lists of what had the best validation recall, as long as there is time.

    Args:
        cases: the split.
        seconds: time for everything: training, validation and the lists of the test.
    """

    def __init__(self, cases: PeerCases, seconds: float) -> None:
        self._cases, self._seconds = cases, seconds
        self._start = time.perf_counter()
        self._tried: list[dict[str, Any]] = []
        self._best_recall, self._best_rows = -1.0, np.empty((0, LIST_LENGTH), dtype=np.int64)

    def has_time(self) -> bool:
        """Return whether another step as long as the mean of those so far ends in time; the first one always does."""
        elapsed = time.perf_counter() - self._start
        return not self._tried or elapsed * (1 + 1 / len(self._tried)) <= self._seconds

    def consider(self, description: str, recommend: Recommend) -> None:
        """Measure the validation recall, and keep the test lists if it is the best so far."""
        cases = self._cases
        rows = recommend(cases.valid_histories, cases.valid_users, VALIDATION_K)
        recall = compute_recall(rows, cases.valid_targets)
        if recall > self._best_recall:
            self._best_recall = recall
            self._best_rows = recommend(cases.test_histories, cases.test_users, LIST_LENGTH)
        seconds = round(time.perf_counter() - self._start, 1)
        self._tried.append({"tried": description, f"valid_recall@{VALIDATION_K}": round(recall, 4), "seconds": seconds})
        print(json.dumps(self._tried[-1]), flush=True)

    def save(self, path: Path) -> None:
        """Write the lists of the test users, [n, 500], and what was tried."""
        np.savez(path, rows=self._best_rows, tried=json.dumps(self._tried))


def compute_recall(rows: Rows, targets: ItemLists) -> float:
    """Return the mean over the users of the share of their targets among their rows [n, k]."""
    shares = [np.isin(items, row).mean() for row, items in zip(rows, targets, strict=True)]
    return float(np.mean(shares))


def pad_left(lists: ItemLists, length: int) -> Rows:
    """Return the last `length` values of each list plus 1, [n, length], with 0 before them."""
    padded = np.zeros((len(lists), length), dtype=np.int64)
    for row, values in zip(padded, lists, strict=True):
        newest = values[-length:]
        row[length - len(newest) :] = newest + 1
    return padded


def rank_unseen(scores: NDArray[np.float32], histories: ItemLists, k: int) -> Rows:
    """Return the rows of the k best scores [B, n] of each user without those of their history, best first."""
    scores[histories.owners, histories.values] = -np.inf
    k = min(k, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)
