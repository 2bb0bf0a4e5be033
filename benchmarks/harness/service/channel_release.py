"""What the releases of `benchmarks/service.py --channels` have beside vectors: tables of all channels, and a ranker."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import lightgbm
import numpy as np
import polars as pl

from harness.service.users import K
from vecall.channels.channel_facts import ChannelFacts
from vecall.channels.channel_tables import ChannelTables
from vecall.channels.merge_plan import MergePlan
from vecall.channels.neighbors import MAX_SHARE
from vecall.channels.popular_items import PopularItems, PopularLists
from vecall.channels.settings import CHANNEL_NAMES
from vecall.channels.similar_items import SIMILARITY_SCALE, SimilarItems
from vecall.ranking.features import select_features
from vecall.ranking.lightgbm_ranker import RankerSpec
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller

ALL_CHANNELS = MergePlan(weights=dict.fromkeys(CHANNEL_NAMES, 1.0))
_N_NEIGHBORS = 100  # of each item in the channel `similar`, the most that `publish` keeps
_LIST_ROWS = 1_000  # of each value in the channel `popular`, likewise
_N_FRESH, _FRESH_DAYS = 10_000, 7.0
_N_TREES, _N_LEAVES = 300, 15  # the most that `vecall fit` trains
_TRAINING_USERS = 50


def build_channel_tables(shops: pl.Series, rng: np.random.Generator) -> ChannelTables:
    """Return tables of random content for N items.

    Args:
        shops: [N] attribute within whose values items are popular.
        rng: source of randomness.
    """
    n = len(shops)
    neighbors = rng.integers(n, size=(n, min(_N_NEIGHBORS, n)), dtype=np.int32)
    scores = np.tile(np.linspace(0.5, 0.01, neighbors.shape[1]) * SIMILARITY_SCALE, n).astype(np.float16)
    offsets = np.arange(n + 1, dtype=np.int64) * neighbors.shape[1]
    later_shares = rng.integers(MAX_SHARE, size=neighbors.size, endpoint=True, dtype=np.uint8)
    counts = rng.zipf(1.5, n).astype(np.float32)
    values = shops.unique().sort()
    lists = [np.flatnonzero(shops == value)[:_LIST_ROWS] for value in values]
    lists = [rows[np.argsort(-counts[rows], kind="stable")].astype(np.int32) for rows in lists]
    list_rows = np.concatenate(lists)
    by_shop = PopularLists(
        column=shops.name,
        values=values.cast(pl.String),
        offsets=np.concatenate([[0], np.cumsum([len(rows) for rows in lists])]),
        rows=list_rows,
        scores=counts[list_rows],
    )
    return ChannelTables(
        similar=SimilarItems(offsets, neighbors.ravel(), scores, later_shares),
        popular=PopularItems(counts, by=by_shop),
        facts=ChannelFacts(fresh_days=_FRESH_DAYS, created="added"),
    )


def make_creation_times(n_items: int) -> pl.Series:
    """Return when each item was added: the last 10,000 within a week, the others a year ago."""
    now, n_fresh = datetime.now(UTC).replace(tzinfo=None), min(_N_FRESH, n_items)
    fresh = [now - timedelta(days=_FRESH_DAYS * 0.5 * index / n_fresh) for index in range(n_fresh)]
    times = [now - timedelta(days=365)] * (n_items - n_fresh) + fresh[::-1]
    return pl.Series("added", times, dtype=pl.Datetime("us"))


def train_ranker(store: Path) -> tuple[RankerSpec, str]:
    """Train a LightGBM ranker on the candidates of a small store's users with random targets; return spec and model."""
    rng = np.random.default_rng(0)
    with open_recaller(store) as recaller:
        release = recaller.live_index.snapshot.release
        tables = [recaller.candidates(Query(user_id=user, k=K, exclude_seen=False)) for user in range(_TRAINING_USERS)]
        users = pl.DataFrame() if release.users is None else release.users.features
        features = select_features(tables[0], CHANNEL_NAMES, release.attributes, users)
    matrix = np.concatenate([features.build_matrix(table) for table in tables])
    labels = (rng.random(len(matrix)) < 0.02).astype(int)
    dataset = lightgbm.Dataset(matrix, labels, group=[len(table) for table in tables])
    parameters = {"objective": "lambdarank", "num_leaves": _N_LEAVES, "num_threads": 1, "verbosity": -1}
    booster = lightgbm.train(parameters, dataset, num_boost_round=_N_TREES)
    return RankerSpec(features=features, rank_weight=1.0), booster.model_to_string()
