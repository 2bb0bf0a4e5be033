"""Worker processes that serve one store: the files they share, and the metrics of all of them."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

# A worker that has not published metrics for so long is taken for dead; loading a release delays it, too.
_STALE_SECONDS = 120.0


class WorkerPeers:
    """A worker's access to the directory that all workers of a service share.

    Args:
        directory: of this service only.
        worker_id: number of this worker.
    """

    def __init__(self, directory: Path, worker_id: int) -> None:
        self._directory, self._worker_id = directory, worker_id

    @property
    def write_lock_path(self) -> Path:
        """Lock file that a worker holds while it writes; see `LiveIndex.open`."""
        return self._directory / "write.lock"

    def publish_metrics(self, metrics: bytes) -> None:
        """Store this worker's metrics for the other workers to read."""
        temporary = self._directory / f"{self._worker_id}.tmp"
        temporary.write_bytes(metrics)
        temporary.replace(self._directory / f"{self._worker_id}.metrics")

    def merge_metrics(self, metrics: bytes) -> bytes:
        """Merge this worker's metrics with what the others published last; each sample gets the label `worker`."""
        metrics_by_worker = {self._worker_id: metrics}
        for file in self._directory.glob("*.metrics"):
            if file.stem != str(self._worker_id) and time.time() - file.stat().st_mtime < _STALE_SECONDS:
                metrics_by_worker[int(file.stem)] = file.read_bytes()
        return generate_latest(_MergedMetrics(metrics_by_worker))


class _MergedMetrics:
    """Collector of several workers' metrics in text format.

    Samples of one name must be adjacent in that format, so families are merged by name.
    """

    def __init__(self, metrics_by_worker: Mapping[int, bytes]) -> None:
        self._metrics_by_worker = metrics_by_worker

    def collect(self) -> Iterator[Metric]:
        """Yield the merged families."""
        merged: dict[str, Metric] = {}
        for worker_id, text in sorted(self._metrics_by_worker.items()):
            for family in text_string_to_metric_families(text.decode()):
                target = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    target.add_sample(sample.name, sample.labels | {"worker": str(worker_id)}, sample.value)
        yield from merged.values()
