"""A made-up market with a planted taste: hidden factors stand behind the features, and the labels come from them.

Items gather around themes, as catalogues do. A user and an item each have `FACTORS` hidden numbers; features are a
noisy linear view of them, and a shown item is taken with probability sigmoid(SHARPNESS · (affinity − border)), where
the affinity is the inner product of the hidden numbers over its own standard deviation. The border says how many of
the labels are positive.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float32]

USER_FEATURES, ITEM_FEATURES = 50, 30
FACTORS, THEMES, SPREAD, NOISE = 16, 200, 0.7, 0.3
SHARPNESS = 3.0
SHOWN = 60  # items that each user was shown
CHUNK = 50_000  # items made at a time; a pool is a prefix of one endless catalogue
BORDERS = {"balanced": 0.0, "skewed": 1.0}  # half of the shown items are taken; one in five

FEATURE = "profile"  # the column that holds the features, on both sides


@dataclass(frozen=True)
class Market:
    """One world by its seed; its items do not depend on how many of them are looked at.

    Attributes:
        border: the affinity at which half of those who are shown an item take it.
        seed: of everything.
    """

    border: float
    seed: int = 0

    def write_items(self, path: Path, n_items: int) -> None:
        """Parquet with `item` and the features [n_items, 30]."""
        features = [features for _, features in self._items(n_items)]
        table = {"item": item_ids(np.arange(n_items)), FEATURE: np.concatenate(features)}
        pl.DataFrame(table).write_parquet(path, compression="uncompressed")

    def write_users(self, path: Path, n_users: int) -> None:
        """Parquet with `user` and the features [n_users, 50]."""
        table = {"user": np.arange(n_users), FEATURE: self._users("known", n_users)[1]}
        pl.DataFrame(table).write_parquet(path, compression="uncompressed")

    def write_interactions(self, path: Path, n_users: int, n_items: int) -> float:
        """Parquet with `user`, `item` and `label` (1 taken, 0 not); returns the share that was taken."""
        items = np.concatenate([hidden for hidden, _ in self._items(n_items)])
        users = self._users("known", n_users)[0]
        rng = self._rng("labels")
        shown = rng.integers(n_items, size=(n_users, SHOWN))
        chances = self._chances(np.einsum("ud,usd->us", users, items[shown]))
        label = (rng.random(shown.shape) < chances).astype(np.float32)
        table = {"user": np.repeat(np.arange(n_users), SHOWN), "item": item_ids(shown.ravel()), "label": label.ravel()}
        pl.DataFrame(table).write_parquet(path)
        return float(label.mean())

    def strangers(self, n_users: int) -> Floats:
        """[n_users, 50] features of users whom training never saw."""
        return self._users("strangers", n_users)[1]

    def taste(self, n_users: int, n_items: int) -> Iterator[Floats]:
        """[n_items] the chance that an item is taken if it is shown, for one of the strangers after the other."""
        items = np.concatenate([hidden for hidden, _ in self._items(n_items)])
        for user in self._users("strangers", n_users)[0]:
            yield self._chances(items @ user)

    def _items(self, n_items: int) -> Iterator[tuple[Floats, Floats]]:
        """Hidden factors [c, 16] and features [c, 30], chunk by chunk."""
        fixed = self._rng("items")
        themes = fixed.standard_normal((THEMES, FACTORS), dtype=np.float32)
        view = fixed.standard_normal((FACTORS, ITEM_FEATURES), dtype=np.float32) / np.sqrt(FACTORS, dtype=np.float32)
        for start in range(0, n_items, CHUNK):
            rng = self._rng("items", start)
            chosen = themes[rng.integers(THEMES, size=CHUNK)]
            own = rng.standard_normal((CHUNK, FACTORS), dtype=np.float32)
            hidden = (chosen + SPREAD * own) / np.sqrt(1 + SPREAD**2, dtype=np.float32)
            features = hidden @ view + NOISE * rng.standard_normal((CHUNK, ITEM_FEATURES), dtype=np.float32)
            left = n_items - start
            yield hidden[:left], features[:left].astype(np.float32)

    def _users(self, who: str, n_users: int) -> tuple[Floats, Floats]:
        """Hidden factors [n, 16] and features [n, 50]."""
        view = self._rng("users").standard_normal((FACTORS, USER_FEATURES), dtype=np.float32)
        rng = self._rng(who, n_users)
        hidden = rng.standard_normal((n_users, FACTORS), dtype=np.float32)
        noise = NOISE * rng.standard_normal((n_users, USER_FEATURES), dtype=np.float32)
        return hidden, (hidden @ view / np.sqrt(FACTORS) + noise).astype(np.float32)

    def _chances(self, products: Floats) -> Floats:
        affinity = products / np.sqrt(FACTORS, dtype=np.float32)
        chances: Floats = 1 / (1 + np.exp(-SHARPNESS * (affinity - self.border), dtype=np.float32))
        return chances

    def _rng(self, part: str, number: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, *part.encode(), number])


def item_ids(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ids that are not row numbers, ascending with them."""
    return 100_000_007 + 3 * rows
