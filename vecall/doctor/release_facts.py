"""Measurement of a release: ANN recall of its index, and its vectors beside those that its towers give now."""

from typing import cast

import numpy as np

from vecall.arrays import Vectors
from vecall.data.dataset import Dataset
from vecall.data.id_map import UNKNOWN_ROW
from vecall.data.ragged import RaggedArray
from vecall.doctor.context import AnnFacts, ServedVectorFacts
from vecall.index.ann_recall import recall_per_query
from vecall.index.sampling import evenly_spaced_rows
from vecall.release.golden import UserTowerInputs
from vecall.release.release import Release

_MAX_QUERIES = 500  # user vectors that the index is searched with
_BATCH_SIZE = 64  # queries per exact search
_MAX_COMPARED = 2_000  # users, and items
_MIN_COSINE = 0.99


def measure_ann(release: Release, queries: Vectors | None, target: float) -> AnnFacts | None:
    """Measure the ANN recall of a release.

    Args:
        release: The release.
        queries: [Q, D] vectors of present users, of which at most 500 are searched for; None for the golden queries.
        target: ANN recall that the index was tuned for.

    Returns:
        None without queries of either kind.
    """
    golden, curve = release.golden_queries, release.search_param_curve
    k = min(100, release.vectors.size) if golden is None else golden.exact_rows.shape[1]
    search_params = None if curve is None else curve.look_up(k)
    recorded = (release.manifest.ann or {}).get("recall")
    if queries is None:
        if golden is None:
            return None
        recall, count = golden.measure_ann_recall(release.index, search_params), len(golden.vectors)
    else:
        queries = queries[evenly_spaced_rows(len(queries), _MAX_QUERIES)]
        shares = []
        for start in range(0, len(queries), _BATCH_SIZE):
            batch = queries[start : start + _BATCH_SIZE]
            found = release.index.search(batch, k, search_params=search_params).rows
            shares.append(recall_per_query(release.vectors, batch, found, release.vectors.search_exact(batch, k).rows))
        recall, count = float(np.concatenate(shares).mean()), len(queries)
    return AnnFacts(k, recall, None if recorded is None else cast("float", recorded), target, count)


def compare_served_vectors(release: Release, dataset: Dataset | None) -> ServedVectorFacts:
    """Compare the golden queries with what was stored and, with tables, users and items with those of the release."""
    golden, encoder = release.golden_queries, release.encoder
    difference = None
    if golden is not None and golden.inputs is not None and encoder is not None:
        scale = float(np.linalg.norm(golden.vectors, axis=1).max()) or 1.0
        encoded = golden.inputs.encode(encoder, release.vectors.get_vectors)
        difference = float(np.abs(encoded - golden.vectors).max()) / scale
    if dataset is None:
        return ServedVectorFacts(golden_difference=difference)
    user_count, user_share = _compare_users(release, dataset)
    item_count, item_share = _compare_items(release, dataset)
    return ServedVectorFacts(difference, user_count, user_share, item_count, item_share)


def _compare_users(release: Release, dataset: Dataset) -> tuple[int, float]:
    """Encode stored users from the tables and from the release; return their number, and the share that differs."""
    encoder, served = release.encoder, release.users
    if (
        encoder is None
        or served is None
        or not set(encoder.state.users.features) <= set(dataset.catalogue.user_features.columns)
    ):
        return 0, 0.0
    rows = served.ids.column_to_rows(dataset.catalogue.user_ids)
    users = np.flatnonzero(rows != UNKNOWN_ROW)
    users = users[evenly_spaced_rows(len(users), _MAX_COMPARED)]
    if not len(users):
        return 0, 0.0
    present_histories = _to_release_rows(release, dataset, dataset.histories.take(users))
    present = UserTowerInputs(present_histories, dataset.catalogue.user_features[users])
    stored = UserTowerInputs(served.histories.take(rows[users]), served.features[rows[users]])
    vectors = [inputs.encode(encoder, release.vectors.get_vectors) for inputs in (present, stored)]
    return len(users), _share_of_differing(*vectors)


def _to_release_rows(release: Release, dataset: Dataset, histories: RaggedArray) -> RaggedArray:
    """Return histories of rows of the release; items that it lacks are left out."""
    rows = release.item_ids.column_to_rows(dataset.catalogue.item_ids)[histories.values]
    is_known = rows != UNKNOWN_ROW
    return RaggedArray.from_sorted_pairs(histories.segment_ids[is_known], rows[is_known], len(histories))


def _compare_items(release: Release, dataset: Dataset) -> tuple[int, float]:
    """Encode items from the tables and compare with the index; return their number, and the share that differs."""
    encoder, features = release.encoder, dataset.catalogue.item_features
    if encoder is None or not set(encoder.state.items.features) <= set(features.columns):
        return 0, 0.0
    rows = release.item_ids.column_to_rows(dataset.catalogue.item_ids)
    rows[np.isin(rows, release.external_vector_rows)] = UNKNOWN_ROW
    items = np.flatnonzero(rows != UNKNOWN_ROW)
    items = items[evenly_spaced_rows(len(items), _MAX_COMPARED)]
    if not len(items):
        return 0, 0.0
    present = encoder.encode_items(features[items], rows[items])
    return len(items), _share_of_differing(present, release.vectors.get_vectors(rows[items]))


def _share_of_differing(first: Vectors, second: Vectors) -> float:
    """Return the share of rows of two [n, D] arrays whose cosine is below 0.99."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = np.einsum("nd,nd->n", first, second) / np.maximum(lengths, 1e-12)
    return float(np.mean(~(cosines >= _MIN_COSINE)))
