"""Synthetic shop that is small enough to fit and publish models of it within tests.

Each item belongs to a group, and each user takes the items of a single group, in random order. A model can predict the
remaining items of the group; popularity cannot.
"""

import json

import numpy as np
import polars as pl
import torch

from vecall.config import Config, parse_config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.data.split import NO_HARD_NEGATIVES, HardNegatives
from vecall.schema import CategoryFeature, NumericFeature, TagsFeature, TextFeature, VectorFeature
from vecall.towers.settings import HistorySettings, ModelSettings
from vecall.training.data import TrainingData

torch.set_num_threads(1)  # on tensors of this size, a second thread costs more than it saves

GROUPS, GROUP_SIZE, USERS = 6, 6, 60
ITEMS = GROUPS * GROUP_SIZE

# Every kind of feature. `type` and `price.eur` are no valid names of torch modules; one name is not ASCII.
FEATURES = {
    "type": CategoryFeature(),
    "price.eur": NumericFeature(),
    "标签": TagsFeature(),
    "look": VectorFeature(size=3),
    "text": TextFeature(buckets=32, max_tokens=8),
}


def make_features(count: int, seed: int = 0, *, groups: np.ndarray | None = None) -> pl.DataFrame:
    """Make rows with a column for each feature, some of whose values are missing."""
    rng = np.random.default_rng(seed)
    group = rng.integers(GROUPS, size=count) if groups is None else groups
    is_present = rng.random((count, 5)) < 0.9
    look = rng.standard_normal((count, 3)).round(3)
    return pl.DataFrame(
        {
            "type": [f"kind {g}" if present else None for g, present in zip(group, is_present[:, 0], strict=True)],
            "price.eur": [float(rng.integers(1, 100)) if present else None for present in is_present[:, 1]],
            "标签": [[f"红{g}", "all"][: int(n)] for g, n in zip(group, rng.integers(0, 3, count), strict=True)],
            "look": [list(row) if present else None for row, present in zip(look, is_present[:, 3], strict=True)],
            "text": [
                f"Word{g} 矢量召回" if present else None for g, present in zip(group, is_present[:, 4], strict=True)
            ],
        },
        schema={
            "type": pl.String,
            "price.eur": pl.Float64,
            "标签": pl.List(pl.String),
            "look": pl.List(pl.Float32),
            "text": pl.String,
        },
    )


def assign_item_groups(count: int = ITEMS) -> np.ndarray:
    """Return the group of each item, [count]; neighbors belong to different groups."""
    return np.arange(count) % GROUPS


def make_user_sequences(seed: int = 0, users: int = USERS, length: int = GROUP_SIZE) -> list[np.ndarray]:
    """Make the sequence of items that each user takes, oldest first."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(assign_item_groups() == u % GROUPS))[:length] for u in range(users)]


def make_training_data(
    *,
    item_features: bool = False,
    user_features: bool = False,
    negatives: HardNegatives = NO_HARD_NEGATIVES,
    n_unobserved_items: int = 0,
) -> TrainingData:
    """Make training data of all items of each user but the last, without the last `n_unobserved_items` items."""
    item_frame, user_frame = make_features(ITEMS, 1, groups=assign_item_groups()), make_features(USERS, 2)
    item_encoder = FeatureEncoder.fit(FEATURES if item_features else {}, item_frame)
    user_encoder = FeatureEncoder.fit(FEATURES if user_features else {}, user_frame)
    return TrainingData(
        histories=RaggedArray.from_lists(
            [
                [item for item in sequence[:-1] if item < ITEMS - n_unobserved_items]
                for sequence in make_user_sequences()
            ]
        ),
        hard_negatives=negatives,
        n_items=ITEMS,
        item_features=item_encoder.encode(item_frame),
        user_features=user_encoder.encode(user_frame),
        item_specs=item_encoder.specs,
        user_specs=user_encoder.specs,
    )


def make_eval_cases() -> EvalCases:
    """Make cases whose target is the last item of each user."""
    sequences = make_user_sequences()
    histories, targets = (
        RaggedArray.from_lists([sequence[part] for sequence in sequences]) for part in (slice(-1), slice(-1, None))
    )
    return EvalCases(np.arange(USERS), histories, targets)


def make_model_settings(encoder: str = "mean", **settings: object) -> ModelSettings:
    """Make the settings of small towers; `settings` override."""
    return ModelSettings(**{"dim": 8, "history": HistorySettings(encoder=encoder, length=4)} | settings)


def write_tables(directory, *, seed: int = 0, more_items: int = 0) -> None:
    """Write the shop as `items.csv`, `users.csv` and `taken.csv`, with string ids; item ids descend with the row.

    Args:
        directory: Where the files go.
        seed: Seed of the interactions.
        more_items: Items without interactions to add, at most 8.
    """
    n_items = ITEMS + more_items
    max_items = ITEMS + 8  # always drawn in full, so that additional items do not change the features of the others
    item_frame = make_features(max_items, 1, groups=assign_item_groups(max_items))[:n_items]
    _to_csv_columns(item_frame, [make_item_id(i) for i in range(n_items)]).with_columns(
        title=pl.Series([f"Item {i}" for i in range(n_items)]), year=pl.Series(range(n_items))
    ).write_csv(directory / "items.csv")
    _to_csv_columns(make_features(USERS, 2), [f"user-{u}" for u in range(USERS)]).write_csv(directory / "users.csv")
    rng = np.random.default_rng(seed)
    rows = []
    for user, sequence in enumerate(make_user_sequences(seed)):
        rows += [(f"user-{user}", make_item_id(item), time, 5.0) for time, item in enumerate(sequence)]
        disliked = rng.choice(np.flatnonzero(assign_item_groups() != user % GROUPS))
        rows.append((f"user-{user}", make_item_id(disliked), 2, 1.0))
    pl.DataFrame(rows, schema=["user", "item", "time", "rating"], orient="row").write_csv(directory / "taken.csv")


def make_item_id(row: int) -> str:
    """Return the id of an item of `write_tables`."""
    return f"item-{999 - row}-é"


def _to_csv_columns(frame: pl.DataFrame, ids: list[str]) -> pl.DataFrame:
    return frame.with_columns(
        pl.Series("id", ids),
        pl.col("标签").list.join("|"),
        pl.col("look").cast(pl.List(pl.String)).list.join(" "),
    )


def make_config(directory, **sections: dict[str, object]) -> Config:
    """Make the config of the tables of `write_tables`; `sections` override."""
    features = {name: feature.model_dump(mode="json") for name, feature in FEATURES.items()}
    config: dict[str, dict[str, object]] = {
        "data": {
            "interactions": str(directory / "taken.csv"),
            "items": str(directory / "items.csv"),
            "users": str(directory / "users.csv"),
        },
        "schema": {
            "interactions": {"user": "user", "item": "item", "time": "time", "label": "rating", "positive": 3.0},
            "items": {
                "id": "id",
                "id_type": "string",
                "title": "title",
                "attributes": {"year": "integer", "type": "string"},
                "features": features,
            },
            "users": {"id": "id", "id_type": "string", "features": features},
        },
        "model": {"preset": "pooled", "dim": 8, "history": {"encoder": "mean", "length": 4}},
        "training": {"epochs": 4, "batch": 32, "lr": 0.03},
        "index": {"ks": [5, 10]},
        "evaluation": {"ks": [5, 10]},
    }
    for name, section in sections.items():
        config[name] = config.get(name, {}) | section
    return parse_config(json.loads(json.dumps(config)))


def load_dataset(config: Config) -> Dataset:
    """Read the tables of a config."""
    return read_dataset(config.data, config.schema_)
