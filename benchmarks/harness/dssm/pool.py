"""The founding design's five steps on one pool of a planted market: train, index, recall, ANN recall, save and load."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import faiss
import numpy as np
from harness.environment import describe_environment, read_load_average
from numpy.typing import NDArray
from harness.torch_threads import single_torch_thread
from harness.dssm.synthetic_market import FEATURE_COLUMN, ITEM_FEATURE_DIM, USER_FEATURE_DIM, SyntheticMarket

from vecall import progress
from vecall.config import Config, parse_config
from vecall.data.request_features import to_feature_frame
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import Index, SearchParams, Vectors
from vecall.index.builder import IndexSpec
from vecall.index.settings import IndexSettings
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import CONFIG_FILE, Run
from vecall.release.encoder import OnnxEncoder
from vecall.release.release import Release, open_release
from vecall.release.store import Store

K, EF, M, EF_CONSTRUCTION = 100, 50, 16, 200  # the founding design's
MAX_TRAINING_ITEMS = 10_000  # items at most; a larger pool is served by the towers of this one
EPOCHS = 3
EF_SWEEP = (100, 120, 140, 160, 200, 240, 280, 320, 400, 480, 560, 640, 800, 1000, 1300, 1600, 2000, 3000, 4000)
SUFFICIENT_RECALL = 0.99  # ANN recall at which the ladder is climbed no further
RECALL_TARGETS = (0.95, 0.98)
_COMPARED_USERS = 200  # users whose planted taste is compared


@dataclass(frozen=True)
class PoolBenchmark:
    """One market, its trained run, and strangers who ask.

    Attributes:
        work_dir: a folder for tables, runs and stores.
        market: the planted world.
        n_training_users: users to train on.
        query_users: [U, 50] features of users whom training never saw.
    """

    work_dir: Path
    market: SyntheticMarket
    n_training_users: int
    query_users: NDArray[np.float32]

    def train(self, n_items: int) -> dict[str, Any]:
        """Step 1: the founding preset on (user, item, label)."""
        tables = {name: self.work_dir / f"{name}.parquet" for name in ("interactions", "items", "users")}
        self.work_dir.mkdir(parents=True)
        self.market.write_items(tables["items"], n_items)
        self.market.write_users(tables["users"], self.n_training_users)
        taken = self.market.write_interactions(tables["interactions"], self.n_training_users, n_items)
        with single_torch_thread():
            run = fit(_make_config(tables), self.work_dir / "run")
        return {
            "items": n_items,
            "users": self.n_training_users,
            "taken_of_shown": round(taken, 4),
            "epochs": run.summary.epochs,
            "seconds": run.summary.seconds,
            "loss": [round(line["loss"], 4) for line in run.read_epoch_metrics()],
        }

    def measure(self, n_items: int, *, rounds: int) -> dict[str, Any]:
        """Steps 2 to 5 on a pool of so many items."""
        begun_with = describe_environment()  # others may commit while it runs
        store = self.work_dir / f"store-{n_items}"
        made, built, seconds = self._publish(n_items, store)
        expected = _search_all(built, OnnxEncoder(store / "releases" / made, threads=1), self.query_users)
        del built
        served, _ = self.measure_serving(n_items, rounds=rounds)
        release = open_release(Store.open(store))
        vectors = _encode_users(_require_encoder(release), self.query_users)
        truth = release.index.search_exact(vectors, K).rows
        return {
            "facts": begun_with,
            "items": n_items,
            "build": seconds
            | {"threads": faiss.omp_get_max_threads(), "items_a_second": round(n_items / seconds["graph_seconds"])},
            "planted": self._measure_taste(truth, n_items) | _measure_cosines(release.index, vectors),
            "ann": _measure_ann_recall(release.index, vectors, truth),
            "recall": served,
            "size": _measure_sizes(store / "releases" / made, n_items, served),
            "identical": _count_identical(
                expected, _search_all(release.index, _require_encoder(release), self.query_users)
            ),
        }

    def _publish(self, n_items: int, store: Path) -> tuple[str, Index, dict[str, float]]:
        """Step 2: the item tower, exported, encodes the pool; the graph is built over it, and all of it is saved."""
        items = self.work_dir / f"items-{n_items}.parquet"
        self.market.write_items(items, n_items)
        run = self.work_dir / f"run-{n_items}"
        shutil.copytree(self.work_dir / "run", run)
        config = Run.open(run).config
        larger = config.model_copy(update={"data": config.data.model_copy(update={"items": items})})
        (run / CONFIG_FILE).write_text(json.dumps(larger.as_json()), encoding="utf-8")
        clock, began = _PublishTimer(), time.perf_counter()
        with clock.record_builds(), progress.report_to(clock):
            made = publish(run, store)
        seconds = {"publish_seconds": time.perf_counter() - began, **clock.seconds}
        return made, clock.built_indexes[0], {name: round(value, 2) for name, value in seconds.items()}

    def measure_serving(self, n_items: int, *, rounds: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Steps 3 and 5: a fresh process loads the store and answers; the round with the least median counts."""
        store = self.work_dir / f"store-{n_items}"
        users, answers = self.work_dir / "strangers.npy", self.work_dir / "answers.npz"
        np.save(users, self.query_users, allow_pickle=False)
        script = str(Path(__file__).with_name("served.py"))
        command = [sys.executable, script, str(store), str(users), str(answers), "--feature", FEATURE_COLUMN]
        done = subprocess.run([*command, "-k", str(K), "--rounds", str(rounds)], stdout=subprocess.PIPE, check=True)
        measured = json.loads(done.stdout)
        quietest = min(measured["rounds"], key=lambda one: one["p50_ms"])
        with np.load(answers, allow_pickle=False) as arrays:
            return {"k": K, "users": len(self.query_users), **quietest, **measured}, dict(arrays)

    def _measure_taste(self, top_rows: NDArray[np.int64], n_items: int) -> dict[str, float]:
        """Whether the towers learned anything: the planted chance that what they put first is taken."""
        chances = list(islice(self.market.iterate_probabilities(len(self.query_users), n_items), _COMPARED_USERS))
        named = {
            "taken_of_exact_top_100": [one[rows].mean() for one, rows in zip(chances, top_rows, strict=False)],
            "taken_of_all": [one.mean() for one in chances],
            "taken_of_best_100": [np.partition(one, -K)[-K:].mean() for one in chances],
        }
        return {name: round(float(np.mean(values)), 4) for name, values in named.items()}


