"""Files of an id map: `PREFIXintegers.npy`, or `PREFIXbytes.npy` and `PREFIXoffsets.npy`."""

from pathlib import Path

from vecall.data.id_map import IdMap, build_id_map_from_arrays
from vecall.release.file_io import map_array, write_array


def save_id_map(id_map: IdMap, directory: Path, prefix: str) -> None:
    """Write an id map as one `.npy` file per array; file names start with `prefix`."""
    for name, array in id_map.to_arrays().items():
        write_array(directory / f"{prefix}{name}.npy", array)


def load_id_map(directory: Path, prefix: str) -> IdMap:
    """Read an id map that `save_id_map` wrote.

    Raises:
        DataError: the files are missing or incomplete.
        InvalidReleaseError: a file is not an array.
    """
    names = [name for name in ("integers", "bytes", "offsets") if (directory / f"{prefix}{name}.npy").exists()]
    return build_id_map_from_arrays({name: map_array(directory / f"{prefix}{name}.npy") for name in names})
