"""Peer: `AlternatingLeastSquares` of the package implicit, with the best settings of a grid by validation.

Users are folded in from their histories. Runs in the peers' own environment.
"""

import itertools

from implicit.als import AlternatingLeastSquares

from harness.accuracy.peers.cases import ItemLists, PeerCases, Rows, TimedSearch
from harness.accuracy.peers.command import run_peer
from harness.accuracy.peers.matrices import to_user_item_matrix

# The first is the library's default; then by what its users tune most.
GRID = [(100, 0.01, 1.0), *itertools.product((64, 128, 256), (0.01, 1.0, 10.0), (1.0, 5.0, 20.0))]


def search(cases: PeerCases, timed_search: TimedSearch, seed: int) -> None:
    """Fit each of the grid until the time is over."""
    matrix = to_user_item_matrix(cases.train, cases.n_items)
    for factors, regularization, alpha in GRID:
        if not timed_search.has_time():
            break
        model = AlternatingLeastSquares(factors, regularization, alpha, random_state=seed)
        model.fit(matrix, show_progress=False)

        def recommend(histories: ItemLists, users: Rows, k: int, model: AlternatingLeastSquares = model) -> Rows:
            user_items = to_user_item_matrix(histories, cases.n_items)
            return model.recommend(users, user_items, N=min(k, cases.n_items), recalculate_user=True)[0]

        timed_search.consider(f"factors {factors}, regularization {regularization}, alpha {alpha}", recommend)


if __name__ == "__main__":
    run_peer(search)