class _PublishTimer:
    """Seconds of what `publish` does, and the very index that it built, before it was saved."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.built_indexes: list[Index] = []
        self._running: list[tuple[str, float]] = []

    def start_task(self, task: str, total: int) -> progress.ProgressCallback:
        """A task of `publish` begins."""
        del total
        self._running.append((f"{task.replace(' ', '_')}_seconds", time.perf_counter()))
        return _noop

    def stop_task(self) -> None:
        """It ends."""
        name, began = self._running.pop()
        self.seconds[name] = time.perf_counter() - began

    @contextmanager
    def record_builds(self) -> Iterator[None]:
        """Building is not announced, so its one door is watched."""
        build = IndexSpec.build

        def timed(structure: IndexSpec, vectors: Vectors, settings: IndexSettings) -> Index:
            began = time.perf_counter()
            self.built_indexes.append(build(structure, vectors, settings))
            self.seconds["graph_seconds"] = time.perf_counter() - began
            return self.built_indexes[-1]

        with patch.object(IndexSpec, "build", timed):
            yield


def _noop(steps: int = 1, note: str = "") -> None:
    del steps, note


def _make_config(tables: dict[str, Path]) -> Config:
    def declare_profile(size: int) -> dict[str, Any]:
        return {FEATURE_COLUMN: {"kind": "vector", "size": size}}

    return parse_config(
        {
            "data": {name: str(path) for name, path in tables.items()},
            "schema": {
                "interactions": {"user": "user", "item": "item", "label": "label", "positive": 1.0},
                "items": {"id": "item", "id_type": "integer", "features": declare_profile(ITEM_FEATURE_DIM)},
                "users": {"id": "user", "id_type": "integer", "features": declare_profile(USER_FEATURE_DIM)},
            },
            "model": {"preset": "founding"},
            # The labels hold their own negatives; nothing is drawn beside them.
            "training": {"epochs": EPOCHS, "negatives": {"uniform": 0}},
            "index": {"engine": "hnsw", "M": M, "ef_construction": EF_CONSTRUCTION, "ef": EF},
        }
    )


def _require_encoder(release: Release) -> OnnxEncoder:
    if release.encoder is None:
        raise SystemExit(f"release {release.name} has no towers")
    return release.encoder


def _encode_users(encoder: OnnxEncoder, users: NDArray[np.float32]) -> Vectors:
    """[U, D], one by one as a request does: a batch may round otherwise."""
    features = encoder.state.users.features
    none, nothing = np.empty((1, 0, encoder.dim), dtype=np.float32), np.zeros(1, dtype=np.int64)
    rows = (to_feature_frame([{FEATURE_COLUMN: one}], features) for one in users.tolist())
    return np.concatenate([encoder.encode_users(row, none, nothing) for row in rows])


def _measure_cosines(index: Index, vectors: Vectors) -> dict[str, float]:
    """How the scores lie: where all are about alike, the order of a user's items hangs on the last digits."""
    some = np.linspace(0, index.size - 1, min(index.size, 10_000)).astype(np.int64)
    cosines = vectors[:_COMPARED_USERS] @ index.get_vectors(some).T
    spread = cosines.std(axis=1).mean()
    return {"cosine_mean": round(float(cosines.mean()), 4), "cosine_sd_within_a_user": round(float(spread), 4)}


