"""Public data sets as vecall reads them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from vecall.quickstart.movielens import build_settings

Settings = dict[str, dict[str, Any]]


class PublicDataset(NamedTuple):
    """Data set of the data directory.

    Attributes:
        directory: name of its directory.
        build_settings: returns the `data` and `schema` sections of a configuration, given the directory of the data set
            and one for converted tables.
    """

    directory: str
    build_settings: Callable[[Path, Path], Settings]


def build_amazon_settings(directory: Path, work_dir: Path) -> Settings:
    """Convert an Amazon data set: leave-one-out, items with their categories and brand.

    Args:
        directory: holds sequences.txt, a user and their items in temporal order per line, and item2attributes.json.
        work_dir: takes the tables.
    """
    lines = (directory / "sequences.txt").read_text(encoding="utf-8").splitlines()
    interactions = [(user, int(item)) for user, *items in map(str.split, lines) for item in items]
    attributes_by_item = json.loads((directory / "item2attributes.json").read_text(encoding="utf-8"))
    ids = sorted({item_id for _, item_id in interactions})
    attributes = [[str(attribute) for attribute in attributes_by_item.get(str(item_id), ())] for item_id in ids]
    settings = _write_tables(
        pl.DataFrame(interactions, schema=["user", "item"], orient="row"),
        pl.DataFrame({"item": ids, "attributes": attributes}),
        {"attributes": {"kind": "tags"}},
        work_dir,
    )
    settings["schema"]["users"]["id_type"] = "string"
    return settings


def build_movielens_settings(directory: Path, work_dir: Path) -> Settings:
    """Return the settings of MovieLens: leave-one-out, every rating is a positive, in temporal order."""
    del work_dir
    return build_settings(directory)


def build_steam_settings(directory: Path, work_dir: Path) -> Settings:
    """Convert the purchases of Steam: a random split, games without features; a purchase listed twice counts once.

    Args:
        directory: holds game_purchase.dat and item_info.dat.
        work_dir: takes the tables.
    """
    interactions = _read_tab_separated(directory / "game_purchase.dat", ("user", "item", "purchased"))
    items = _read_tab_separated(directory / "item_info.dat", ("item", "title"))
    settings = _write_tables(_select_ids(interactions, "user", "item"), _select_ids(items, "item"), {}, work_dir)
    settings["data"]["repeats"] = "first"
    return _split_at_random(settings)


def build_book_crossing_settings(directory: Path, work_dir: Path) -> Settings:
    """Convert the accessed books of Book-Crossing: a random split, books without features.

    Args:
        directory: holds book_history.dat and items_info.dat.
        work_dir: takes the tables.
    """
    interactions = _read_tab_separated(directory / "book_history.dat", ("user", "item", "accessed"))
    columns = ("item", "isbn", "title", "author", "year", "publisher")
    items = _read_tab_separated(directory / "items_info.dat", columns).select("item", "title")
    settings = _write_tables(_select_ids(interactions, "user", "item"), _select_ids(items, "item"), {}, work_dir)
    return _split_at_random(settings)


def build_citeulike_settings(directory: Path, work_dir: Path) -> Settings:
    """Convert the libraries of citeulike-a: a random split, articles with their tags.

    Args:
        directory: holds users.dat and item-tag.dat; a line is a user or an article: a count, then so many numbers.
        work_dir: takes the tables.
    """
    libraries, tags = (
        [line.split()[1:] for line in (directory / name).read_text(encoding="utf-8").splitlines()]
        for name in ("users.dat", "item-tag.dat")
    )
    pairs = [(user, int(item)) for user, library in enumerate(libraries) for item in library]
    items = pl.DataFrame({"item": range(len(tags)), "tags": tags}, schema_overrides={"tags": pl.List(pl.String)})
    settings = _write_tables(
        pl.DataFrame(pairs, schema=["user", "item"], orient="row"), items, {"tags": {"kind": "tags"}}, work_dir
    )
    return _split_at_random(settings)


def _read_tab_separated(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    """Read a file with a header, whose names are replaced; quotation marks are ordinary characters."""
    return pl.read_csv(path, separator="\t", quote_char=None, new_columns=columns, infer_schema=False)


def _select_ids(table: pl.DataFrame, *ids: str) -> pl.DataFrame:
    """Return the table with ids as integers, and without the columns that only say that a row is there."""
    return table.drop("purchased", "accessed", strict=False).with_columns(pl.col(*ids).cast(pl.Int64))


def _write_tables(interactions: pl.DataFrame, items: pl.DataFrame, features: Settings, work_dir: Path) -> Settings:
    """Write interactions of `user` and `item` and items with these features, and return their settings."""
    interactions_path, items_path = work_dir / "interactions.parquet", work_dir / "items.parquet"
    interactions.write_parquet(interactions_path)
    items.write_parquet(items_path)
    title = {"title": "title"} if "title" in items.columns else {}
    return {
        "data": {"interactions": str(interactions_path), "items": str(items_path)},
        "schema": {
            "interactions": {"user": "user", "item": "item"},
            "items": {"id": "item", "id_type": "integer", "features": features} | title,
            "users": {"id": "user", "id_type": "integer"},
        },
    }


def _split_at_random(settings: Settings) -> Settings:
    """Hold out 10 % of each user's items for the test and as many for validation; histories are the training part."""
    settings["data"]["split"] = "random"
    return settings


DATASETS: Mapping[str, PublicDataset] = {
    "movielens": PublicDataset("ml-latest-small", build_movielens_settings),
    "steam": PublicDataset("steam", build_steam_settings),
    "book-crossing": PublicDataset("book-crossing", build_book_crossing_settings),
    "citeulike-a": PublicDataset("citeulike-a", build_citeulike_settings),
    "beauty": PublicDataset("amazon-beauty", build_amazon_settings),
    "sports": PublicDataset("amazon-sports", build_amazon_settings),
}
