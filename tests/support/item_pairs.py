"""Random histories, and the similarity of their items from all pairs at once."""

import numpy as np
from scipy import sparse

from vecall.data.ragged import RaggedArray


def make_random_lists(users, items, seed=0, longest=12):
    """Make lists of up to `longest` - 1 items, low rows more often, with repeats."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, items + 1)
    return RaggedArray.from_lists(
        [rng.choice(items, rng.integers(0, longest), p=weights / weights.sum()) for _ in range(users)]
    )


def compute_similarity_at_once(histories, n_items, gap_weights):
    """The item-item matrix from all pairs in memory, a window per interaction: the oracle, to the last bit."""
    near = weigh_pairs_at_once(histories, n_items, gap_weights)
    counts = np.bincount(np.concatenate([np.unique(histories[user]) for user in range(len(histories))]), None, n_items)
    scale = np.maximum(counts, 1.0).astype(np.float32) ** -0.5
    return (sparse.diags_array(scale) @ (near + near.T) @ sparse.diags_array(scale)).toarray()


def weigh_pairs_at_once(histories, n_items, gap_weights):
    """The weights of all pairs, that of the earlier item i and the later one j at [i, j]."""
    rows, owners, shape = histories.values, histories.segment_ids, (n_items, n_items)
    near = sparse.csr_array(shape, dtype=np.float32)
    for gap in range(1, min(len(gap_weights), len(rows))):
        is_pair = (owners[gap:] == owners[:-gap]) & (rows[gap:] != rows[:-gap])
        earlier, later = rows[:-gap][is_pair], rows[gap:][is_pair]
        weights = np.full(len(later), gap_weights[gap], dtype=np.float32)
        near += sparse.coo_array((weights, (earlier, later)), shape=shape).tocsr()
    return near
