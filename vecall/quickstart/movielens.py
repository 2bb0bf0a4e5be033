"""Settings of the quickstart for MovieLens, and of the DSSM baseline that it is compared with."""

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

# Input widths of the DSSM baseline, which was designed for wider tables; columns that MovieLens does not fill are zero.
USER_INPUT_DIM, ITEM_INPUT_DIM = 50, 30

_YEAR_PATTERN = r"\((\d{4})\)\s*$"
_REPOSITORY_DATA_DIR = Path(__file__).parents[2] / "examples" / "movielens"


def find_data_dir(data_dir: Path | None) -> Path:
    """Return the directory with ratings.csv and movies.csv: `data_dir`, or the copy in the repository if it is None.

    Raises:
        ConfigError: The files are not there.
    """
    directory = data_dir or _REPOSITORY_DATA_DIR
    if not all((directory / name).is_file() for name in (RATINGS_FILE, MOVIES_FILE)):
        raise ConfigError(
            f"{directory}: {RATINGS_FILE} and {MOVIES_FILE} are not here; run from a checkout of vecall, or use --data "
            "DIR with a directory that holds MovieLens latest-small"
        )
    return directory


def build_settings(data_dir: Path) -> dict[str, Any]:
    """Build the quickstart's settings, with the sections of vecall.toml."""
    columns = pl.scan_csv(data_dir / RATINGS_FILE, glob=False).collect_schema().names()
    # The copy in the repository has snake_case columns; MovieLens itself has camelCase.
    user, item = ("user_id", "item_id") if "user_id" in columns else ("userId", "movieId")
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
        "model": {"preset": "auto"},
    }


def build_dssm_config(dataset: Dataset, train: RaggedArray, config: Config, directory: Path) -> Config:
    """Build the settings of the DSSM baseline on the same interactions, and write its input tables.

    User input: mean genre vector, log count and mean rating of the training history. Item input: genres, year and log
    count. Both are padded with zeros. There are no id embeddings; see the preset "dssm" for the loss and the layers.

    Args:
        dataset: The tables as the main model reads them.
        train: [U] training histories; the inputs are computed from them alone.
        config: Settings of the main model, whose data, patience and seed the baseline shares.
        directory: Directory of the two tables, `items.parquet` and `users.parquet`; created if necessary.
    """
    directory.mkdir(parents=True, exist_ok=True)
    genres = _encode_genres(dataset)
    items = pl.DataFrame({"id": dataset.catalogue.item_ids, "profile": _build_item_inputs(dataset, train, genres)})
    users = pl.DataFrame(
        {"id": dataset.catalogue.user_ids, "profile": _build_user_inputs(dataset, train, genres, config)}
    )
    items.write_parquet(directory / "items.parquet")
    users.write_parquet(directory / "users.parquet")
    settings = config.as_json()
    tables = {"items": str(directory / "items.parquet"), "users": str(directory / "users.parquet")}
    return parse_config(
        {
            "data": settings["data"] | tables,
            "schema": {
                "interactions": settings["schema"]["interactions"],
                "items": {"id": "id", "id_type": "integer", "features": _declare_profile(ITEM_INPUT_DIM)},
                "users": {"id": "id", "id_type": "integer", "features": _declare_profile(USER_INPUT_DIM)},
            },
            "model": {"preset": "dssm"},
            "training": {"patience": config.training.patience, "seed": config.training.seed},
            "evaluation": {"baselines": False},  # they stand beside the main model
        }
    )


def _declare_profile(size: int) -> dict[str, Any]:
    """Declare the input vector as the only feature."""
    return {"profile": {"kind": "vector", "size": size}}


def _encode_genres(dataset: Dataset) -> NDArray[np.float32]:
    """Encode the genres of the N items as [N, G], with 1 where an item has the genre."""
    genres_by_item = dataset.catalogue.item_features["genres"].to_list()
    names = sorted({genre for genres in genres_by_item for genre in genres or []})
    return np.array([[name in (genres or []) for name in names] for genres in genres_by_item], dtype=np.float32)


def _build_item_inputs(dataset: Dataset, train: RaggedArray, genres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Build [N, ITEM_INPUT_DIM] item inputs from [N, G] genres."""
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
    """Build [U, USER_INPUT_DIM] user inputs from the genres [N, G] of the items in the training histories."""
    counts = np.maximum(train.lengths, 1)
    sums = np.zeros((len(train), genres.shape[1]), dtype=np.float32)  # [U, G]
    np.add.at(sums, train.segment_ids, genres[train.values])
    return _pad_columns(
        USER_INPUT_DIM, sums / counts[:, None], np.log1p(train.lengths), _compute_mean_ratings(dataset, train, config)
    )


def _compute_mean_ratings(dataset: Dataset, train: RaggedArray, config: Config) -> NDArray[np.float32]:
    """Compute the mean rating of each user's training history, [U]; 0 without one."""
    columns = config.schema_.interactions
    ratings = pl.read_csv(config.data.interactions[0], glob=False)
    users = dataset.catalogue.users.column_to_rows(ratings[columns.user])
    items = dataset.catalogue.items.column_to_rows(ratings[columns.item])
    n_items = len(dataset.catalogue.items)
    is_train = np.isin(users * n_items + items, train.segment_ids * n_items + train.values)
    values = ratings[str(columns.label)].to_numpy()
    sums = np.bincount(users[is_train], weights=values[is_train], minlength=len(train))
    return np.divide(sums, np.maximum(train.lengths, 1), dtype=np.float32)


def _pad_columns(width: int, *columns: NDArray[Any]) -> NDArray[np.float32]:
    """Concatenate columns, [n] or [n, c] each, and pad them with zeros to [n, width]."""
    parts = [column[:, None] if column.ndim == 1 else column for column in columns]
    matrix = np.concatenate(parts, axis=1).astype(np.float32)
    return np.pad(matrix, ((0, 0), (0, width - matrix.shape[1])))
