"""Check that a release to be published has not lost most of what the current release offers."""

import logging
from collections.abc import Mapping

from pydantic import JsonValue

from vecall.errors import StoreError
from vecall.release.manifest import Manifest
from vecall.release.store import Store

logger = logging.getLogger(__name__)

_MIN_SHARE = 0.5  # of the current release's item count, and of its model's recall
_PREFERRED_K = 100  # recall is compared at the k nearest to this


def find_regression(store: Store, item_count: int, metrics: Mapping[str, JsonValue]) -> str | None:
    """Describe what a new release has lost against the current release.

    Args:
        store: where the new release will be published.
        item_count: N of the new release.
        metrics: of its model, as in a run's summary: `{"seen_excluded": {"recall@10": ...}, ...}`.

    Returns:
        A sentence if the item count or the recall is less than half of the current release's; None otherwise, and
        where no current release can be read.
    """
    manifest = store.find_current_manifest()
    if manifest is None:
        return None
    if item_count < _MIN_SHARE * manifest.items:
        return f"it has {item_count:,} items; the current release {manifest.name!r} has {manifest.items:,}"
    name, new_recall, current_recall = _match_recall_metrics(metrics, manifest)
    if new_recall is not None and current_recall is not None and new_recall < _MIN_SHARE * current_recall:
        return (
            f"its model's {name} is {new_recall:.3f}; that of the current release {manifest.name!r} is "
            f"{current_recall:.3f}"
        )
    return None


def refuse_lost_items(store: Store, item_count: int, *, activate: bool, allow_worse: bool) -> None:
    """Refuse a release of vectors or towers of one's own that has lost most of the current release's items.

    Where that is allowed, or the release does not become the current one, it is a warning.

    Args:
        store: where the new release will be published.
        item_count: N of the new release.
        activate: Whether it becomes the current release.
        allow_worse: Whether the caller allows it.

    Raises:
        StoreError: The new release has less than half of the current release's items.
    """
    regression = find_regression(store, item_count, {})
    if regression is None:
        return
    if activate and not allow_worse:
        raise StoreError(
            f"{store.path}: the new release is not published: {regression}. Check the items; if this is intended, "
            "publish with allow_worse=True, or with activate=False to inspect the release first"
        )
    logger.warning("%s: the new release has lost items: %s", store.path, regression)


def _match_recall_metrics(
    metrics: Mapping[str, JsonValue], manifest: Manifest
) -> tuple[str, float | None, float | None]:
    """Find the recall@k that both models have, with k nearest to 100: its name, new value and current value."""
    new, current = _parse_seen_excluded(metrics), _parse_seen_excluded(_to_mapping(manifest.metrics.get("model")))
    shared_names = [name for name in new if name in current and name.startswith("recall@")]
    if not shared_names:
        return "", None, None
    name = min(shared_names, key=lambda recall_name: abs(int(recall_name.removeprefix("recall@")) - _PREFERRED_K))
    return name, new[name], current[name]


def _parse_seen_excluded(metrics: Mapping[str, JsonValue]) -> dict[str, float]:
    values = _to_mapping(metrics.get("seen_excluded"))
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}


def _to_mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, dict) else {}
