"""A synthetic shop, so small that models of it are fitted and published within tests.

Items fall into groups, and a user takes the items of one group in random order: who has taken some of a group
will take the others. Popularity knows nothing of this.
"""

import json

import numpy as np
import polars as pl
import torch

from vecall.config import Config, parse_config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.data.split import LabeledNegatives
from vecall.schema import CategoryFeature, NumericFeature, TagsFeature, TextFeature, VectorFeature
from vecall.towers.settings import HistorySettings, ModelSettings
from vecall.training.data import TrainingData

torch.set_num_threads(1)  # such small tensors only wait for a second thread

GROUPS, GROUP_SIZE, USERS = 6, 6, 60
ITEMS = GROUPS * GROUP_SIZE

# Every kind; two names that torch could not take for a layer's, and one that is not ASCII.
FEATURES = {
    "type": CategoryFeature(),
    "price.eur": NumericFeature(),
    "标签": TagsFeature(),
    "look": VectorFeature(size=3),
    "text": TextFeature(buckets=32, max_tokens=8),
}
EMPTY_PAIRS = LabeledNegatives(*(np.empty(0, dtype=np.int64) for _ in range(3)))


def make_features(count: int, seed: int = 0, *, groups: np.ndarray | None = None) -> pl.DataFrame:
    """Rows with a column per feature of every kind, some of them missing."""
    rng = np.random.default_rng(seed)
    group = rng.integers(GROUPS, size=count) if groups is None else groups
    some = rng.random((count, 5)) < 0.9
    look = rng.standard_normal((count, 3)).round(3)
    return pl.DataFrame(
        {
            "type": [f"kind {g}" if ok else None for g, ok in zip(group, some[:, 0], strict=True)],
            "price.eur": [float(rng.integers(1, 100)) if ok else None for ok in some[:, 1]],
            "标签": [[f"红{g}", "all"][: int(n)] for g, n in zip(group, rng.integers(0, 3, count), strict=True)],
            "look": [list(row) if ok else None for row, ok in zip(look, some[:, 3], strict=True)],
            "text": [f"Word{g} 矢量召回" if ok else None for g, ok in zip(group, some[:, 4], strict=True)],
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
    """[N] the group of each item; neighbours are of different groups."""
    return np.arange(count) % GROUPS


def make_user_sequences(seed: int = 0, users: int = USERS, length: int = GROUP_SIZE) -> list[np.ndarray]:
    """Each user's items, in the order of taking."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(assign_item_groups() == u % GROUPS))[:length] for u in range(users)]


def make_training_data(
    *,
    item_features: bool = False,
    user_features: bool = False,
    negatives: LabeledNegatives = EMPTY_PAIRS,
    n_unobserved_items: int = 0,
) -> TrainingData:
    """All but each user's last item, to be learned from, and without those of the last `n_unobserved_items` items."""
    item_fields, user_fields = make_features(ITEMS, 1, groups=assign_item_groups()), make_features(USERS, 2)
    items = FeatureEncoder.fit(FEATURES if item_features else {}, item_fields)
    users = FeatureEncoder.fit(FEATURES if user_features else {}, user_fields)
    return TrainingData(
        histories=RaggedArray.from_lists(
            [[item for item in walk[:-1] if item < ITEMS - n_unobserved_items] for walk in make_user_sequences()]
        ),
        hard_negatives=negatives,
        n_items=ITEMS,
        item_features=items.encode(item_fields),
        user_features=users.encode(user_fields),
        item_specs=items.specs,
        user_specs=users.specs,
    )


def make_eval_cases() -> EvalCases:
    """Each user's last item, to be foretold."""
    taken = make_user_sequences()
    histories, targets = (
        RaggedArray.from_lists([walk[part] for walk in taken]) for part in (slice(-1), slice(-1, None))
    )
    return EvalCases(np.arange(USERS), histories, targets)


def make_model_settings(encoder: str = "mean", **others: object) -> ModelSettings:
    """Small towers."""
    return ModelSettings(**{"dim": 8, "history": HistorySettings(encoder=encoder, length=4)} | others)


def write_tables(folder, *, seed: int = 0, more_items: int = 0) -> None:
    """The shop as `items.csv`, `users.csv` and `taken.csv`, with string ids; item ids descend with the row."""
    total = ITEMS + more_items
    at_most = ITEMS + 8  # drawn whole, so that more items leave the others as they are
    described = make_features(at_most, 1, groups=assign_item_groups(at_most))[:total]
    _to_csv_columns(described, [make_item_id(i) for i in range(total)]).with_columns(
        title=pl.Series([f"Item {i}" for i in range(total)]), year=pl.Series(range(total))
    ).write_csv(folder / "items.csv")
    _to_csv_columns(make_features(USERS, 2), [f"user-{u}" for u in range(USERS)]).write_csv(folder / "users.csv")
    rng = np.random.default_rng(seed)
    rows = []
    for user, walk in enumerate(make_user_sequences(seed)):
        rows += [(f"user-{user}", make_item_id(item), time, 5.0) for time, item in enumerate(walk)]
        other = rng.choice(np.flatnonzero(assign_item_groups() != user % GROUPS))
        rows.append((f"user-{user}", make_item_id(other), 2, 1.0))
    pl.DataFrame(rows, schema=["user", "item", "time", "rating"], orient="row").write_csv(folder / "taken.csv")


def make_item_id(row: int) -> str:
    return f"item-{999 - row}-é"


def _to_csv_columns(frame: pl.DataFrame, ids: list[str]) -> pl.DataFrame:
    return frame.with_columns(
        pl.Series("id", ids),
        pl.col("标签").list.join("|"),
        pl.col("look").cast(pl.List(pl.String)).list.join(" "),
    )


def make_config(folder, **sections: dict[str, object]) -> Config:
    """Settings for what `write_tables` wrote; `sections` override."""
    declared = {name: feature.model_dump(mode="json") for name, feature in FEATURES.items()}
    settings: dict[str, dict[str, object]] = {
        "data": {
            "interactions": str(folder / "taken.csv"),
            "items": str(folder / "items.csv"),
            "users": str(folder / "users.csv"),
        },
        "schema": {
            "interactions": {"user": "user", "item": "item", "time": "time", "label": "rating", "positive": 3.0},
            "items": {
                "id": "id",
                "id_type": "string",
                "title": "title",
                "attributes": {"year": "integer", "type": "string"},
                "features": declared,
            },
            "users": {"id": "id", "id_type": "string", "features": declared},
        },
        "model": {"dim": 8, "history": {"encoder": "mean", "length": 4}},
        "training": {"epochs": 4, "batch": 32, "lr": 0.03},
        "index": {"ks": [5, 10]},
        "evaluation": {"ks": [5, 10]},
    }
    for name, section in sections.items():
        settings[name] = settings[name] | section
    return parse_config(json.loads(json.dumps(settings)))


def load_dataset(settings: Config) -> Dataset:
    """The tables, read."""
    return read_dataset(settings.data, settings.schema_)
