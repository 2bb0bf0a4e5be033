"""Files of the channels' tables: `channels/*` of a release."""

from pathlib import Path

import numpy as np
from pydantic import ValidationError

from vecall.channels.channel_facts import NO_FACTS, ChannelFacts
from vecall.channels.channel_tables import ChannelTables
from vecall.channels.popular_items import PopularItems, PopularLists
from vecall.channels.similar_items import SimilarItems
from vecall.errors import InvalidReleaseError
from vecall.release.file_io import map_array, read_table, write_array, write_table
from vecall.release.manifest import CHANNELS_DIR, read_release_file

FACTS_FILE = f"{CHANNELS_DIR}/facts.json"
_POPULAR_COUNTS_FILE = "popular.counts.npy"
_LIST_ARRAYS = ("offsets", "rows", "scores")
_SIMILAR_ARRAYS = (*_LIST_ARRAYS, "later_shares", "seed_weights")


def save_channels(tables: ChannelTables, release_dir: Path) -> None:
    """Write the tables into the directory of a release; without any, the directory `channels/` is not created."""
    directory = release_dir / CHANNELS_DIR
    if tables.is_empty:
        return
    directory.mkdir()
    if tables.similar is not None:
        for name in _SIMILAR_ARRAYS:
            write_array(directory / f"similar.{name}.npy", getattr(tables.similar, name))
    if tables.popular is not None:
        write_array(directory / _POPULAR_COUNTS_FILE, tables.popular.counts)
        for name in ("by", "by_user"):
            if (lists := getattr(tables.popular, name)) is not None:
                _save_lists(lists, directory, f"popular.{name}")
                write_table(_get_values_path(directory, name), lists.values.alias(lists.column).to_frame())
    if tables.facts != NO_FACTS:
        (release_dir / FACTS_FILE).write_text(tables.facts.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _save_lists(lists: PopularLists, directory: Path, prefix: str) -> None:
    for name in _LIST_ARRAYS:
        write_array(directory / f"{prefix}.{name}.npy", getattr(lists, name))


def _get_values_path(directory: Path, name: str) -> Path:
    return directory / f"popular.{name}.values.arrow"


def load_channels(release_dir: Path, n_items: int) -> ChannelTables:
    """Read the tables of a verified release.

    Args:
        release_dir: The directory of the release.
        n_items: N.

    Raises:
        InvalidReleaseError: A file is missing, cannot be read, or is not of N items.
    """
    directory = release_dir / CHANNELS_DIR
    return ChannelTables(
        similar=_load_similar(directory, n_items),
        popular=_load_popular(directory, n_items),
        facts=_load_facts(release_dir) if (release_dir / FACTS_FILE).exists() else NO_FACTS,
    )


def _load_similar(directory: Path, n_items: int) -> SimilarItems | None:
    paths = [directory / f"similar.{name}.npy" for name in _SIMILAR_ARRAYS]
    if not any(path.exists() for path in paths):
        return None
    for path in paths:
        if not path.exists():
            raise InvalidReleaseError(
                f"{path} is missing, and other files of the channel are there; publish the release again",
                file=f"{CHANNELS_DIR}/{path.name}",
            )
    similar = SimilarItems(*map(map_array, paths))
    total = len(similar.rows)
    if len(similar) != n_items or {int(similar.offsets[-1]), len(similar.scores), len(similar.later_shares)} != {total}:
        raise InvalidReleaseError(
            f"{paths[0].parent}: similar.* has lists of {len(similar)} items and {total} neighbours, expected those of "
            f"{n_items} items; publish the release again",
            file=f"{CHANNELS_DIR}/{paths[0].name}",
        )
    return similar


def _load_popular(directory: Path, n_items: int) -> PopularItems | None:
    path = directory / _POPULAR_COUNTS_FILE
    if not path.exists():
        return None
    by, by_user = (_load_popular_lists(directory, name, n_items) for name in ("by", "by_user"))
    popular = PopularItems(map_array(path), by, by_user)
    if len(popular) != n_items:
        raise InvalidReleaseError(
            f"{path} has {len(popular)} counts, expected those of {n_items} items; publish the release again",
            file=f"{CHANNELS_DIR}/{path.name}",
        )
    return popular


def _load_popular_lists(directory: Path, name: str, n_items: int) -> PopularLists | None:
    path = _get_values_path(directory, name)
    if not path.exists():
        return None
    [values] = read_table(path).get_columns()
    arrays = [map_array(directory / f"popular.{name}.{array}.npy") for array in _LIST_ARRAYS]
    lists = PopularLists(values.name, values, *arrays)
    total = int(lists.offsets[-1])
    if (
        len(lists) != len(values)
        or len(lists.rows) != total
        or len(lists.scores) != total
        or int(np.max(lists.rows, initial=-1)) >= n_items
    ):
        raise InvalidReleaseError(
            f"{directory}: popular.{name}.* has {len(values)} values, {len(lists)} lists, {len(lists.rows)} rows of "
            f"{n_items} items and {len(lists.scores)} scores, which do not match; publish the release again",
            file=f"{CHANNELS_DIR}/{path.name}",
        )
    return lists


def _load_facts(release_dir: Path) -> ChannelFacts:
    try:
        return ChannelFacts.model_validate_json(read_release_file(release_dir, FACTS_FILE))
    except ValidationError as error:
        raise InvalidReleaseError(
            f"{release_dir / FACTS_FILE} does not have the expected keys: {error}; publish the release again",
            file=FACTS_FILE,
        ) from error
