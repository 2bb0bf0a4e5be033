"""Deleting what an engine keeps outside of a release that is gone, or that was given up."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vecall.errors import VecallError
from vecall.index.engine import ReleaseDraft
from vecall.index.engines import ENGINES
from vecall.index.index_info import IndexInfo

logger = logging.getLogger(__name__)


def drop_index(info: IndexInfo, store_dir: Path) -> None:
    """Delete what the engine of a release keeps elsewhere; a failure is logged, since the release is gone already.

    Args:
        info: the release's entry in its manifest.
        store_dir: directory of the store that the release was in.
    """
    engine = ENGINES.get(info.engine)
    if engine is None:
        logger.warning("engine %r is not known here: what it keeps outside of the store stays", info.engine)
    elif engine.drop is not None:
        try:
            engine.drop(info, store_dir)
        except VecallError as error:
            logger.warning("what engine %s keeps outside of %s could not be deleted: %s", engine.name, store_dir, error)


@contextmanager
def drop_on_error(info: IndexInfo, draft: ReleaseDraft | None) -> Iterator[None]:
    """Drop the index of a draft if an exception leaves the context. See `drop_index`."""
    try:
        yield
    except BaseException:
        if draft is not None:
            drop_index(info, draft.store_dir)
        raise
