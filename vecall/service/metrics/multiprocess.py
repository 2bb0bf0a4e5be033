"""Processes that serve one store side by side: what they share, and all their metrics from whichever is asked."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

_STALE = 120.0  # seconds after which a process that told nothing is gone; while it loads a release it tells nothing


class Siblings:
    """One of the processes, as it is known to the others.

    Args:
        folder: of these processes alone.
        number: of this process among them.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number = folder, number

    @property
    def turns(self) -> Path:
        """The lock file of who writes; see `Source.open`."""
        return self._folder / "turns"

    def tell(self, metrics: bytes) -> None:
        """Let the others know this process's metrics."""
        fresh = self._folder / f"{self._number}.fresh"
        fresh.write_bytes(metrics)
        fresh.replace(self._folder / f"{self._number}.metrics")

    def together(self, metrics: bytes) -> bytes:
        """This process's metrics and what the others told last, each with the label `process`."""
        told = {self._number: metrics}
        for file in self._folder.glob("*.metrics"):
            if file.stem != str(self._number) and time.time() - file.stat().st_mtime < _STALE:
                told[int(file.stem)] = file.read_bytes()
        return generate_latest(_Labelled(told))  # all that it asks for is `collect`


class _Labelled:
    """Metrics of several processes, those of one name together, as the format wants it."""

    def __init__(self, told: Mapping[int, bytes]) -> None:
        self._told = told

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        families: dict[str, Metric] = {}
        for number, text in sorted(self._told.items()):
            for family in text_string_to_metric_families(text.decode()):
                kept = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    kept.add_sample(sample.name, sample.labels | {"process": str(number)}, sample.value)
        yield from families.values()
