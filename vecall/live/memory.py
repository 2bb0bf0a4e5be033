"""Check that a second release fits into memory beside the one that is served."""

from vecall.errors import StoreError
from vecall.index.engines import ENGINES
from vecall.release.item_features import FEATURES_FILE
from vecall.release.manifest import Manifest
from vecall.runtime.memory import get_free_memory_bytes

_HEADROOM_FACTOR = 1.1  # times the size of a release's files: hash tables of ids, buffers of the loaders
_MAPPED_SUFFIX = ".npy"  # these files are mapped: the kernel may drop their pages when memory is short
# Mapped too, but hash tables of about their size are built of them.
_STRING_ID_FILES = frozenset({"ids.bytes.npy", "ids.offsets.npy", "users.bytes.npy", "users.offsets.npy"})


def check_memory(manifest: Manifest, process_count: int = 1) -> None:
    """Check that there is enough free memory to open a release.

    Files that are mapped need none, but for the vectors of an index: processes share these, and searches of pages that
    the kernel has dropped would wait for the disk.

    Args:
        manifest: the release's manifest.
        process_count: number of processes that open the release at the same time.

    Raises:
        StoreError: the release needs more memory than is free. Never raised where the free memory is unknown.
    """
    shared_bytes = _count_mapped_vector_bytes(manifest)
    own_bytes = sum(digest.bytes for name, digest in manifest.files.items() if not _is_mapped(name)) - shared_bytes
    needed, free = round(_HEADROOM_FACTOR * own_bytes) * process_count + shared_bytes, get_free_memory_bytes()
    if free is not None and needed > free:
        raise StoreError(
            f"release {manifest.name!r} needs about {needed:,} bytes of memory beside the served release, and "
            f"{free:,} are free: give the process more memory, or stop it, activate the release and start it again"
        )


def _count_mapped_vector_bytes(manifest: Manifest) -> int:
    """Return the bytes of `index.faiss` that are the vectors, where the engine maps them."""
    engine = ENGINES.get(manifest.index.engine)  # of another version: refused when the release is opened
    return 2 * manifest.items * manifest.dim if engine is not None and engine.maps_vectors else 0


def _is_mapped(file_name: str) -> bool:
    is_read_by_rows = file_name == FEATURES_FILE  # by compactions and publications, few rows at a time
    return is_read_by_rows or (file_name.endswith(_MAPPED_SUFFIX) and file_name not in _STRING_ID_FILES)
