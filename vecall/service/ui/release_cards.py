"""Releases for display: their facts, and their metrics beside those of baselines and of the parent release."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC

from pydantic import JsonValue

from vecall.release.manifest import Manifest

_BASELINES = ("popularity", "ease", "cooccurrence", "dssm")
_SPLITS = ("seen_excluded", "seen_included")
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")
_EQUAL_BELOW = 0.0005  # half of the last digit that is shown

Values = Mapping[str, float]


@dataclass(frozen=True)
class ReferenceValue:
    """A metric of a baseline or of the parent release.

    Attributes:
        value: its value.
        difference: value of this release minus that value.
    """

    value: float
    difference: float

    @property
    def comparison(self) -> str:
        """Whether this release is "better", "worse" or "equal"; more is better in all metrics."""
        if abs(self.difference) < _EQUAL_BELOW:
            return "equal"
        return "better" if self.difference > 0 else "worse"


@dataclass(frozen=True)
class MetricRow:
    """A metric of a release, and of each reference; None where a reference lacks it."""

    name: str
    value: float
    references: tuple[ReferenceValue | None, ...]


@dataclass(frozen=True)
class MetricTable:
    """Metrics of a release beside those of its references.

    Attributes:
        split: key of the metrics: "seen_excluded", or "seen_included" if every held-out item is a repeat.
        references: "parent" and names of baselines.
        rows: a row per metric.
    """

    split: str
    references: tuple[str, ...]
    rows: tuple[MetricRow, ...]


@dataclass(frozen=True)
class ReleaseCard:
    """A release for display.

    Attributes:
        manifest: its manifest.
        created: date and time in UTC, as text.
        size: of all files, as text with a unit.
        ann_recall: (k, recall) measured at publishing; None for an exact index.
        metrics: of the model; None if it was published without.
    """

    manifest: Manifest
    created: str
    size: str
    ann_recall: tuple[int, float] | None
    metrics: MetricTable | None


def build_release_cards(manifests: Sequence[Manifest]) -> list[ReleaseCard]:
    """Cards of releases, in this order; parents are looked up among them."""
    by_name = {manifest.name: manifest for manifest in manifests}
    return [_build_release_card(manifest, by_name.get(manifest.parent or "")) for manifest in manifests]


def _build_release_card(manifest: Manifest, parent: Manifest | None) -> ReleaseCard:
    k, recall = ((manifest.ann or {}).get(name) for name in ("k", "recall"))
    has_ann = isinstance(k, int) and isinstance(recall, float)
    return ReleaseCard(
        manifest=manifest,
        created=manifest.created.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        size=format_bytes(manifest.total_bytes),
        ann_recall=(k, recall) if has_ann else None,  # type: ignore[arg-type]
        metrics=_build_metric_table(manifest, parent),
    )


def _build_metric_table(manifest: Manifest, parent: Manifest | None) -> MetricTable | None:
    for split in _SPLITS:
        values = _select_values(manifest, "model", split)
        if values:
            candidates = {} if parent is None else {"parent": _select_values(parent, "model", split)}
            candidates |= {name: _select_values(manifest, name, split) for name in _BASELINES}
            references = {name: reference for name, reference in candidates.items() if reference.keys() & values.keys()}
            rows = tuple(
                MetricRow(name, value, tuple(_compare(value, reference.get(name)) for reference in references.values()))
                for name, value in values.items()
            )
            return MetricTable(split, tuple(references), rows)
    return None


def _select_values(manifest: Manifest, model: str, split: str) -> Values:
    """The finite metrics of a model in the manifest, whose `metrics` may hold any JSON."""
    metrics: JsonValue = manifest.metrics.get(model)
    values = metrics.get(split) if isinstance(metrics, dict) else None
    if not isinstance(values, dict):
        return {}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _compare(value: float, reference: float | None) -> ReferenceValue | None:
    return None if reference is None else ReferenceValue(reference, value - reference)


def format_bytes(count: int) -> str:
    """A number of bytes with a decimal unit, such as "12.3 MB"."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_BYTE_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_BYTE_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_BYTE_UNITS[unit]}"
