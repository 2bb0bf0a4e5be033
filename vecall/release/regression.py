"""Whether a release that is about to be published has lost much of what is served now."""

from collections.abc import Mapping

from pydantic import JsonValue

from vecall.errors import StoreError
from vecall.release.manifest import Manifest, read_manifest
from vecall.release.store import Store

_MIN_SHARE = 0.5  # of the current release's items, and of its model's recall


def find_regression(store: Store, item_count: int, metrics: Mapping[str, JsonValue]) -> str | None:
    """What a new release has lost against the current one, in a sentence; None where it is no less than half as good.

    Args:
        store: where it will be published.
        item_count: N of the new release.
        metrics: of its model, as a run's summary has them.
    """
    try:
        current = store.find_current()
        if current is None:
            return None
        manifest, _ = read_manifest(store.get_release_dir(current.release))
    except StoreError:  # nothing that could be compared with
        return None
    if item_count < _MIN_SHARE * manifest.items:
        return f"it has {item_count:,} items, and {manifest.name!r}, which is current, has {manifest.items:,}"
    name, now, before = _match_recall_metrics(metrics, manifest)
    if now is not None and before is not None and now < _MIN_SHARE * before:
        return f"its model's {name} is {now:.3f}, and that of {manifest.name!r}, which is current, is {before:.3f}"
    return None


def _match_recall_metrics(
    metrics: Mapping[str, JsonValue], manifest: Manifest
) -> tuple[str, float | None, float | None]:
    """The same recall@k of both models, the one nearest to 100."""
    now, before = _parse_seen_excluded(metrics), _parse_seen_excluded(_to_mapping(manifest.metrics.get("model")))
    shared = [name for name in now if name in before and name.startswith("recall@")]
    if not shared:
        return "", None, None
    name = min(shared, key=lambda one: abs(int(one.removeprefix("recall@")) - 100))
    return name, now[name], before[name]


def _parse_seen_excluded(metrics: Mapping[str, JsonValue]) -> dict[str, float]:
    known = _to_mapping(metrics.get("seen_excluded"))
    return {name: float(value) for name, value in known.items() if isinstance(value, (int, float))}


def _to_mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, dict) else {}
