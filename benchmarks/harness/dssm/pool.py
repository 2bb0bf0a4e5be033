"""The DSSM baseline on a pool of a synthetic market: train, build the index, recall, ANN recall, save and load."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import faiss
import numpy as np

from harness.dssm.synthetic_market import FEATURE_COLUMN, ITEM_FEATURE_DIM, USER_FEATURE_DIM, SyntheticMarket
from harness.environment import describe_environment, make_child_environment, read_load_average
from harness.torch_threads import single_torch_thread
from vecall import progress
from vecall.arrays import HalfVectors, Rows, Scores, Vectors
from vecall.config import Config, parse_config
from vecall.data.request_features import to_feature_frame
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import Index, SearchParams
from vecall.index.engine import BuildContext, EngineBuild
from vecall.index.engines import ENGINES
from vecall.index.faiss_files import INDEX_FILE
from vecall.index.stored_vectors import StoredVectors
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import CONFIG_FILE, Run
from vecall.release.encoder import OnnxEncoder
from vecall.release.release import Release, open_release
from vecall.release.store import Store

K, EF, M, EF_CONSTRUCTION = 100, 50, 16, 200  # of the baseline's design
MAX_TRAINING_ITEMS = 10_000  # larger pools are encoded by the towers of this one
EPOCHS = 3
EF_SWEEP = (100, 120, 140, 160, 200, 240, 280, 320, 400, 480, 560, 640, 800, 1000, 1300, 1600, 2000, 3000, 4000)
SUFFICIENT_RECALL = 0.99  # ANN recall at which the sweep ends
RECALL_TARGETS = (0.95, 0.98)
_N_COMPARED_USERS = 200  # users whose true preferences are compared with what the towers rank first


@dataclass(frozen=True)
class PoolBenchmark:
    """A market, the run that was trained on it, and users to recall for.

    Attributes:
        work_dir: directory for tables, runs and stores.
        market: source of users, items and labels.
        n_training_users: number of users to train on.
        query_users: [U, 50] features of users that are not in the training data.
    """

    work_dir: Path
    market: SyntheticMarket
    n_training_users: int
    query_users: Vectors

    def train(self, n_items: int) -> dict[str, Any]:
        """Step 1: train the DSSM preset on (user, item, label) rows over the first `n_items` items."""
        tables = {name: self.work_dir / f"{name}.parquet" for name in ("interactions", "items", "users")}
        self.work_dir.mkdir(parents=True)
        self.market.write_items(tables["items"], n_items)
        self.market.write_users(tables["users"], self.n_training_users)
        positive_share = self.market.write_interactions(tables["interactions"], self.n_training_users, n_items)
        with single_torch_thread():
            run = fit(_make_config(tables), self.work_dir / "run")
        return {
            "items": n_items,
            "users": self.n_training_users,
            "taken_of_shown": round(positive_share, 4),
            "epochs": run.summary.epochs,
            "seconds": run.summary.seconds,
            "loss": [round(metrics["loss"], 4) for metrics in run.read_epoch_metrics()],
        }

    def measure(self, n_items: int, *, rounds: int) -> dict[str, Any]:
        """Steps 2 to 5 on a pool of `n_items` items.

        Args:
            n_items: size of the pool.
            rounds: number of rounds of timed recalls.
        """
        environment = describe_environment()  # before the work: the commit may change while it runs
        store = self.work_dir / f"store-{n_items}"
        release_name, built_index, seconds = self._publish(n_items, store)
        release_dir = store / "releases" / release_name
        expected = _search_all(built_index, OnnxEncoder(release_dir, threads=1), self.query_users)
        del built_index
        serving = self.measure_serving(n_items, rounds=rounds)
        release = open_release(Store.open(store))
        vectors = _encode_users(_require_encoder(release), self.query_users)
        truth = release.vectors.search_exact(vectors, K).rows
        loaded = _search_all(release.index, _require_encoder(release), self.query_users)
        items_per_second = round(n_items / seconds["graph_seconds"])
        return {
            "facts": environment,
            "items": n_items,
            "build": seconds | {"threads": faiss.omp_get_max_threads(), "items_a_second": items_per_second},
            "planted": self._measure_preferences(truth, n_items) | _measure_cosines(release.vectors, vectors),
            "ann": _measure_ann_recall(release.index, vectors, truth),
            "recall": serving,
            "size": _measure_sizes(release_dir, n_items, serving),
            "identical": _count_identical(expected, loaded),
        }

    def _publish(self, n_items: int, store: Path) -> tuple[str, Index, dict[str, float]]:
        """Step 2: encode the pool by the exported item tower, build the graph and save the release.

        Returns:
            The release's name, its index as it was before saving, and the seconds of each part.
        """
        items_path = self.work_dir / f"items-{n_items}.parquet"
        self.market.write_items(items_path, n_items)
        run_dir = self.work_dir / f"run-{n_items}"
        shutil.copytree(self.work_dir / "run", run_dir)
        config = Run.open(run_dir).config
        pool_config = config.model_copy(update={"data": config.data.model_copy(update={"items": items_path})})
        (run_dir / CONFIG_FILE).write_text(json.dumps(pool_config.as_json()), encoding="utf-8")
        timer, start = _PublishTimer(), time.perf_counter()
        with timer.record_builds(), progress.report_to(timer):
            release_name = publish(run_dir, store)
        seconds = {"publish_seconds": time.perf_counter() - start, **timer.seconds}
        return release_name, timer.built_indexes[0], {name: round(value, 2) for name, value in seconds.items()}

    def measure_serving(self, n_items: int, *, rounds: int) -> dict[str, Any]:
        """Step 3: recall in a new process (see `recall_process`); the round with the smallest median counts."""
        store = self.work_dir / f"store-{n_items}"
        users_path = self.work_dir / "query_users.npy"
        np.save(users_path, self.query_users, allow_pickle=False)
        command = [sys.executable, "-m", "harness.dssm.recall_process", str(store), str(users_path)]
        command += ["--feature", FEATURE_COLUMN, "-k", str(K), "--rounds", str(rounds)]
        completed = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=make_child_environment())
        measured = json.loads(completed.stdout)
        quietest = min(measured["rounds"], key=lambda timed: timed["p50_ms"])
        return {"k": K, "users": len(self.query_users), **quietest, **measured}

    def _measure_preferences(self, top_rows: Rows, n_items: int) -> dict[str, float]:
        """Return the mean true probability of the items [U, k] that the towers rank first, of all, and of the best."""
        users = islice(self.market.iterate_probabilities(len(self.query_users), n_items), _N_COMPARED_USERS)
        probabilities = list(users)
        means = {
            "taken_of_exact_top_100": [user[rows].mean() for user, rows in zip(probabilities, top_rows, strict=False)],
            "taken_of_all": [user.mean() for user in probabilities],
            "taken_of_best_100": [np.partition(user, -K)[-K:].mean() for user in probabilities],
        }
        return {name: round(float(np.mean(values)), 4) for name, values in means.items()}


class _PublishTimer:
    """Progress listener that records the seconds of each task of `publish`, and the index before it was saved.

    Attributes:
        seconds: by task.
        built_indexes: the graphs that were built within `record_builds`.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.built_indexes: list[Index] = []
        self._running: list[tuple[str, float]] = []

    def start_task(self, task: str, total: int) -> progress.ProgressCallback:
        """Start the clock of a task."""
        del total
        self._running.append((f"{task.replace(' ', '_')}_seconds", time.perf_counter()))
        return _ignore_progress

    def stop_task(self) -> None:
        """Record the seconds of the task that started last."""
        name, start = self._running.pop()
        self.seconds[name] = time.perf_counter() - start

    def write_line(self, text: str) -> None:
        """Ignore texts."""

    @contextmanager
    def record_builds(self) -> Iterator[None]:
        """Record each build of a graph: it is not a task of the progress reports."""
        engine = ENGINES["hnsw"]

        def build(vectors: Vectors | HalfVectors, context: BuildContext) -> EngineBuild:
            start = time.perf_counter()
            built = engine.build(vectors, context)
            self.seconds["graph_seconds"] = time.perf_counter() - start
            self.built_indexes.append(built.index)
            return built

        with patch.dict(ENGINES, {"hnsw": replace(engine, build=build)}):
            yield


