"""Recalls and live changes while the server of the index is killed and started again: all answers must be right."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.milvus.pool import MilvusPool
from vecall import Query, open_recaller
from vecall.errors import EngineUnavailableError
from vecall.index.ann_recall import recall_from_scores
from vecall.recall.recaller import Recaller
from vecall.recall.search import compute_ground_truth_rows

_K = 100
_READERS = 2
_QUERIES = 2_000
_WRITE_SECONDS = 0.1  # between two changes
_DOWN_SECONDS = 5.0  # between a kill and the start
_RETRY_SECONDS = 0.05
_EXACT_SHARE = 0.01  # of the answers that are compared with an exact scan
_SCORE_TOLERANCE = 1e-5


@dataclass
class _Changes:
    """What was acknowledged; guarded by the lock.

    Attributes:
        added: ids of new items.
        deleted: ids that are gone for good.
    """

    added: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


def run_soak(pool: MilvusPool, *, seconds: float, kill_seconds: float) -> dict[str, Any]:
    """Recall in threads and change items in another, with the server killed every `kill_seconds`.

    Returns:
        Number of recalls, of those that found the server away, of wrong answers by kind, and of acknowledged changes
        that are lost; the mean ANN recall of a sample; the longest time from a start of the server to an answer.
    """
    soak = _Soak(pool)
    with open_recaller(pool.store, writable=True) as recaller:
        soak.run(recaller, seconds, kill_seconds)
    with open_recaller(pool.store) as recaller:  # as after a restart of the process
        lost = soak.count_lost_changes(recaller)
    exact = soak.sampled_recalls
    return {
        "seconds": seconds,
        "kills": soak.kills,
        "recalls": soak.counts["recalls"],
        "unavailable": soak.counts["unavailable"],
        "wrong": {name: soak.counts[name] for name in ("length", "duplicate", "deleted", "score", "order", "upsert")},
        "changes": len(soak.changes.added) + len(soak.changes.deleted),
        "lost_changes": lost,
        "sampled": len(exact),
        "ann_recall": round(float(np.mean(exact)), 4) if exact else None,
        "longest_recovery_seconds": round(max(soak.recovery_seconds, default=0.0), 1),
        "failures": soak.failures[:5],
    }


class _Soak:
    """State of a soak; counters are incremented under a lock."""

    def __init__(self, pool: MilvusPool) -> None:
        self._pool, self.changes, self.counts = pool, _Changes(), Counter[str]()
        self.sampled_recalls: list[float] = []
        self.recovery_seconds: list[float] = []
        self.failures: list[str] = []
        self.kills = 0
        self._started_at: float | None = None
        self._stop_event = threading.Event()

    def run(self, recaller: Recaller, seconds: float, kill_seconds: float) -> None:
        """Run readers and the writer for some time, killing the server in between."""
        threads = [threading.Thread(target=self._guard, args=(self._read, recaller, seed)) for seed in range(_READERS)]
        threads.append(threading.Thread(target=self._guard, args=(self._write, recaller, _READERS)))
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while end - time.monotonic() > kill_seconds + _DOWN_SECONDS:
            if self._stop_event.wait(kill_seconds):
                break
            self._pool.server.kill()
            self.kills += 1
            time.sleep(_DOWN_SECONDS)
            self._pool.server.start(wait=False)
            self._started_at = time.monotonic()
        self._stop_event.wait(max(0.0, end - time.monotonic()))
        self._stop_event.set()
        for thread in threads:
            thread.join()

    def count_lost_changes(self, recaller: Recaller) -> int:
        """Acknowledged changes that a newly opened store lacks."""
        snapshot = recaller.live_index.snapshot
        added = snapshot.is_live(snapshot.to_rows(list(self.changes.added)))
        deleted = snapshot.is_live(snapshot.to_rows(list(self.changes.deleted)))
        return int(np.count_nonzero(~added) + np.count_nonzero(deleted))

    def _guard(self, loop: Any, recaller: Recaller, seed: int) -> None:
        try:
            loop(recaller, np.random.default_rng(seed))
        except Exception as error:  # noqa: BLE001 - a thread's end must be seen
            self._fail("crash", repr(error))
            self._stop_event.set()

    def _read(self, recaller: Recaller, rng: np.random.Generator) -> None:
        queries = self._pool.clusters.make_queries(_QUERIES, stream=f"soak {rng.integers(1 << 30)}")
        while not self._stop_event.is_set():
            vector = queries[rng.integers(len(queries))]
            with self.changes.lock:
                deleted = set(self.changes.deleted)
            try:
                trace = recaller.recall_with_trace(Query(vector=vector, k=_K))
            except EngineUnavailableError:
                self._count("unavailable")
                time.sleep(_RETRY_SECONDS)
                continue
            self._count("recalls")
            self._note_recovery()
            answer, snapshot = trace.answer, trace.snapshot
            rows = snapshot.to_rows(answer.ids)
            scores = snapshot.get_vectors(rows) @ vector
            self._check("length", len(answer.ids) == _K, answer.ids)
            self._check("duplicate", len(set(answer.ids)) == len(answer.ids), answer.ids)
            self._check("deleted", deleted.isdisjoint(answer.ids), answer.ids)
            self._check("score", np.allclose(scores, answer.scores, atol=_SCORE_TOLERANCE), answer.ids)
            self._check("order", bool((np.diff(answer.scores) <= 0).all()), answer.ids)
            if rng.random() < _EXACT_SHARE:
                query, excluded = trace.resolved_query.query_matrix, trace.resolved_query.excluded_rows
                truth = compute_ground_truth_rows(snapshot, query, excluded, trace.filter_mask, _K)
                recall = recall_from_scores(scores, snapshot.get_vectors(truth) @ vector)
                with self.changes.lock:
                    self.sampled_recalls.append(recall)

    def _write(self, recaller: Recaller, rng: np.random.Generator) -> None:
        base_size = self._pool.clusters.n_items
        vectors = self._pool.clusters.make_queries(_QUERIES * 10, stream="soak changes")
        for number, vector in enumerate(vectors):
            if self._stop_event.wait(_WRITE_SECONDS):
                return
            if number % 3 == 2:
                item_id = int(rng.integers(base_size))
                recaller.delete([item_id])
                with self.changes.lock:
                    self.changes.deleted.add(item_id)
                continue
            item_id = base_size + number
            recaller.upsert([{"id": item_id, "vector": vector, "fields": {}}])
            with self.changes.lock:
                self.changes.added.add(item_id)
            try:
                answer = recaller.recall(Query(vector=vector, k=1))
            except EngineUnavailableError:
                continue
            self._check("upsert", answer.ids == [item_id], answer.ids)  # vectors have length 1: nothing is nearer

    def _note_recovery(self) -> None:
        """Record the first answer after a start of the server."""
        with self.changes.lock:
            if self._started_at is not None:
                self.recovery_seconds.append(time.monotonic() - self._started_at)
                self._started_at = None

    def _count(self, name: str) -> None:
        with self.changes.lock:
            self.counts[name] += 1

    def _check(self, name: str, is_right: bool, ids: object) -> None:
        if not is_right:
            self._count(name)
            self._fail(name, f"{ids!r:.200}")

    def _fail(self, name: str, text: str) -> None:
        with self.changes.lock:
            self.failures.append(f"{name}: {text}")
