"""Similarities of candidates to the history, against a loop over both."""

import numpy as np
import pytest

from vecall.channels.similar_items import SimilarItems
from vecall.recall.history_similarity import compute_similarities


def make_similar(rng, n_items):
    lists = [rng.permutation(n_items)[: rng.integers(0, 6)] for _ in range(n_items)]
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in lists])])
    rows = np.concatenate(lists).astype(np.int32)
    scores = (1 + rng.integers(0, 9, len(rows))).astype(np.float16)
    return SimilarItems(offsets, rows, scores, rng.integers(0, 256, len(rows)).astype(np.uint8))


@pytest.mark.parametrize("history", [[], [-1], [3], [3, 3], [4, -1], [-1, 5], list(range(15))])
@pytest.mark.parametrize("n_candidates", [0, 1, 12])
def test_similarities_equal_those_of_a_loop(history, n_candidates):
    rng = np.random.default_rng(0)
    similar = make_similar(rng, 20)
    candidates = np.append(rng.permutation(20)[:n_candidates], -1)[:n_candidates]
    if n_candidates > 1:
        candidates[0] = -1
    found = compute_similarities(similar, candidates, np.array(history, dtype=np.int64))

    def look_up(item, candidate, values):
        part = slice(similar.offsets[item], similar.offsets[item + 1])
        kept = values[part][similar.rows[part] == candidate] if item >= 0 and candidate >= 0 else []
        return float(sum(kept))

    def compute_last(values):
        return [look_up(history[-1], row, values) if history else 0 for row in candidates]

    def compute_total(values):
        return [sum(look_up(item, row, values) for item in history[-10:]) for row in candidates]

    next_scores = similar.scores * (similar.later_shares / 255)
    assert found.last.tolist() == compute_last(similar.scores)
    assert found.total.tolist() == compute_total(similar.scores)
    np.testing.assert_allclose(found.next_last, compute_last(next_scores), rtol=1e-6)
    np.testing.assert_allclose(found.next_total, compute_total(next_scores), rtol=1e-6)
