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
from facts import facts, load_average
from numpy.typing import NDArray
from one_thread import one_thread
from planted import FEATURE, ITEM_FEATURES, USER_FEATURES, Market

from vecall import progress
from vecall.config import Config, parse_config
from vecall.data.request_features import to_feature_frame
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import SearchParams, Index, Vectors
from vecall.index.builder import IndexSpec
from vecall.index.settings import IndexSettings
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import CONFIG, Run
from vecall.release.encoder import OnnxEncoder
from vecall.release.release import Release, open_release
from vecall.release.store import Store

K, EF, M, EF_CONSTRUCTION = 100, 50, 16, 200  # the founding design's
TRAINED_ON = 10_000  # items at most; a larger pool is served by the towers of this one
EPOCHS = 3
LADDER = (100, 120, 140, 160, 200, 240, 280, 320, 400, 480, 560, 640, 800, 1000, 1300, 1600, 2000, 3000, 4000)
ENOUGH = 0.99  # ANN recall at which the ladder is climbed no further
TARGETS = (0.95, 0.98)
_LOOKED_AT = 200  # users whose planted taste is compared


@dataclass(frozen=True)
class Bench:
    """One market, its trained run, and strangers who ask.

    Attributes:
        work: a folder for tables, runs and stores.
        market: the planted world.
        known: users to train on.
        users: [U, 50] features of users whom training never saw.
    """

    work: Path
    market: Market
    known: int
    users: NDArray[np.float32]

    def train(self, n_items: int) -> dict[str, Any]:
        """Step 1: the founding preset on (user, item, label)."""
        tables = {name: self.work / f"{name}.parquet" for name in ("interactions", "items", "users")}
        self.work.mkdir(parents=True)
        self.market.write_items(tables["items"], n_items)
        self.market.write_users(tables["users"], self.known)
        taken = self.market.write_interactions(tables["interactions"], self.known, n_items)
        with one_thread():
            run = fit(_config(tables), self.work / "run")
        return {
            "items": n_items,
            "users": self.known,
            "taken_of_shown": round(taken, 4),
            "epochs": run.summary.epochs,
            "seconds": run.summary.seconds,
            "loss": [round(line["loss"], 4) for line in run.epochs()],
        }

    def measure(self, n_items: int, *, rounds: int) -> dict[str, Any]:
        """Steps 2 to 5 on a pool of so many items."""
        begun_with = facts()  # others may commit while it runs
        store = self.work / f"store-{n_items}"
        made, built, seconds = self._publish(n_items, store)
        expected = _answers(built, OnnxEncoder(store / "releases" / made, threads=1), self.users)
        del built
        served, _ = self.serve(n_items, rounds=rounds)
        release = open_release(Store.open(store))
        vectors = _user_vectors(_encoder(release), self.users)
        truth = release.index.search_exact(vectors, K).rows
        return {
            "facts": begun_with,
            "items": n_items,
            "build": seconds
            | {"threads": faiss.omp_get_max_threads(), "items_a_second": round(n_items / seconds["graph_seconds"])},
            "planted": self._taste(truth, n_items) | _cosines(release.index, vectors),
            "ann": _ann(release.index, vectors, truth),
            "recall": served,
            "size": _sizes(store / "releases" / made, n_items, served),
            "identical": _identical(expected, _answers(release.index, _encoder(release), self.users)),
        }

    def _publish(self, n_items: int, store: Path) -> tuple[str, Index, dict[str, float]]:
        """Step 2: the item tower, exported, encodes the pool; the graph is built over it, and all of it is saved."""
        items = self.work / f"items-{n_items}.parquet"
        self.market.write_items(items, n_items)
        run = self.work / f"run-{n_items}"
        shutil.copytree(self.work / "run", run)
        config = Run.open(run).config
        larger = config.model_copy(update={"data": config.data.model_copy(update={"items": items})})
        (run / CONFIG).write_text(json.dumps(larger.as_json()), encoding="utf-8")
        clock, began = _Clock(), time.perf_counter()
        with clock.on_build(), progress.shown_by(clock):
            made = publish(run, store)
        seconds = {"publish_seconds": time.perf_counter() - began, **clock.seconds}
        return made, clock.built[0], {name: round(value, 2) for name, value in seconds.items()}

    def serve(self, n_items: int, *, rounds: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Steps 3 and 5: a fresh process loads the store and answers; the round with the least median counts."""
        store = self.work / f"store-{n_items}"
        users, answers = self.work / "strangers.npy", self.work / "answers.npz"
        np.save(users, self.users, allow_pickle=False)
        script = str(Path(__file__).with_name("served.py"))
        command = [sys.executable, script, str(store), str(users), str(answers), "--feature", FEATURE]
        done = subprocess.run([*command, "-k", str(K), "--rounds", str(rounds)], stdout=subprocess.PIPE, check=True)
        measured = json.loads(done.stdout)
        quietest = min(measured["rounds"], key=lambda one: one["p50_ms"])
        with np.load(answers, allow_pickle=False) as arrays:
            return {"k": K, "users": len(self.users), **quietest, **measured}, dict(arrays)

    def _taste(self, best: NDArray[np.int64], n_items: int) -> dict[str, float]:
        """Whether the towers learned anything: the planted chance that what they put first is taken."""
        chances = list(islice(self.market.taste(len(self.users), n_items), _LOOKED_AT))
        named = {
            "taken_of_exact_top_100": [one[rows].mean() for one, rows in zip(chances, best, strict=False)],
            "taken_of_all": [one.mean() for one in chances],
            "taken_of_best_100": [np.partition(one, -K)[-K:].mean() for one in chances],
        }
        return {name: round(float(np.mean(values)), 4) for name, values in named.items()}


class _Clock:
    """Seconds of what `publish` does, and the very index that it built, before it was saved."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.built: list[Index] = []
        self._open: list[tuple[str, float]] = []

    def begin(self, task: str, total: int) -> progress.Advance:
        """A task of `publish` begins."""
        del total
        self._open.append((f"{task.replace(' ', '_')}_seconds", time.perf_counter()))
        return _unheard

    def end(self) -> None:
        """It ends."""
        name, began = self._open.pop()
        self.seconds[name] = time.perf_counter() - began

    @contextmanager
    def on_build(self) -> Iterator[None]:
        """Building is not announced, so its one door is watched."""
        build = IndexSpec.build

        def timed(structure: IndexSpec, vectors: Vectors, settings: IndexSettings) -> Index:
            began = time.perf_counter()
            self.built.append(build(structure, vectors, settings))
            self.seconds["graph_seconds"] = time.perf_counter() - began
            return self.built[-1]

        with patch.object(IndexSpec, "build", timed):
            yield


def _unheard(steps: int = 1, note: str = "") -> None:
    del steps, note


def _config(tables: dict[str, Path]) -> Config:
    def vector(size: int) -> dict[str, Any]:
        return {FEATURE: {"kind": "vector", "size": size}}

    return parse_config(
        {
            "data": {name: str(path) for name, path in tables.items()},
            "schema": {
                "interactions": {"user": "user", "item": "item", "label": "label", "positive": 1.0},
                "items": {"id": "item", "id_type": "integer", "features": vector(ITEM_FEATURES)},
                "users": {"id": "user", "id_type": "integer", "features": vector(USER_FEATURES)},
            },
            "model": {"preset": "founding"},
            # The labels hold their own negatives; nothing is drawn beside them.
            "training": {"epochs": EPOCHS, "negatives": {"uniform": 0}},
            "index": {"engine": "hnsw", "M": M, "ef_construction": EF_CONSTRUCTION, "ef": EF},
        }
    )


def _encoder(release: Release) -> OnnxEncoder:
    if release.encoder is None:
        raise SystemExit(f"release {release.name} has no towers")
    return release.encoder


def _user_vectors(encoder: OnnxEncoder, users: NDArray[np.float32]) -> Vectors:
    """[U, D], one by one as a request does: a batch may round otherwise."""
    features = encoder.state.users.features
    none, nothing = np.empty((1, 0, encoder.dim), dtype=np.float32), np.zeros(1, dtype=np.int64)
    rows = (to_feature_frame([{FEATURE: one}], features) for one in users.tolist())
    return np.concatenate([encoder.encode_users(row, none, nothing) for row in rows])


def _cosines(index: Index, vectors: Vectors) -> dict[str, float]:
    """How the scores lie: where all are about alike, the order of a user's items hangs on the last digits."""
    some = np.linspace(0, index.size - 1, min(index.size, 10_000)).astype(np.int64)
    cosines = vectors[:_LOOKED_AT] @ index.get_vectors(some).T
    spread = cosines.std(axis=1).mean()
    return {"cosine_mean": round(float(cosines.mean()), 4), "cosine_sd_within_a_user": round(float(spread), 4)}


def _answers(index: Index, encoder: OnnxEncoder, users: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows and scores [U, k] of the index as it was built, before it was saved."""
    hits = [index.search(vector[None], K) for vector in _user_vectors(encoder, users)]
    return np.concatenate([one.rows for one in hits]), np.concatenate([one.scores for one in hits])


def _identical(
    expected: tuple[NDArray[Any], NDArray[Any]], loaded: tuple[NDArray[Any], NDArray[Any]]
) -> dict[str, int]:
    """Users whose answer by the loaded index is, to the bit, the one before saving."""
    same = np.all([(one == other).all(axis=1) for one, other in zip(expected, loaded, strict=True)], axis=0)
    return {"users": len(same), "identical": int(same.sum())}


def _ann(index: Index, vectors: Vectors, truth: NDArray[np.int64]) -> dict[str, Any]:
    """Step 4: ANN recall, up a ladder of efforts, one query at a time on one thread."""
    steps: list[dict[str, float]] = []
    for ef in LADDER:
        steps.append(_step(index, vectors, truth, ef))
        if steps[-1]["ann_recall"] >= ENOUGH or ef >= index.size:
            break
    reached = {
        f"{target:.2f}": next((one["ef"] for one in steps if one["ann_recall"] >= target), None) for target in TARGETS
    }
    return {
        "k": K,
        "queries": len(vectors),
        "asked_ef": EF,
        "searched_ef": max(EF, K),  # a graph keeps at least k places in sight
        "at_asked_ef": _step(index, vectors, truth, EF),
        "at_smaller_k": {str(k): _step(index, vectors, truth[:, :k], EF) for k in (10, 50)},
        "ladder": steps,
        "least_ef_for": reached,
        "load_average": load_average(),
    }


def _step(index: Index, vectors: Vectors, truth: NDArray[np.int64], ef: int) -> dict[str, float]:
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


def _sizes(folder: Path, n_items: int, served: dict[str, Any]) -> dict[str, float]:
    """Bytes an item: of the index file, of the whole release, and in the memory of the process that serves it."""
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    measured = {
        "index_file": files["index.faiss"],
        "release": sum(files.values()),
        "memory": served["rss_after"] - served["rss_before"],
        "memory_peak": served["rss_peak"] - served["rss_before"],
    }
    return {f"{name}_bytes_an_item": round(size / n_items, 1) for name, size in measured.items()}
