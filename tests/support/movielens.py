"""MovieLens latest-small, as the repository holds it, and a part of it that is quick to train on."""

from pathlib import Path

import polars as pl

MOVIELENS_DIR = Path(__file__).parents[2] / "examples" / "movielens"


def read_subset(max_user_id: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read the ratings of the first users, and the movies that they rated."""
    ratings = pl.read_csv(MOVIELENS_DIR / "ratings.csv").filter(pl.col("user_id") <= max_user_id)
    movies = pl.read_csv(MOVIELENS_DIR / "movies.csv").filter(pl.col("item_id").is_in(ratings["item_id"].implode()))
    return ratings, movies
