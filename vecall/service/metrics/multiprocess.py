"""Processes that serve one store side by side: what they share, and all their metrics from whichever is asked."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

_STALE_SECONDS = (
    120.0  # seconds after which a process that told nothing is gone; while it loads a release it tells nothing
)


class WorkerPeers:
    """One of the processes, as it is known to the others.

    Args:
        directory: of these processes alone.
        worker_id: of this process among them.
    """

    def __init__(self, directory: Path, worker_id: int) -> None:
        self._directory, self._worker_id = directory, worker_id

    @property
    def write_lock_path(self) -> Path:
        """The lock file of who writes; see `Source.open`."""
        return self._directory / "turns"

    def publish_metrics(self, metrics: bytes) -> None:
        """Let the others know this process's metrics."""
        fresh = self._directory / f"{self._worker_id}.fresh"
        fresh.write_bytes(metrics)
        fresh.replace(self._directory / f"{self._worker_id}.metrics")

    def merge_metrics(self, metrics: bytes) -> bytes:
        """This process's metrics and what the others told last, each with the label `process`."""
        told = {self._worker_id: metrics}
        for file in self._directory.glob("*.metrics"):
            if file.stem != str(self._worker_id) and time.time() - file.stat().st_mtime < _STALE_SECONDS:
                told[int(file.stem)] = file.read_bytes()
        return generate_latest(_MergedMetrics(told))  # all that it asks for is `collect`


class _MergedMetrics:
    """Metrics of several processes, those of one name together, as the format wants it."""

    def __init__(self, metrics_by_worker: Mapping[int, bytes]) -> None:
        self._metrics_by_worker = metrics_by_worker

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        families: dict[str, Metric] = {}
        for number, text in sorted(self._metrics_by_worker.items()):
            for family in text_string_to_metric_families(text.decode()):
                kept = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    kept.add_sample(sample.name, sample.labels | {"process": str(number)}, sample.value)
        yield from families.values()
