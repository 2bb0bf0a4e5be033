"""Peer: `BM25Recommender` of the package implicit, with the best settings of a grid by validation.

Runs in the peers' own environment.
"""

import itertools

from implicit.nearest_neighbours import BM25Recommender

from harness.accuracy.peers.cases import ItemLists, PeerCases, Rows, TimedSearch
from harness.accuracy.peers.command import run_peer
from harness.accuracy.peers.matrices import to_user_item_matrix

# Neighbors, K1, B. The first is the library's default.
GRID = [(20, 1.2, 0.75), *itertools.product((100, 500), (0.2, 1.2, 10.0, 100.0), (0.2, 0.5, 0.8, 1.0))]


def search(cases: PeerCases, timed_search: TimedSearch, seed: int) -> None:
    """Fit each of the grid until the time is over; there is nothing random."""
    del seed
    matrix = to_user_item_matrix(cases.train, cases.n_items)
    for neighbors, k1, b in GRID:
        if not timed_search.has_time():
            break
        model = BM25Recommender(K=neighbors, K1=k1, B=b)
        model.fit(matrix, show_progress=False)

        def recommend(histories: ItemLists, users: Rows, k: int, model: BM25Recommender = model) -> Rows:
            user_items = to_user_item_matrix(histories, cases.n_items)
            return model.recommend(users, user_items, N=min(k, cases.n_items))[0]

        timed_search.consider(f"K {neighbors}, K1 {k1}, B {b}", recommend)


if __name__ == "__main__":
    run_peer(search)
