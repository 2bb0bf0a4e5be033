"""Files of the channels' tables: `channels/*` of a release."""

from pathlib import Path

from vecall.channels.channel_tables import ChannelTables
from vecall.channels.similar_items import SimilarItems
from vecall.errors import InvalidReleaseError
from vecall.release.file_io import map_array, write_array
from vecall.release.manifest import CHANNELS_DIR

_SIMILAR_ARRAYS = ("offsets", "rows", "scores")


def save_channels(tables: ChannelTables, release_dir: Path) -> None:
    """Write the tables into the directory of a release; without any, the directory `channels/` is not created."""
    directory = release_dir / CHANNELS_DIR
    if tables.is_empty:
        return
    directory.mkdir()
    if tables.similar is not None:
        for name in _SIMILAR_ARRAYS:
            write_array(directory / f"similar.{name}.npy", getattr(tables.similar, name))


def load_channels(release_dir: Path, n_items: int) -> ChannelTables:
    """Read the tables of a verified release.

    Args:
        release_dir: The directory of the release.
        n_items: N.

    Raises:
        InvalidReleaseError: A file is missing, cannot be read, or is not of N items.
    """
    return ChannelTables(similar=_load_similar(release_dir / CHANNELS_DIR, n_items))


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
    if len(similar) != n_items or int(similar.offsets[-1]) != total or len(similar.scores) != total:
        raise InvalidReleaseError(
            f"{paths[0].parent}: similar.* has lists of {len(similar)} items and {total} neighbours, expected those of "
            f"{n_items} items; publish the release again",
            file=f"{CHANNELS_DIR}/{paths[0].name}",
        )
    return similar
