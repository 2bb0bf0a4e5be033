"""Public data sets as vecall reads them, published results on them, and goals."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from vecall.quickstart.movielens import build_settings

Settings = dict[str, dict[str, Any]]


class PublishedResult(NamedTuple):
    """Result of a paper: leave-one-out, all items ranked.

    Attributes:
        model: as the literature names it.
        seen_items: how the ranking treats items of the history, as far as the paper says.
        recall_at_10: recall@10.
        ndcg_at_10: NDCG@10.
    """

    model: str
    seen_items: str
    recall_at_10: float
    ndcg_at_10: float


class Target(NamedTuple):
    """Goal of a data set.

    Attributes:
        seen_excluded: recall@10 and NDCG@10 without seen items.
        seen_included: the same with seen items ranked; None for no goal.
        recall_at_100: recall@100 without seen items; None for no goal.
    """

    seen_excluded: tuple[float, float]
    seen_included: tuple[float, float] | None
    recall_at_100: float | None


class PublicDataset(NamedTuple):
    """Data set of the data directory.

    Attributes:
        directory: name of its directory.
        build_settings: returns the `data` and `schema` sections of a configuration, given the directory of the data set
            and one for converted tables.
    """

    directory: str
    build_settings: Callable[[Path, Path], Settings]


PUBLISHED_RESULTS: Mapping[str, tuple[PublishedResult, ...]] = {
    "beauty": (
        PublishedResult("SASRec, as in S3-Rec", "included", 0.0605, 0.0318),
        PublishedResult("TIGER", "included", 0.0648, 0.0384),
        PublishedResult("ActionPiece", "included", 0.0775, 0.0424),
        PublishedResult("SASRec + sampled softmax", "excluded, cold targets dropped", 0.0921, 0.0531),
        PublishedResult("eSASRec", "excluded, cold targets dropped", 0.0928, 0.0523),
        PublishedResult("BARGE", "excluded", 0.0927, 0.0547),
    ),
    "sports": (
        PublishedResult("SASRec, as in S3-Rec", "included", 0.0350, 0.0192),
        PublishedResult("TIGER", "included", 0.0400, 0.0225),
        PublishedResult("ActionPiece", "included", 0.0500, 0.0264),
        PublishedResult("SASRec + sampled softmax", "excluded, cold targets dropped", 0.0569, 0.0314),
        PublishedResult("eSASRec", "excluded, cold targets dropped", 0.0560, 0.0323),
        PublishedResult("BARGE", "excluded", 0.0544, 0.0308),
    ),
}

TARGETS: Mapping[str, Target] = {
    "beauty": Target((0.110, 0.066), (0.098, 0.046), 0.285),
    "sports": Target((0.067, 0.038), None, None),
}


def build_amazon_settings(directory: Path, work_dir: Path) -> Settings:
    """Convert an Amazon data set to Parquet and return its settings.

    Args:
        directory: holds sequences.txt, a user and their items in temporal order per line, and item2attributes.json.
        work_dir: takes the tables.
    """
    lines = (directory / "sequences.txt").read_text(encoding="utf-8").splitlines()
    interactions = [(user, int(item)) for user, *items in map(str.split, lines) for item in items]
    interactions_path, items_path = work_dir / "interactions.parquet", work_dir / "items.parquet"
    pl.DataFrame(interactions, schema=["user", "item"], orient="row").write_parquet(interactions_path)
    attributes_by_item = json.loads((directory / "item2attributes.json").read_text(encoding="utf-8"))
    ids = sorted({item_id for _, item_id in interactions})
    attributes = [[str(attribute) for attribute in attributes_by_item.get(str(item_id), ())] for item_id in ids]
    pl.DataFrame({"item": ids, "attributes": attributes}).write_parquet(items_path)
    return {
        "data": {"interactions": str(interactions_path), "items": str(items_path)},
        "schema": {
            "interactions": {"user": "user", "item": "item"},
            "items": {"id": "item", "id_type": "integer", "features": {"attributes": {"kind": "tags"}}},
            "users": {"id": "user", "id_type": "string"},
        },
    }


def build_movielens_settings(directory: Path, work_dir: Path) -> Settings:
    """Return the settings of MovieLens: every rating is a positive, in temporal order."""
    del work_dir
    return build_settings(directory)


DATASETS: Mapping[str, PublicDataset] = {
    "beauty": PublicDataset("amazon-beauty", build_amazon_settings),
    "sports": PublicDataset("amazon-sports", build_amazon_settings),
    "movielens": PublicDataset("ml-latest-small", build_movielens_settings),
}
