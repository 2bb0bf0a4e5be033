"""Command line of a peer's process: `python -m harness.accuracy.peers.NAME SPLIT.npz LISTS.npz`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from harness.accuracy.peers.cases import PeerCases, TimedSearch


def run_peer(search: Callable[[PeerCases, TimedSearch, int], None]) -> None:
    """Read the split, search until the time is over, and write the lists.

    Args:
        search: gets the split, what keeps the best lists, and the seed.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("split", type=Path)
    parser.add_argument("lists", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    cases = PeerCases.load(options.split)
    timed_search = TimedSearch(cases, options.seconds)
    search(cases, timed_search, options.seed)
    timed_search.save(options.lists)
