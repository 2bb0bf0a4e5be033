"""MovieLens as the quickstart reads it, and the founding design's model on it."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.config import Config, parse_config
from vecall.data.dataset import Dataset
from vecall.data.ragged import RaggedArray
from vecall.errors import ConfigError

RATINGS_FILE, MOVIES_FILE = "ratings.csv", "movies.csv"

# Widths of the founding design's inputs; what MovieLens does not fill is zero.
USER_INPUT_DIM, ITEM_INPUT_DIM = 50, 30

_YEAR_PATTERN = r"\((\d{4})\)\s*$"
_REPOSITORY_DATA_DIR = Path(__file__).parents[2] / "examples" / "movielens"


def find_data_dir(data_dir: Path | None) -> Path:
    """The folder with ratings.csv and movies.csv: the one given, or the copy in the repository.

    Raises:
        ConfigError: they are not there.
    """
    folder = data_dir or _REPOSITORY_DATA_DIR
    if not all((folder / name).is_file() for name in (RATINGS_FILE, MOVIES_FILE)):
        raise ConfigError(
            f"{folder}: no {RATINGS_FILE} and {MOVIES_FILE} here; run from a checkout of vecall, or give --data DIR with "
            "MovieLens latest-small"
        )
    return folder


def build_settings(data_dir: Path) -> dict[str, Any]:
    """The quickstart's settings, as vecall.toml would hold them."""
    header = pl.scan_csv(data_dir / RATINGS_FILE, glob=False).collect_schema().names()
    user, item = ("user_id", "item_id") if "user_id" in header else ("userId", "movieId")  # MovieLens' own names
    return {
        "data": {"interactions": str(data_dir / RATINGS_FILE), "items": str(data_dir / MOVIES_FILE)},
        "schema": {
            "interactions": {"user": user, "item": item, "time": "timestamp", "label": "rating"},
            "items": {
                "id": item,
                "id_type": "integer",
                "title": "title",
                "attributes": ["genres"],
                "features": {"genres": {"kind": "tags", "separator": "|"}},
            },
            "users": {"id": user, "id_type": "integer"},
        },
        "model": {"preset": "pooled"},
    }


def build_dssm_config(dataset: Dataset, train: RaggedArray, config: Config, directory: Path) -> Config:
    """The founding design's model as it stands, on the same interactions: tables of its inputs and the settings.

    User input: mean genre vector, log count and mean rating of the training history. Item input: genres, year, log
    count. Both are padded with zeros; nobody has an id; four uniform negatives a positive, batch 128.

    Args:
        dataset: as the main model reads it.
        train: the training histories; nothing else is looked at.
        config: of the main model; split and patience are its own.
        directory: takes the two tables.
    """
    directory.mkdir(parents=True, exist_ok=True)
    genres = _encode_genres(dataset)
    items = pl.DataFrame({"id": dataset.catalogue.item_ids, "profile": _build_item_inputs(dataset, train, genres)})
    users = pl.DataFrame(
        {"id": dataset.catalogue.user_ids, "profile": _build_user_inputs(dataset, train, genres, config)}
    )
    items.write_parquet(directory / "items.parquet")
    users.write_parquet(directory / "users.parquet")
    given = config.as_json()
    tables = {"items": str(directory / "items.parquet"), "users": str(directory / "users.parquet")}
    return parse_config(
        {
            "data": given["data"] | tables,
            "schema": {
                "interactions": given["schema"]["interactions"],
                "items": {"id": "id", "id_type": "integer", "features": _declare_profile(ITEM_INPUT_DIM)},
                "users": {"id": "id", "id_type": "integer", "features": _declare_profile(USER_INPUT_DIM)},
            },
            "model": {"preset": "dssm"},
            "training": {"patience": config.training.patience, "seed": config.training.seed},
        }
    )


def _declare_profile(size: int) -> dict[str, Any]:
    return {"profile": {"kind": "vector", "size": size}}


def _encode_genres(dataset: Dataset) -> NDArray[np.float32]:
    """[N, genres] 1 where an item has the genre."""
    lists = dataset.catalogue.item_features["genres"].to_list()
    names = sorted({genre for genres in lists for genre in genres or []})
    return np.array([[genre in (genres or []) for genre in names] for genres in lists], dtype=np.float32)


def _build_item_inputs(dataset: Dataset, train: RaggedArray, genres: NDArray[np.float32]) -> NDArray[np.float32]:
    years = (
        dataset.catalogue.item_attributes["title"]
        .str.extract(_YEAR_PATTERN)
        .cast(pl.Float32)
        .fill_null(1990)
        .to_numpy()
    )
    counts = np.bincount(train.values, minlength=len(genres))
    return _pad_columns(ITEM_INPUT_DIM, genres, (years - 1990) / 10, np.log1p(counts))


def _build_user_inputs(
    dataset: Dataset, train: RaggedArray, genres: NDArray[np.float32], config: Config
) -> NDArray[np.float32]:
    counts = np.maximum(train.lengths, 1)
    sums = np.zeros((len(train), genres.shape[1]), dtype=np.float32)
    np.add.at(sums, train.segment_ids, genres[train.values])
    return _pad_columns(
        USER_INPUT_DIM, sums / counts[:, None], np.log1p(train.lengths), _compute_mean_ratings(dataset, train, config)
    )


def _compute_mean_ratings(dataset: Dataset, train: RaggedArray, config: Config) -> NDArray[np.float32]:
    """[U] mean rating of each user's training history."""
    names = config.schema_.interactions
    ratings = pl.read_csv(config.data.interactions[0], glob=False)
    users = dataset.catalogue.users.column_to_rows(ratings[names.user])
    items = dataset.catalogue.items.column_to_rows(ratings[names.item])
    n_items = len(dataset.catalogue.items)
    trained = np.isin(users * n_items + items, train.segment_ids * n_items + train.values)
    values = ratings[str(names.label)].to_numpy()
    sums = np.bincount(users[trained], weights=values[trained], minlength=len(train))
    return np.divide(sums, np.maximum(train.lengths, 1), dtype=np.float32)


def _pad_columns(width: int, *columns: NDArray[Any]) -> NDArray[np.float32]:
    """The columns side by side, then zeros up to `width`."""
    parts = [column[:, None] if column.ndim == 1 else column for column in columns]
    given = np.concatenate(parts, axis=1).astype(np.float32)
    return np.pad(given, ((0, 0), (0, width - given.shape[1])))
