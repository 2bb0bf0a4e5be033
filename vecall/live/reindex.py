"""Moving a release to another engine: the same vectors in another index, as a new release."""

from pathlib import Path

from vecall.errors import ConfigError
from vecall.index.engines import ENGINES
from vecall.index.index_info import IndexInfo
from vecall.index.settings import IndexSettings
from vecall.live.snapshot import Snapshot
from vecall.live.snapshot_release import LiveUpserts, write_snapshot
from vecall.release.release import open_release
from vecall.release.store import Store

_AUTO = "auto"
ENGINE_NAMES = (_AUTO, *ENGINES)


def reindex(
    store: str | Path, *, engine: str, name: str | None = None, activate: bool = True, release: str | None = None
) -> str:
    """Write a release of the vectors of another, bit by bit, with an index of another engine, tuned anew.

    Towers, users, attributes, channels and ranker are those of the base. Live changes stay in the journal: the new
    release knows as many of them as the base, and the others apply to it as they do to the base. A server may keep
    writing.

    Args:
        store: directory of the store.
        engine: that of the new release; "auto" chooses as publishing does.
        name: name of the new release; None for a name made of the current time.
        activate: make the new release the current one; unless `release` is given, only if the base still is that.
        release: name of the base release; None for the current one.

    Returns:
        Name of the new release.

    Raises:
        ConfigError: there is no such engine, or it lacks its package or settings.
        StoreError: there is no such store or release, the name is taken, or the base was pruned meanwhile.
        InvalidReleaseError: the base release has a corrupted, missing or unexpected file.
        EngineUnavailableError: the server of the new engine does not answer, or that of the base.
    """
    _check_engine(engine)
    opened_store = Store.open(Path(store))
    base = open_release(opened_store, release)
    settings = _replace_engine(base.manifest.index, engine)
    with opened_store.create_draft(name) as draft:
        metadata = write_snapshot(
            opened_store, draft, Snapshot.from_release(base), LiveUpserts(), base.manifest.journal_seq, settings
        )
        replaced = base.name if release is None else None  # what was published meanwhile stays current
        return draft.commit(metadata, activate=activate, activate_only_if_current=replaced, base=base.name)


def _check_engine(engine: str) -> None:
    if engine not in ENGINE_NAMES:
        raise ConfigError(f"engine: there is none of the name {engine!r}; choose {', '.join(ENGINE_NAMES)}")


def _replace_engine(info: IndexInfo, engine: str) -> IndexSettings:
    """Return the settings that an index was built with, for another engine: without the keys of others."""
    engine_keys = {key for other in ENGINES.values() for key in other.settings_keys}
    own_keys = () if engine == _AUTO else ENGINES[engine].settings_keys
    kept = {key: value for key, value in info.settings.items() if key not in engine_keys or key in own_keys}
    return IndexSettings.model_validate(kept | {"engine": engine})
