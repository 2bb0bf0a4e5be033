"""Small contexts for the checks of `vecall doctor`, from rows of (user, item, time) and settings."""

import dataclasses
import json

import numpy as np
import polars as pl

from vecall.config import Config, parse_config
from vecall.data.dataset import Dataset, build_dataset
from vecall.data.settings import CsvSettings
from vecall.data.table_source import TableSource
from vecall.data.table_validator import BadRowHandler
from vecall.data.tables import TableSources, validate_tables
from vecall.doctor.context import DoctorContext, RankingFacts, RecallGap, TrainingFacts
from vecall.doctor.finding import Finding


def make_config(**sections: dict[str, object]) -> Config:
    """Make settings; `sections` are merged into the defaults."""
    config: dict[str, dict[str, object]] = {
        "data": {"interactions": "log.csv", "items": "items.csv", "users": "users.csv"},
        "schema": {
            "interactions": {"user": "user", "item": "item", "time": "time"},
            "items": {"id": "id", "id_type": "string"},
            "users": {"id": "id", "id_type": "string"},
        },
    }
    for name, section in sections.items():
        config[name] = config.get(name, {}) | section
    return parse_config(json.loads(json.dumps(config)))


def make_rows(users: int = 40, items: int = 60, length: int = 8, seed: int = 0) -> list[tuple[str, str, int]]:
    """Make rows of users who each take `length` different items, at rising times."""
    rng = np.random.default_rng(seed)
    return [
        (f"u{user:03}", f"i{item:03}", time)
        for user in range(users)
        for time, item in enumerate(rng.choice(items, length, replace=False))
    ]


def make_dataset(
    config: Config,
    rows: list[tuple[object, ...]],
    *,
    columns: tuple[str, ...] = ("user", "item", "time"),
    items: pl.DataFrame | None = None,
    users: pl.DataFrame | None = None,
    bad_rows: str = "error",
) -> Dataset:
    """Build the data set of rows of interactions and optional tables."""
    frame = pl.DataFrame(rows, schema=list(columns), orient="row")
    sources = TableSources(
        [TableSource("log.csv", frame)],
        None if items is None else TableSource("items.csv", items),
        None if users is None else TableSource("users.csv", users),
        CsvSettings(),
    )
    tables = validate_tables(sources, config.schema_, BadRowHandler(should_drop=bad_rows == "drop"))
    return build_dataset(tables, config.schema_, config.data.repeats)


def make_context(
    rows: list[tuple[object, ...]] | None = None, config: Config | None = None, **tables: object
) -> DoctorContext:
    """Make the context of a data set and its split."""
    config = config or make_config()
    dataset = make_dataset(config, rows or make_rows(), **tables)
    return DoctorContext(config=config, dataset=dataset, split=dataset.split(config.data))


def make_training(losses: list[float], scores: list[float], **facts: object) -> TrainingFacts:
    """Make the course of a training from the loss and the validation score of each epoch."""
    epochs = tuple(
        {"epoch": epoch, "loss": loss, "valid_score": score, "valid_recall": score}
        for epoch, (loss, score) in enumerate(zip(losses, scores, strict=True))
    )
    return TrainingFacts(epochs, int(np.argmax(scores)), **facts)


def make_ranking(
    recall: float = 0.4,
    *,
    popularity: float = 0.2,
    ease: float = 0.38,
    users: int = 400,
    items: int = 2000,
    k: int = 20,
    **facts: object,
) -> RankingFacts:
    """Make the ranking of a healthy model: each user has different items, of all popularities."""
    rng = np.random.default_rng(0)
    item_counts = np.sort(rng.zipf(1.6, items).clip(max=5000))[::-1].astype(np.float32)
    weights = np.sqrt(item_counts) / np.sqrt(item_counts).sum()
    top_rows = np.stack([rng.choice(items, k, replace=False, p=weights) for _ in range(users)])
    gaps = {"popularity": RecallGap(recall, popularity, 0.01), "ease": RecallGap(recall, ease, 0.01)}
    ranking = RankingFacts(f"recall@{k}", users, gaps, {}, top_rows, item_counts, rng.choice(items, users, p=weights))
    return dataclasses.replace(ranking, **facts)


def list_levels(findings: list[Finding]) -> list[tuple[str, str]]:
    """List check and level of each finding."""
    return [(finding.check, finding.level) for finding in findings]
