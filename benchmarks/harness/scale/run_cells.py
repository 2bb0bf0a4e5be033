"""Whole commands at scale: fit, evaluate, publish and recall."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl

from harness.environment import MemoryGrowth
from harness.scale.cell import CellOptions
from harness.scale_data import INTERACTIONS_FILE, scale_config
from vecall import Query, evaluate, fit, open_recaller, progress, publish
from vecall.config import Config
from vecall.pipeline.run import MODEL_DIR, Run
from vecall.progress import ProgressLog
from vecall.runtime.memory import peak_rss_bytes

RECALL_USERS, K = 1_000, 100


def measure_fit(options: CellOptions, *, name: str, preset: str, with_features: bool, dim: int) -> dict[str, Any]:
    """Measure one epoch of `fit` with validation, checkpoints and the evaluation on the test part; the run is kept.

    Args:
        options: size.
        name: name of the run.
        preset: `model.preset`.
        with_features: whether items have a category, tags, a title and a price.
        dim: D.
    """
    config = _make_config(options, preset=preset, with_features=with_features, dim=dim)
    run_dir = options.get_work_dir(name)
    if (run_dir / "summary.json").exists():  # a finished run of which the result was lost: it has to be measured again
        shutil.rmtree(run_dir)
    start = time.perf_counter()
    with progress.report_to(ProgressLog(_print_to_stderr)):
        run = fit(config, run_dir)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gib": _read_process_peak_gib(),
        "epochs": run.read_epoch_metrics(),
        "metrics": run.summary.metrics,
    }


def measure_publish(options: CellOptions, *, run_name: str, store_name: str) -> dict[str, Any]:
    """Measure `publish` of a run that `measure_fit` kept."""
    run_dir, store = options.get_work_dir(run_name), options.get_work_dir(store_name)
    shutil.rmtree(store, ignore_errors=True)
    dim = Run.open(run_dir).config.model.dim
    memory, start = MemoryGrowth(), time.perf_counter()
    with progress.report_to(ProgressLog(_print_to_stderr)):
        publish(run_dir, store)
    table_gib = options.items * dim * 4 / 2**30
    model_gib = _measure_file_gib(run_dir / MODEL_DIR)
    peak_gib = memory.read_peak_gib()
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gib": peak_gib,
        "model_gib": round(model_gib, 3),
        "vectors_gib": round(table_gib, 3),
        "tables_above": round((peak_gib - model_gib - table_gib) / table_gib, 2),
    }


def measure_evaluate(options: CellOptions, *, run_name: str) -> dict[str, Any]:
    """Measure `evaluate` of a run that `measure_fit` kept."""
    start = time.perf_counter()
    with progress.report_to(ProgressLog(_print_to_stderr)):
        result = evaluate(run=options.get_work_dir(run_name))
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gib": _read_process_peak_gib(),
        "evaluated": result,
    }


def measure_recall(options: CellOptions, *, store_name: str) -> dict[str, Any]:
    """Measure opening a store that `measure_publish` kept, and recalls of stored users."""
    users = pl.read_parquet(options.write_tables() / INTERACTIONS_FILE, columns=["user"], n_rows=RECALL_USERS)["user"]
    memory, start = MemoryGrowth(), time.perf_counter()
    with open_recaller(options.get_work_dir(store_name)) as recaller:
        open_seconds = time.perf_counter() - start
        latencies, counts = [], []
        for user in users:
            start = time.perf_counter()
            counts.append(len(recaller.recall(Query(user_id=user, k=K)).ids))
            latencies.append(1e3 * (time.perf_counter() - start))
    latency = pl.Series(latencies)
    return {
        "open_seconds": round(open_seconds, 2),
        "recalls": len(counts),
        "full_answers": sum(count == min(K, options.items) for count in counts),
        "p50_ms": round(float(latency.quantile(0.5) or 0.0), 3),
        "p99_ms": round(float(latency.quantile(0.99) or 0.0), 3),
        "peak_gib": memory.read_peak_gib(),
    }


def _make_config(options: CellOptions, *, preset: str, with_features: bool, dim: int) -> Config:
    config = scale_config(options.write_tables(), with_features=with_features, preset=preset, epochs=1)
    return config.model_copy(update={"model": config.model.model_copy(update={"dim": dim})})


def _measure_file_gib(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 2**30


def _read_process_peak_gib() -> float:
    return round(peak_rss_bytes() / 2**30, 2)


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
