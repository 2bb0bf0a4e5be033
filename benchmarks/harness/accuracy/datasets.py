"""Real data sets as vecall reads them, and what others publish on them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from vecall.quickstart.movielens import build_settings as movielens_sections

Settings = dict[str, dict[str, Any]]

# recall@10 and NDCG@10, leave-one-out, all items ranked. How each treats seen items: as far as the papers tell.
PUBLISHED_RESULTS: Mapping[str, tuple[tuple[str, str, float, float], ...]] = {
    "beauty": (
        ("SASRec, as in S3-Rec", "ranked", 0.0605, 0.0318),
        ("TIGER", "ranked", 0.0648, 0.0384),
        ("ActionPiece", "ranked", 0.0775, 0.0424),
        ("SASRec + sampled softmax", "left out, cold targets dropped", 0.0921, 0.0531),
        ("eSASRec", "left out, cold targets dropped", 0.0928, 0.0523),
        ("BARGE", "left out", 0.0927, 0.0547),
    ),
    "sports": (
        ("SASRec, as in S3-Rec", "ranked", 0.0350, 0.0192),
        ("TIGER", "ranked", 0.0400, 0.0225),
        ("ActionPiece", "ranked", 0.0500, 0.0264),
        ("SASRec + sampled softmax", "left out, cold targets dropped", 0.0569, 0.0314),
        ("eSASRec", "left out, cold targets dropped", 0.0560, 0.0323),
        ("BARGE", "left out", 0.0544, 0.0308),
    ),
}

# What is to be reached, (recall@10, NDCG@10): seen items left out, then ranked too; and recall@100 with seen left out.
TARGETS: Mapping[str, tuple[tuple[float, float], tuple[float, float] | None, float | None]] = {
    "beauty": ((0.110, 0.066), (0.098, 0.046), 0.285),
    "sports": ((0.067, 0.038), None, None),
}


def build_amazon_settings(folder: Path, work: Path) -> Settings:
    """A user's items a line, in the order of taking, and attribute ids of each item."""
    lines = (folder / "sequences.txt").read_text(encoding="utf-8").splitlines()
    taken = [(user, int(item)) for user, *items in map(str.split, lines) for item in items]
    pl.DataFrame(taken, schema=["user", "item"], orient="row").write_parquet(work / "taken.parquet")
    attributes = json.loads((folder / "item2attributes.json").read_text(encoding="utf-8"))
    ids = sorted({item for _, item in taken})
    items = {"item": ids, "attributes": [[str(one) for one in attributes.get(str(item), ())] for item in ids]}
    pl.DataFrame(items).write_parquet(work / "items.parquet")
    return {
        "data": {"interactions": str(work / "taken.parquet"), "items": str(work / "items.parquet")},
        "schema": {
            "interactions": {"user": "user", "item": "item"},
            "items": {"id": "item", "id_type": "integer", "features": {"attributes": {"kind": "tags"}}},
            "users": {"id": "user", "id_type": "string"},
        },
    }


def build_movielens_settings(folder: Path, work: Path) -> Settings:
    """Every rating counts, in the order of time."""
    del work
    return movielens_sections(folder)


DATASETS: Mapping[str, tuple[str, Callable[[Path, Path], Settings]]] = {
    "beauty": ("amazon-beauty", build_amazon_settings),
    "sports": ("amazon-sports", build_amazon_settings),
    "movielens": ("ml-latest-small", build_movielens_settings),
}