def _ignore_progress(steps: int = 1, note: str = "") -> None:
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
            "model": {"preset": "dssm"},
            # The labels contain negatives, so none are drawn.
            "training": {"epochs": EPOCHS, "negatives": {"uniform": 0}},
            "index": {"engine": "hnsw", "M": M, "ef_construction": EF_CONSTRUCTION, "ef": EF},
            "evaluation": {"baselines": False},
        }
    )


def _require_encoder(release: Release) -> OnnxEncoder:
    if release.encoder is None:
        raise SystemExit(f"release {release.name} has no towers")
    return release.encoder


def _encode_users(encoder: OnnxEncoder, users: Vectors) -> Vectors:
    """Return the vectors [U, D] of users [U, F], encoded one by one as requests are: a batch may round differently."""
    features = encoder.state.users.features
    no_history, no_lengths = np.empty((1, 0, encoder.dim), dtype=np.float32), np.zeros(1, dtype=np.int64)
    frames = (to_feature_frame([{FEATURE_COLUMN: user}], features) for user in users.tolist())
    return np.concatenate([encoder.encode_users(frame, no_history, no_lengths) for frame in frames])


def _measure_cosines(stored: StoredVectors, vectors: Vectors) -> dict[str, float]:
    """Return the mean cosine, and its deviation within a user: where that is tiny, rounding decides the ranking."""
    rows = np.linspace(0, stored.size - 1, min(stored.size, 10_000)).astype(np.int64)
    cosines = vectors[:_N_COMPARED_USERS] @ stored.get_vectors(rows).T  # [U, rows]
    deviation = cosines.std(axis=1).mean()
    return {"cosine_mean": round(float(cosines.mean()), 4), "cosine_sd_within_a_user": round(float(deviation), 4)}