def _search_all(index: Index, encoder: OnnxEncoder, users: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows and scores [U, k] of the index as it was built, before it was saved."""
    hits = [index.search(vector[None], K) for vector in _encode_users(encoder, users)]
    return np.concatenate([one.rows for one in hits]), np.concatenate([one.scores for one in hits])


def _count_identical(
    expected: tuple[NDArray[Any], NDArray[Any]], loaded: tuple[NDArray[Any], NDArray[Any]]
) -> dict[str, int]:
    """Users whose answer by the loaded index is, to the bit, the one before saving."""
    same = np.all([(one == other).all(axis=1) for one, other in zip(expected, loaded, strict=True)], axis=0)
    return {"users": len(same), "identical": int(same.sum())}


def _measure_ann_recall(index: Index, vectors: Vectors, truth: NDArray[np.int64]) -> dict[str, Any]:
    """Step 4: ANN recall, up a ladder of efforts, one query at a time on one thread."""
    steps: list[dict[str, float]] = []
    for ef in EF_SWEEP:
        steps.append(_measure_ef(index, vectors, truth, ef))
        if steps[-1]["ann_recall"] >= SUFFICIENT_RECALL or ef >= index.size:
            break
    reached = {
        f"{target:.2f}": next((one["ef"] for one in steps if one["ann_recall"] >= target), None)
        for target in RECALL_TARGETS
    }
    return {
        "k": K,
        "queries": len(vectors),
        "asked_ef": EF,
        "searched_ef": max(EF, K),  # a graph keeps at least k places in sight
        "at_asked_ef": _measure_ef(index, vectors, truth, EF),
        "at_smaller_k": {str(k): _measure_ef(index, vectors, truth[:, :k], EF) for k in (10, 50)},
        "ladder": steps,
        "least_ef_for": reached,
        "load_average": read_load_average(),
    }


def _measure_ef(index: Index, vectors: Vectors, truth: NDArray[np.int64], ef: int) -> dict[str, float]:
    k = truth.shape[1]
    found, seconds = np.empty_like(truth), np.empty(len(vectors))
    for at, vector in enumerate(vectors):
        began = time.perf_counter()
        found[at] = index.search(vector[None], k, search_params=SearchParams(ef)).rows[0]
        seconds[at] = time.perf_counter() - began
    shares = recall_per_query(index, vectors, found, truth)
    return {
        "ef": max(ef, k),
        "ann_recall": round(float(shares.mean()), 4),
        "ci95": round(float(1.96 * shares.std(ddof=1) / np.sqrt(len(shares))), 4),
        "worst_1_percent": round(float(np.percentile(shares, 1)), 4),
        "search_p50_ms": round(float(np.median(seconds)) * 1e3, 3),
    }


def _measure_sizes(release_dir: Path, n_items: int, served: dict[str, Any]) -> dict[str, float]:
    """Bytes an item: of the index file, of the whole release, and in the memory of the process that serves it."""
    files = {path.name: path.stat().st_size for path in release_dir.iterdir()}
    measured = {
        "index_file": files["index.faiss"],
        "release": sum(files.values()),
        "memory": served["rss_after"] - served["rss_before"],
        "memory_peak": served["rss_peak"] - served["rss_before"],
    }
    return {f"{name}_bytes_an_item": round(size / n_items, 1) for name, size in measured.items()}
