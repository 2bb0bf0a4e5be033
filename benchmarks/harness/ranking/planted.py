"""Planted lists of candidates: whether a user takes an item depends on a crossing that recall knows nothing of."""

import numpy as np
import polars as pl

from vecall.pipeline.ranker_candidates import LabelledCandidates
from vecall.ranking.candidate_columns import FrameColumns

N_ITEMS = 1_000
_LETTERS = "abcd"  # values of the user's group and of the item's kind
_CROSSING = 2  # a user takes an item if group XOR kind, as two bits each, is this
_MATCH_PROBABILITY = 0.9


class PlantedLists:
    """Lists of random items, each with one target.

    All groups, kinds and items are equally frequent, so neither popularity nor a property of the user or of the item
    alone says anything.

    Args:
        n_users: Number of lists.
        n_candidates: Length of a list.
        has_crossing: Whether 9 of 10 targets are of the kind that the user's group takes; otherwise targets are random.
        seed: Of everything.

    Attributes:
        attributes: Attributes of all items.
        user_features: Features of all users.
    """

    def __init__(self, n_users: int, n_candidates: int, *, has_crossing: bool, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._n_candidates, self._has_crossing, self._seed = n_candidates, has_crossing, seed
        self._kinds, self._groups = rng.integers(4, size=N_ITEMS), rng.integers(4, size=n_users)
        self.attributes = pl.DataFrame({"kind": [_LETTERS[kind] for kind in self._kinds]})
        self.user_features = pl.DataFrame({"group": [_LETTERS[group] for group in self._groups]})

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> LabelledCandidates:
        rng = np.random.default_rng([self._seed, index])
        items = rng.choice(N_ITEMS, self._n_candidates, replace=False)
        weights = np.ones(len(items))
        if self._has_crossing:
            is_match = self._kinds[items] ^ self._groups[index] == _CROSSING
            matching, other = is_match.sum(), (~is_match).sum()
            weights = np.where(
                is_match, _MATCH_PROBABILITY / max(matching, 1), (1 - _MATCH_PROBABILITY) / max(other, 1)
            )
        target = rng.choice(len(items), p=weights / weights.sum())
        scores = -np.sort(-rng.standard_normal(len(items))).astype(np.float32)
        return LabelledCandidates(
            FrameColumns(self._make_table(index, items, scores)), np.arange(len(items)) == target, 1
        )

    def _make_table(self, index: int, items: np.ndarray, scores: np.ndarray) -> pl.DataFrame:
        ranks = pl.Series(np.arange(1, len(items) + 1))
        return pl.DataFrame(
            {
                "id": items,
                "score": scores,
                "rank": ranks,
                "channels": pl.Series([["vector"]] * len(items)),
                "vector.score": scores,
                "vector.rank": ranks,
                "user.group": pl.Series([self.user_features["group"][index]]).new_from_index(0, len(items)),
                "item.popularity": np.full(len(items), 9, dtype=np.float32),
                "kind": self.attributes["kind"].gather(items),
            }
        )
