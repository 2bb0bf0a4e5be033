"""The channel of items that the same users took near in time to the newest items of the history."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Vectors
from vecall.channels.similar_items import SimilarItems
from vecall.index.kernels import compute_inner_products, sum_by_row
from vecall.live.snapshot import Snapshot
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.result_order import ScoredRows, rank_by_score_and_id

_MAX_SEEDS_BY_VECTOR = 10  # the newest seeds whose vectors are compared with others
_MAX_NEW_ITEMS = 2_048  # live items without neighbours of their own that are scored; 2,048 take 2 ms


@dataclass(frozen=True)
class _Neighbors:
    """The neighbours of a seed: base rows [n], and their similarities [n], descending."""

    rows: Rows
    similarities: NDArray[np.float64]


def recall_similar(query: ChannelQuery, n: int) -> ScoredRows:
    """Return items by Σ weight · similarity over the newest items of the history, the seeds.

    The release says how many seeds there are and what each weighs, see `weigh_seeds`. A seed's neighbours are those
    that the release has of its item, also where the item was replaced since. Of the newest 10 seeds, one of which the
    release has none, such as a live new item, has the nearest items by vector as neighbours, the nth of them with the
    mean similarity of the nth neighbours of all items.

    A live item that is not in the release may be an answer, too: among the neighbours of each of the newest 10 seeds it
    takes the position that its vector's inner product with the seed's would have if they were ordered by theirs, and
    has the similarity that belongs to this position; below all of them, none. The newest 2,048 such items are
    considered.
    """
    snapshot, similar, history = query.snapshot, query.snapshot.release.channels.similar, query.resolved_query.history
    if similar is None or not len(history):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    weights = similar.seed_weights
    seeds = history[::-1][: len(weights)]
    neighbors = _find_neighbors(snapshot, similar, seeds)
    weighted = np.concatenate([weight * part.similarities for weight, part in zip(weights, neighbors, strict=False)])
    base_rows, scores = sum_by_row(np.concatenate([part.rows for part in neighbors], dtype=np.int64), weighted)
    rows = snapshot.to_latest_rows(base_rows)
    if len(new_slots := _select_new_slots(query)):
        new_rows = new_slots + snapshot.release.vectors.size
        rows = np.concatenate([rows, new_rows])
        scores = np.concatenate([scores, _score_new_items(snapshot, similar, seeds, neighbors, new_rows)])
    is_answer = query.candidates.is_eligible(rows) & (scores > 0)
    return rank_by_score_and_id(snapshot, rows[is_answer], scores[is_answer].astype(np.float32), n)


def _find_neighbors(snapshot: Snapshot, similar: SimilarItems, seeds: Rows) -> list[_Neighbors]:
    """Return the neighbours of each seed, the newest of which come first."""
    base_rows = snapshot.to_base_rows(seeds)
    found = [
        _Neighbors(*similar.get_neighbors(row)) if row >= 0 else _Neighbors(seeds[:0], similar.mean_similarities[:0])
        for row in base_rows.tolist()
    ]
    missing = [index for index, part in enumerate(found[:_MAX_SEEDS_BY_VECTOR]) if not len(part.rows)]
    if missing and len(similar.mean_similarities):
        vectors = snapshot.get_vectors(seeds[missing])
        for index, nearest in zip(missing, _find_nearest(snapshot, similar, vectors, base_rows[missing]), strict=True):
            found[index] = nearest
    return found


def _find_nearest(snapshot: Snapshot, similar: SimilarItems, vectors: Vectors, own_rows: Rows) -> list[_Neighbors]:
    """Return the base rows nearest to each of some vectors, with the mean similarities by rank.

    Args:
        snapshot: What is searched: its base, deleted and replaced items included, as in the lists of the release.
        similar: The lists.
        vectors: [n, D] Vectors of items.
        own_rows: [n] Rows of these items in the base, which are not returned; -1 for none.
    """
    release, similarities = snapshot.release, similar.mean_similarities
    curve, fetch_k = release.search_param_curve, min(len(similarities) + 1, release.vectors.size)
    hits = release.index.search(vectors, fetch_k, search_params=None if curve is None else curve.look_up(fetch_k))
    found = []
    for hit_rows, own_row in zip(hits.rows, own_rows, strict=True):
        rows = hit_rows[(hit_rows >= 0) & (hit_rows != own_row)][: len(similarities)]
        found.append(_Neighbors(rows, similarities[: len(rows)]))
    return found


def _select_new_slots(query: ChannelQuery) -> Rows:
    """Return the newest eligible slots of the delta, ascending, whose items the base does not have."""
    slots = query.candidates.delta_slots
    return slots[query.snapshot.delta.base_rows[slots] < 0][-_MAX_NEW_ITEMS:]


def _score_new_items(
    snapshot: Snapshot, similar: SimilarItems, seeds: Rows, neighbors: Sequence[_Neighbors], rows: Rows
) -> NDArray[np.float64]:
    """Return the scores [len(rows)] of new items, from their positions among the neighbours of each seed.

    Args:
        snapshot: Where the vectors are.
        similar: The weights of seeds.
        seeds: [S] The newest first.
        neighbors: Neighbours of each seed.
        rows: Rows of the new items.
    """
    base, half_vectors = snapshot.release.vectors, snapshot.delta.half_vectors
    slots = rows - base.size
    scores, seeds = np.zeros(len(rows)), seeds[:_MAX_SEEDS_BY_VECTOR]
    for weight, seed, vector, part in zip(
        similar.seed_weights, seeds, snapshot.get_vectors(seeds), neighbors, strict=False
    ):
        products = np.sort(base.score(vector, part.rows.astype(np.int64)))
        new_products = compute_inner_products(half_vectors, vector, slots)
        nearer_counts = len(products) - np.searchsorted(products, new_products, side="right")
        similarities = np.append(part.similarities, 0.0)[nearer_counts]
        similarities[rows == seed] = 0.0  # an item is no neighbour of its own
        scores += weight * similarities
    return scores
