"""Fits beside each other: tables trained by rows beside whole ones, and two processes beside a single one."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from harness.accuracy.datasets import DATASETS
from harness.scale.cell import CellOptions
from harness.scale_data import scale_config
from harness.torch_threads import single_torch_thread
from vecall import fit, progress
from vecall.config import parse_config
from vecall.pipeline.run import Run
from vecall.progress import ProgressLog
from vecall.training import plan

EPOCHS = 4
N_ROWS_OF_NO_TABLE = 2**62
# Ways to train the tables: as a whole, by rows with both moments, by rows with a second moment per row.
TABLE_MODES: Mapping[str, Mapping[str, float]] = {
    "dense": {"MIN_ROWS_OF_ROW_TABLE": N_ROWS_OF_NO_TABLE},
    "rows": {"_MAX_MEMORY_SHARE": 1.0},
    "rows, no moments": {"_MAX_MEMORY_SHARE": 0.0},
}


def measure_accuracy(options: CellOptions, *, preset: str) -> dict[str, Any]:
    """Train Beauty for 4 epochs with sampled softmax in each mode; recall@100 on the validation and the test part."""
    dataset = DATASETS["beauty"]
    directory = options.datasets / dataset.directory
    if not directory.is_dir():
        return {"missing": f"{directory} does not exist"}
    by_mode, epochs = {}, 1 if options.smoke else EPOCHS
    with tempfile.TemporaryDirectory(prefix="accuracy-") as work_dir, single_torch_thread():
        settings = dataset.build_settings(directory, Path(work_dir))
        settings |= {
            "model": {"preset": preset},
            "training": {"loss": "sampled_softmax", "epochs": epochs, "patience": epochs},
            "evaluation": {"ks": [10, 100], "baselines": False},
        }
        for mode, constants in TABLE_MODES.items():
            with patch.multiple(plan, **constants):
                run = fit(parse_config(settings), Path(work_dir) / mode)
            by_mode[mode] = _summarize_accuracy(run)
    dense = by_mode["dense"]["test_recall@100"]
    return {
        "by_mode": by_mode,
        "rows_difference": round(abs(by_mode["rows"]["test_recall@100"] - dense), 5),
        "no_moments_difference": round(abs(by_mode["rows, no moments"]["test_recall@100"] - dense), 5),
    }


def _summarize_accuracy(run: Run) -> dict[str, float]:
    best: Any = run.read_epoch_metrics()[run.summary.best_epoch]
    test: Any = run.summary.metrics["seen_excluded"]
    return {
        "valid_recall@100": round(best["valid_recall"], 5),
        "valid_ndcg@10": round(best["valid_ndcg@10"], 5),
        "test_recall@100": round(test["recall@100"], 5),
        "test_ndcg@10": round(test["ndcg@10"], 5),
        "seconds": run.summary.seconds,
    }


def measure_processes(options: CellOptions) -> dict[str, Any]:
    """Measure an epoch of `pooled` by two processes of one thread, beside one of one thread and one of all threads.

    The seconds are those of the epoch with its validation. All have the same batches.
    """
    tables = options.write_tables()
    cases: dict[str, tuple[int, AbstractContextManager[None]]] = {
        "one process, one thread": (1, _one_thread()),
        "two processes, one thread each": (2, _one_thread()),
        "one process, its best threads": (1, nullcontext()),
    }
    seconds, losses = {}, {}
    for name, (devices, threads) in cases.items():
        config = scale_config(
            tables, with_features=False, preset="pooled", epochs=1, loss="sampled_softmax", devices=devices
        )
        run_dir = options.get_work_dir("processes")
        shutil.rmtree(run_dir, ignore_errors=True)
        with threads, progress.report_to(ProgressLog(lambda line: print(line, file=sys.stderr, flush=True))):
            run = fit(config, run_dir)
        [epoch] = run.read_epoch_metrics()
        seconds[name], losses[name] = epoch["seconds"], epoch["loss"]
    single, double, best = seconds.values()
    return {
        "epoch_seconds": seconds,
        "losses": losses,
        "loss_difference": round(max(losses.values()) - min(losses.values()), 8),
        "speedup": round(single / double, 3),
        "speedup_over_best": round(best / double, 3),
        "cores": os.cpu_count(),
    }


@contextmanager
def _one_thread() -> Any:
    """Train on one thread, in this process and in those that it starts."""
    threads, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("OMP_NUM_THREADS")
        if variable is not None:
            os.environ["OMP_NUM_THREADS"] = variable
