"""Releases whose answers show which of them was asked: vectors, neighbours and markers differ from release to release.

`rank_by_marker` is the ranker of the soak test, `vecall serve --ranker harness.service.soak_releases:rank_by_marker`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from harness.clustered_vectors import ClusteredVectors
from vecall.arrays import Rows, Vectors
from vecall.channels.channel_tables import ChannelTables
from vecall.channels.similar_items import SimilarItems
from vecall.data.id_map import build_id_map
from vecall.index.settings import IndexSettings
from vecall.release.store import Store
from vecall.release.writer import ReleaseContents, write_release

N_KINDS = 10  # values of the attribute that filters name
N_NEIGHBORS = 20  # of each item in the channel `similar`
_FRACTIONS = 1_000  # distinct scores of items of equal marker


@dataclass(frozen=True)
class SoakRelease:
    """What is known of a release. Ids are rows.

    Attributes:
        vectors: [N, D] vector of each item.
        number: 1, 2 and so on: marker of its items, and the distance of neighbours.
    """

    vectors: Vectors
    number: int

    def get_neighbors(self, item_id: int) -> Rows:
        """Return [N_NEIGHBORS] the neighbours of an item in the channel `similar`, the nearest first."""
        return (item_id + self.number * np.arange(1, N_NEIGHBORS + 1)) % len(self.vectors)

    def compute_ranker_scores(self, ids: Rows) -> NDArray[np.float64]:
        """Return [len(ids)] the scores by `rank_by_marker` of items of the release."""
        return self.number + _compute_fractions(ids)


def rank_by_marker(candidates: pl.DataFrame) -> NDArray[np.float64]:
    """Score candidates by the marker of their release, 0 for live items, and within it by a function of the id."""
    markers = candidates["marker"].fill_null(0).to_numpy()
    scores: NDArray[np.float64] = markers + _compute_fractions(candidates["id"].to_numpy())
    return scores


def _compute_fractions(ids: Rows) -> NDArray[np.float64]:
    fractions: NDArray[np.float64] = (ids * 37 % _FRACTIONS) / _FRACTIONS
    return fractions


def publish_soak_release(store: Path, name: str, number: int, *, items: int, dim: int) -> SoakRelease:
    """Publish and activate a release with the channels `vector` and `similar`.

    Args:
        store: directory of the store, created if missing.
        name: of the release.
        number: tells releases of a store apart; also the seed of the vectors.
        items: N.
        dim: D.
    """
    pool = ClusteredVectors(items, dim, number)
    vectors = np.concatenate(list(pool.iterate_blocks()))
    release = SoakRelease(vectors.astype(np.float32), number)
    offsets = np.arange(items + 1, dtype=np.int64) * N_NEIGHBORS
    rows = np.concatenate([release.get_neighbors(item) for item in range(items)]).astype(np.int32)
    scores = np.tile(np.linspace(1.0, 0.1, N_NEIGHBORS), items).astype(np.float16)
    contents = ReleaseContents(
        item_ids=build_id_map(pl.Series(np.arange(items)), "integer"),
        vectors=vectors,
        attributes=pl.DataFrame({"kind": np.arange(items) % N_KINDS, "marker": np.full(items, number)}),
        channels=ChannelTables(similar=SimilarItems(offsets, rows, scores, np.zeros(len(rows), np.uint8))),
    )
    queries = pool.make_queries(300, stream="tuning")
    with Store.open_or_create(store).create_draft(name) as draft:
        metadata = write_release(draft.directory, contents, IndexSettings(ks=(100,)), queries=queries)
        draft.commit(metadata, activate=True)
    return release
