"""The channel of items that the same users took near in time to the newest items of the history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Offsets, Rows
from vecall.channels.similar_items import SIMILARITY_SCALE, SimilarItems
from vecall.index.completion_scans import limit_completion_scans
from vecall.index.kernels import compute_inner_products
from vecall.index.row_scores import RowScores
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
    seeds = history[::-1][: len(similar.seed_weights)]
    base_rows = snapshot.to_base_rows(seeds)
    segments = similar.locate_lists(base_rows)
    nearest = _find_nearest(query, similar, seeds, base_rows, _select_seeds_by_vector(similar, segments))
    sums = _add_up(similar, segments, nearest)
    rows, scores = snapshot.to_latest_rows(sums.rows), sums.scores
    if len(new_slots := _select_new_slots(query)):
        bounds = zip(*(part[:_MAX_SEEDS_BY_VECTOR].tolist() for part in segments), strict=True)
        neighbors = [
            nearest.get(index) or _Neighbors(*similar.get_segment(start, end))
            for index, (start, end) in enumerate(bounds)
        ]
        new_rows = new_slots + snapshot.release.vectors.size
        new_scores = _score_new_items(snapshot, similar, seeds, neighbors, new_rows)
        rows = np.concatenate([rows, new_rows[new_scores > 0]])
        scores = np.concatenate([scores, new_scores[new_scores > 0]])
    return rank_by_score_and_id(snapshot, *query.candidates.row_filter.select(rows, scores), n)


def must_search_index(snapshot: Snapshot, history: Rows) -> bool:
    """Return whether `recall_similar` searches the index of the release, for a seed of which the release has no list.

    Args:
        snapshot: What is searched.
        history: [L] rows of the snapshot, oldest first.
    """
    similar = snapshot.release.channels.similar
    if similar is None:
        return False
    seeds = history[::-1][: len(similar.seed_weights)]
    segments = similar.locate_lists(snapshot.to_base_rows(seeds))
    return len(_select_seeds_by_vector(similar, segments)) > 0


def _select_seeds_by_vector(similar: SimilarItems, segments: tuple[Offsets, Offsets]) -> Rows:
    """Return the indices of the seeds whose neighbours the index finds, ascending."""
    if not len(similar.mean_similarities):
        return np.empty(0, dtype=np.int64)
    starts, ends = segments
    return np.flatnonzero(starts[:_MAX_SEEDS_BY_VECTOR] == ends[:_MAX_SEEDS_BY_VECTOR])


def _add_up(similar: SimilarItems, segments: tuple[Offsets, Offsets], nearest: Mapping[int, _Neighbors]) -> RowScores:
    """Return the rows of all neighbours with Σ weight · similarity, seed by seed.

    Args:
        similar: The lists, and the weights of seeds.
        segments: [S] where the list of each seed starts, and where it ends.
        nearest: Neighbours of seeds whose list is empty, by their index, ascending.
    """
    starts, ends = segments
    weights = similar.seed_weights[: len(starts)]
    factors = weights / SIMILARITY_SCALE  # a power of two: the products are those with the similarities
    sums = RowScores(int((ends - starts).sum()) + sum(len(part.rows) for part in nearest.values()))
    first = 0
    for index, part in [*nearest.items(), (len(starts), None)]:
        run = slice(first, index)
        sums.add_segments(similar.rows, similar.scores, (starts[run], ends[run]), factors[run])
        if part is not None:
            sums.add(part.rows, weights[index] * part.similarities)
        first = index
    return sums


def _find_nearest(
    query: ChannelQuery, similar: SimilarItems, seeds: Rows, base_rows: Rows, missing: Rows
) -> dict[int, _Neighbors]:
    """Return the base rows nearest to each of some seeds, with the mean similarities by rank, by the seed's index.

    Args:
        query: Its snapshot's base is searched, deleted and replaced items included, as in the lists of the release.
        similar: The lists.
        seeds: [S] Rows of the seeds.
        base_rows: [S] Their rows in the base, which are not returned; -1 for none.
        missing: [n] Indices of the seeds that are searched for, ascending.
    """
    if not len(missing):
        return {}
    snapshot, similarities = query.snapshot, similar.mean_similarities
    release = snapshot.release
    curve, fetch_k = release.search_param_curve, min(len(similarities) + 1, release.vectors.size)
    search_params = None if curve is None else curve.look_up(fetch_k)
    vectors = snapshot.get_vectors(seeds[missing])
    acquire = query.scan_limiter.acquire
    # Without a curve, the index scans.
    with acquire(release.vectors.size if curve is None else 0), limit_completion_scans(acquire):
        hits = release.index.search(vectors, fetch_k, search_params=search_params)
    found = {}
    for number, hit_rows in zip(missing.tolist(), hits.rows, strict=True):
        rows = hit_rows[(hit_rows >= 0) & (hit_rows != base_rows[number])][: len(similarities)]
        found[number] = _Neighbors(rows, similarities[: len(rows)])
    return found


def _select_new_slots(query: ChannelQuery) -> Rows:
    """Return the newest eligible slots of the delta, ascending, whose items the base does not have."""
    slots = query.candidates.delta_slots
    if not len(slots):
        return slots
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
