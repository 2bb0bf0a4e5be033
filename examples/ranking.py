"""Recall hundreds, rank them, show ten: the hand-off to ranking. Run `make quickstart` first.

python examples/ranking.py [--store quickstart/store] [--user 1]
"""

import argparse

import polars as pl

from vecall import Query, open_recaller
from vecall.ranking.ranker import rank


class FreshAndLiked:
    """A ranker that knows what recall does not: the year, and that this evening calls for a comedy."""

    def __call__(self, candidates: pl.DataFrame) -> pl.Series:
        year = candidates["title"].str.extract(r"\((\d{4})\)\s*$").cast(pl.Float64).fill_null(1990)
        comedy = candidates["genres"].list.contains("Comedy").cast(pl.Float64)
        return candidates["score"] + 0.002 * (year - 1990) + 0.05 * comedy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", default="quickstart/store")
    parser.add_argument("--user", type=int, default=1)
    arguments = parser.parse_args()
    with open_recaller(arguments.store) as recaller:
        candidates = recaller.candidates(Query(user_id=arguments.user, k=500))
    final = rank(candidates, FreshAndLiked(), k=10)
    print(f"{len(candidates)} recalled, {len(final)} shown")
    print(final.select("rank", "score", "ranking_score", "title"))


if __name__ == "__main__":
    main()