def _search_all(index: Index, encoder: OnnxEncoder, users: Vectors) -> tuple[Rows, Scores]:
    """Return the rows and scores [U, k] of users [U, F]."""
    hits = [index.search(vector[None], K) for vector in _encode_users(encoder, users)]
    return np.concatenate([h.rows for h in hits]), np.concatenate([h.scores for h in hits])


def _count_identical(expected: tuple[Rows, Scores], loaded: tuple[Rows, Scores]) -> dict[str, int]:
    """Count the users whose rows and scores [U, k] are the same to the bit before saving and after loading."""
    rows_equal = (expected[0] == loaded[0]).all(axis=1)
    scores_equal = (expected[1] == loaded[1]).all(axis=1)
    return {"users": len(rows_equal), "identical": int((rows_equal & scores_equal).sum())}


def _measure_ann_recall(index: Index, vectors: Vectors, truth: Rows) -> dict[str, Any]:
    """Step 4: measure ANN recall for ascending ef, one query at a time on one thread.

    Args:
        index: a graph.
        vectors: [U, D].
        truth: [U, K] exact rows.
    """
    sweep: list[dict[str, float]] = []
    for ef in EF_SWEEP:
        sweep.append(_measure_ef(index, vectors, truth, ef))
        if sweep[-1]["ann_recall"] >= SUFFICIENT_RECALL or ef >= index.vectors.size:
            break
    min_ef = {
        f"{target:.2f}": next((point["ef"] for point in sweep if point["ann_recall"] >= target), None)
        for target in RECALL_TARGETS
    }
    return {
        "k": K,
        "queries": len(vectors),
        "asked_ef": EF,
        "searched_ef": max(EF, K),  # a graph search keeps at least k candidates
        "at_asked_ef": _measure_ef(index, vectors, truth, EF),
        "at_smaller_k": {str(k): _measure_ef(index, vectors, truth[:, :k], EF) for k in (10, 50)},
        "ladder": sweep,
        "least_ef_for": min_ef,
        "load_average": read_load_average(),
    }


def _measure_ef(index: Index, vectors: Vectors, truth: Rows, ef: int) -> dict[str, float]:
    """Measure one ef at the k of the exact rows [U, k]."""
    k = truth.shape[1]
    found, seconds = np.empty_like(truth), np.empty(len(vectors))
    for i, vector in enumerate(vectors):
        start = time.perf_counter()
        found[i] = index.search(vector[None], k, search_params=SearchParams(ef)).rows[0]
        seconds[i] = time.perf_counter() - start
    recalls = recall_per_query(index.vectors, vectors, found, truth)
    return {
        "ef": max(ef, k),
        "ann_recall": round(float(recalls.mean()), 4),
        "ci95": round(float(1.96 * recalls.std(ddof=1) / np.sqrt(len(recalls))), 4),
        "worst_1_percent": round(float(np.percentile(recalls, 1)), 4),
        "search_p50_ms": round(float(np.median(seconds)) * 1e3, 3),
    }


def _measure_sizes(release_dir: Path, n_items: int, serving: dict[str, Any]) -> dict[str, float]:
    """Return the bytes per item of the index file, of the release, and of the memory of the process that serves it."""
    sizes = {path.name: path.stat().st_size for path in release_dir.iterdir()}
    measured = {
        "index_file": sizes[INDEX_FILE],
        "release": sum(sizes.values()),
        "memory": serving["rss_after"] - serving["rss_before"],
        "memory_peak": serving["rss_peak"] - serving["rss_before"],
    }
    return {f"{name}_bytes_an_item": round(size / n_items, 1) for name, size in measured.items()}
