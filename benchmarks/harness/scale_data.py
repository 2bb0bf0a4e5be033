"""Synthetic interactions and items of any size, written in chunks: for measurements of memory and time at scale.

Items belong to clusters of 500; a user takes items of a few clusters of their own, so a model has something to learn.
Popularity of clusters, and of items within a cluster, is Zipf-Mandelbrot: P(rank) ~ 1 / (rank + 10). So is the activity
of users, with 1 / (rank + users / 20). Rows are in no order of users or times, which is the hardest case for a reader.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.config import Config, parse_config
from vecall.data.hashing import mix_bits
from vecall.recall.parquet_output import stage_parquet

IdType = Literal["integer", "string"]

INTERACTIONS_FILE, ITEMS_FILE = "interactions.parquet", "items.parquet"

CHUNK_ROWS = 1_000_000  # rows generated at a time
_CLUSTER_SIZE = 500
_CLUSTERS_PER_USER = 6
_ZIPF_OFFSET = 10.0
_USER_OFFSET_SHARE = 0.05
_START_TIME, _SECONDS = 1_500_000_000, 2 * 365 * 86_400
_N_WORDS, _WORDS_PER_TITLE = 50_000, 6
_TAGS_PER_CLUSTER, _MAX_TAGS = 12, 4
_CLUSTERS_PER_CATEGORY = 8
_MISSING_SHARE = 0.05
_ID_BITS = 43  # 13 decimal digits
_ID_MULTIPLIER = 0x5DEECE66D  # odd, hence a bijection of the rows modulo a power of 2
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def write_interactions(path: Path, *, n_users: int, n_items: int, n_rows: int, id_type: IdType, seed: int = 0) -> None:
    """Write a Parquet table with the columns `user`, `item` and `time` (Unix seconds); keep a file that is there.

    Args:
        path: The file.
        n_users: U; a few users may get no row.
        n_items: N, as for `write_items`; many unpopular items may get no row.
        n_rows: number of interactions.
        id_type: type of both ids.
        seed: seed of all random streams.
    """

    def make_chunk(start: int, size: int) -> pl.DataFrame:
        rng = np.random.default_rng([seed, 0, start])
        users = _draw_zipf(rng.random(size), n_users, _USER_OFFSET_SHARE * n_users)
        items = _draw_items(rng, users, n_items, seed)
        times = pl.Series(rng.integers(_START_TIME, _START_TIME + _SECONDS, size))
        return pl.DataFrame(
            {"user": make_ids(users, id_type, "u"), "item": make_ids(items, id_type, "i")}
        ).with_columns(time=times)

    _write_chunks(path, n_rows, make_chunk)


def write_items(path: Path, *, n_items: int, id_type: IdType, seed: int = 0) -> None:
    """Write a Parquet table with the columns `item`, `category`, `tags` (separated by `|`), `title` and `price`.

    Keeps a file that is there. Values depend on the item's cluster; a share of them is missing.

    Args:
        path: The file.
        n_items: N.
        id_type: type of ids.
        seed: seed of all random streams.
    """
    words = _make_words()

    def make_chunk(start: int, size: int) -> pl.DataFrame:
        rng = np.random.default_rng([seed, 1, start])
        items = np.arange(start, start + size)
        clusters = items % _count_clusters(n_items)
        prices = np.exp(rng.normal(2.0 + clusters % 5, 0.5)).round(2)
        return pl.DataFrame(
            {
                "item": make_ids(items, id_type, "i"),
                "category": "category " + pl.Series(clusters // _CLUSTERS_PER_CATEGORY).cast(pl.String),
                "tags": _make_tags(rng, clusters),
                "title": _make_titles(rng, clusters, words),
                "price": pl.Series(prices),
            }
        ).with_columns(
            pl.when(pl.Series(rng.random(size) >= _MISSING_SHARE)).then(pl.col(name)).alias(name)
            for name in ("category", "tags", "title", "price")
        )

    _write_chunks(path, n_items, make_chunk)


def make_ids(rows: Rows, id_type: IdType, prefix: str) -> pl.Series:
    """Return distinct ids [n] of rows: integers of 43 bits in no order of rows, or text of 14 characters of them."""
    integers = pl.Series((rows * _ID_MULTIPLIER) % 2**_ID_BITS)
    if id_type == "integer":
        return integers
    return prefix + integers.cast(pl.String).str.zfill(13)


def _write_chunks(path: Path, n_rows: int, make_chunk: Callable[[int, int], pl.DataFrame]) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with stage_parquet(path) as directory:
        for number, start in enumerate(range(0, n_rows, CHUNK_ROWS)):
            chunk = make_chunk(start, min(CHUNK_ROWS, n_rows - start))
            chunk.write_parquet(directory / f"{number:05d}.parquet")


def _draw_zipf(uniform: NDArray[np.float64], size: int, offset: float) -> Rows:
    """Return ranks in 0 .. size - 1 with P(rank) ~ 1 / (rank + offset), by inversion of numbers in [0, 1)."""
    ranks = offset * ((size + offset) / offset) ** uniform - offset
    return np.minimum(ranks.astype(np.int64), size - 1)


def _draw_items(rng: np.random.Generator, users: Rows, n_items: int, seed: int) -> Rows:
    """Draw an item of one of the user's clusters, the first of which are the favourites, for each of n users."""
    n_clusters = _count_clusters(n_items)
    choice = (_CLUSTERS_PER_USER * rng.random(len(users)) ** 2).astype(np.int64)
    hashes = mix_bits((users * _CLUSTERS_PER_USER + choice + (seed << 40)).astype(np.uint64))
    clusters = _draw_zipf(hashes / 2.0**64, n_clusters, _ZIPF_OFFSET)
    n_members = (n_items - clusters + n_clusters - 1) // n_clusters  # items c, c + n_clusters, c + 2 n_clusters ...
    ranks = np.minimum(_draw_zipf(rng.random(len(users)), _CLUSTER_SIZE, _ZIPF_OFFSET), n_members - 1)
    return clusters + ranks * n_clusters


def _count_clusters(n_items: int) -> int:
    return -(-n_items // _CLUSTER_SIZE)


def _make_tags(rng: np.random.Generator, clusters: Rows) -> pl.Series:
    """Return [n] texts of 1 to 4 tags of the item's cluster."""
    tags = rng.integers(_TAGS_PER_CLUSTER, size=(len(clusters), _MAX_TAGS)) + (clusters * 7)[:, None]
    counts = rng.integers(1, _MAX_TAGS + 1, len(clusters))
    columns = {f"t{i}": "tag" + pl.Series(tags[:, i]).cast(pl.String) for i in range(_MAX_TAGS)}
    columns = {name: column.set(pl.Series(counts <= i), None) for i, (name, column) in enumerate(columns.items())}
    return pl.DataFrame(columns).select(pl.concat_str(pl.all(), separator="|", ignore_nulls=True)).to_series()


def _make_titles(rng: np.random.Generator, clusters: Rows, words: pl.Series) -> pl.Series:
    """Return [n] texts of 6 words, the first 2 of which tell the cluster."""
    rows = _draw_zipf(rng.random((len(clusters), _WORDS_PER_TITLE)), len(words), _ZIPF_OFFSET)
    rows[:, 0], rows[:, 1] = clusters % len(words), clusters * 31 % len(words)
    columns = {f"w{i}": words.gather(rows[:, i]) for i in range(_WORDS_PER_TITLE)}
    return pl.DataFrame(columns).select(pl.concat_str(pl.all(), separator=" ")).to_series()


def _make_words() -> pl.Series:
    """Return the distinct words of titles, of three syllables."""
    n_syllables = len(_SYLLABLES)
    numbers = np.arange(_N_WORDS) * 7919 % n_syllables**3
    syllables = pl.Series(_SYLLABLES)
    first, second, third = numbers % n_syllables, numbers // n_syllables % n_syllables, numbers // n_syllables**2
    return syllables.gather(first) + syllables.gather(second) + syllables.gather(third)


def scale_config(directory: Path, *, with_features: bool, preset: str, **training: Any) -> Config:
    """Return the settings of the tables in a directory, `INTERACTIONS_FILE` and `ITEMS_FILE`.

    Args:
        directory: holds both files, with ids of the same type.
        with_features: whether the item tower reads category, tags, title and price.
        preset: `model.preset`.
        training: settings of `[training]`.
    """
    id_type = "string" if pl.read_parquet_schema(directory / ITEMS_FILE)["item"] == pl.String else "integer"
    features = {
        "category": {"kind": "category"},
        "tags": {"kind": "tags"},
        "title": {"kind": "text"},
        "price": {"kind": "numeric"},
    }
    return parse_config(
        {
            "data": {
                "interactions": str(directory / INTERACTIONS_FILE),
                "items": str(directory / ITEMS_FILE),
            },
            "schema": {
                "interactions": {"user": "user", "item": "item", "time": "time"},
                "items": {"id": "item", "id_type": id_type, "features": features if with_features else {}},
                "users": {"id": "user", "id_type": id_type},
            },
            "model": {"preset": preset},
            "training": training,
            "evaluation": {"baselines": False},
        }
    )
