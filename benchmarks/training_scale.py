"""Measure training at the scale that is served: tables, encoders, steps, epochs, memory, processes, whole path.

    python benchmarks/training_scale.py [--data /data/scale]                 # all parts at the sizes of their goals
    python benchmarks/training_scale.py --part step --items 10_000_000       # one part, any size
    python benchmarks/training_scale.py --part path --items 1_000_000 --rows 20_000_000
    python benchmarks/training_scale.py --smoke                              # seconds; figures mean nothing

Tables are synthetic, generated in chunks and kept in --data, as are the runs and stores that later parts read. Each
measurement runs in a process of its own, so that its peak memory is its own, is written to the results at once, and is
skipped where the results have it. The time of an epoch is extrapolated from 300 of its steps; --full runs all of them.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.environment import DEFAULT_DATA_DIR, RESULTS_DIR, describe_environment, read_json, write_json
from harness.scale.cell import CellOptions
from harness.scale.fit_cells import measure_accuracy, measure_processes
from harness.scale.run_cells import measure_evaluate, measure_fit, measure_publish, measure_recall
from harness.scale.table_cells import measure_encode, measure_read
from harness.scale.training_cells import measure_epoch, measure_steps, measure_validation
from harness.tables import console
from vecall.console import configure_logging
from vecall.runtime.huge_pages import use_huge_pages

ROWS_PER_USER = 20
SMOKE_ITEMS, SMOKE_ROWS = 2_000, 20_000
M = 1_000_000


class Goal(NamedTuple):
    """Bound of a measured value.

    Attributes:
        metric: key of the result.
        bound: highest allowed value.
        is_minimum: whether the bound is the lowest allowed value instead.
    """

    metric: str
    bound: float
    is_minimum: bool = False

    def describe(self, result: dict[str, Any]) -> str:
        """Return the measured value beside the bound."""
        value = result[self.metric]
        is_reached = value >= self.bound if self.is_minimum else value <= self.bound
        sign, verdict = "≥" if self.is_minimum else "≤", "reached" if is_reached else "MISSED"
        return f"{self.metric} {value:g} ({sign} {self.bound:g}: {verdict})"


class Cell(NamedTuple):
    """Measurement of a part.

    Attributes:
        part: name of the part.
        items: N of the goals.
        rows: M of the goals.
        measure: returns the result.
        goals: bounds, at the size of the goals.
        details: further keys of the result that are printed.
        users: U of the goals; None for a twentieth of the rows.
    """

    part: str
    items: int
    rows: int
    measure: Callable[[CellOptions], dict[str, Any]]
    goals: tuple[Goal, ...] = ()
    details: tuple[str, ...] = ()
    users: int | None = None


ACCURACY_GOALS = (Goal("rows_difference", 0.002), Goal("no_moments_difference", 0.002))
CELLS: dict[str, Cell] = {
    f"read, {id_type} ids": Cell(
        "read",
        M,
        50 * M,
        partial(measure_read, id_type=id_type),
        (Goal("seconds", seconds), Goal("peak_gib", 3.0)),
    )
    for id_type, seconds in (("integer", 30.0), ("string", 90.0))
} | {
    "encode": Cell(
        "encode",
        10 * M,
        5 * M,
        measure_encode,
        (Goal("seconds", 240.0), Goal("gib_above_result", 2.0)),
        ("result_gib",),
    ),
    "step, pooled": Cell(
        "step", 10 * M, 2 * M, partial(measure_steps, preset="pooled"), (Goal("ratio", 1.5),), ("step_ms", "peak_gib")
    ),
    "step, sequence": Cell(
        "step", 10 * M, 2 * M, partial(measure_steps, preset="sequence"), (Goal("ratio", 1.5),), ("step_ms", "peak_gib")
    ),
    "accuracy, pooled": Cell(
        "accuracy", 0, 0, partial(measure_accuracy, preset="pooled"), ACCURACY_GOALS, ("by_mode",)
    ),
    "accuracy, sequence": Cell(
        "accuracy", 0, 0, partial(measure_accuracy, preset="sequence"), ACCURACY_GOALS, ("by_mode",)
    ),
    "epoch, pooled": Cell(
        "epoch",
        M,
        20 * M,
        partial(measure_epoch, with_features=False),
        (Goal("epoch_minutes", 20.0),),
        ("step_ms", "threads", "extrapolated"),
    ),
    "epoch, four features": Cell(
        "epoch",
        M,
        20 * M,
        partial(measure_epoch, with_features=True),
        (Goal("epoch_minutes", 50.0),),
        ("step_ms", "threads", "extrapolated"),
    ),
    "validation": Cell(
        "validation",
        M,
        2 * M,
        measure_validation,
        (Goal("seconds", 120.0),),
        ("evaluated_users", "threads", "peak_gib"),
    ),
    "peak, pooled 128": Cell(
        "peak",
        10 * M,
        2 * M,
        partial(measure_fit, name="peak-pooled", preset="pooled", with_features=True, dim=128),
        (Goal("peak_gib", 14.0),),
        ("seconds",),
    ),
    "peak, sequence 256": Cell(
        "peak",
        10 * M,
        2 * M,
        partial(measure_fit, name="peak-sequence", preset="sequence", with_features=True, dim=256),
        (Goal("peak_gib", 20.0),),
        ("seconds",),
    ),
    "publish": Cell(
        "publish",
        10 * M,
        2 * M,
        partial(measure_publish, run_name="peak-pooled", store_name="publish"),
        (Goal("tables_above", 1.0),),
        ("seconds", "peak_gib"),
    ),
    "processes": Cell(
        "processes",
        M,
        2 * M,
        measure_processes,
        (Goal("loss_difference", 1e-4), Goal("speedup", 1.6, is_minimum=True), Goal("speedup_over_best", 1.0, True)),
        ("epoch_seconds",),
        users=500,  # so that validation takes a small part of the epoch
    ),
    "path, fit": Cell(
        "path",
        M,
        20 * M,
        partial(measure_fit, name="path-run", preset="pooled", with_features=True, dim=128),
        details=("seconds", "peak_gib"),
    ),
    "path, evaluate": Cell(
        "path", M, 20 * M, partial(measure_evaluate, run_name="path-run"), details=("seconds", "peak_gib")
    ),
    "path, publish": Cell(
        "path",
        M,
        20 * M,
        partial(measure_publish, run_name="path-run", store_name="path-store"),
        details=("seconds", "peak_gib"),
    ),
    "path, recall": Cell(
        "path",
        M,
        20 * M,
        partial(measure_recall, store_name="path-store"),
        details=("open_seconds", "p50_ms", "p99_ms", "full_answers", "peak_gib"),
    ),
}
PARTS = tuple(dict.fromkeys(cell.part for cell in CELLS.values()))


def main() -> None:
    """Run one measurement as a child process, or all that the results lack."""
    options = _parse_options()
    configure_logging(verbose=False)
    if options.cell:
        _measure(options.cell, options)
        return
    use_huge_pages()  # for the child processes, as the command line does
    names = [name for name, cell in CELLS.items() if cell.part in options.part]
    for name in names:
        if _get_key(name, options) in read_json(options.out) and not options.fresh:
            continue
        console.print(_get_key(name, options), style="dim")
        if options.smoke:
            _measure(name, options)
        else:  # in a process of its own, so that its peak memory is its own
            subprocess.run([sys.executable, *sys.argv, "--cell", name], check=True)
    _print_results(names, options)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, help="N (default: the size of each part's goal)")
    parser.add_argument("--rows", type=int, help="interactions (default: the size of each part's goal)")
    parser.add_argument("--users", type=int, help="(default: a twentieth of the rows)")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--data", type=Path, default=Path("/tmp/vecall-training-scale"), help="generated tables, runs")
    parser.add_argument("--datasets", type=Path, default=DEFAULT_DATA_DIR, help="public data sets")
    parser.add_argument("--full", action="store_true", help="run an epoch to its end")
    parser.add_argument("--smoke", action="store_true", help="2,000 items, few steps, no child processes")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "training-scale.json")
    parser.add_argument("--cell", choices=CELLS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _make_cell_options(name: str, options: argparse.Namespace) -> CellOptions:
    cell = CELLS[name]
    items, rows = (SMOKE_ITEMS, SMOKE_ROWS) if options.smoke else (cell.items, cell.rows)
    items, rows = options.items or items, options.rows or rows
    if cell.part == "accuracy":  # of a public data set
        items = rows = 0
    return CellOptions(
        items=items,
        rows=rows,
        users=options.users or (None if options.smoke else cell.users) or max(1, rows // ROWS_PER_USER),
        scratch=options.data,
        datasets=options.datasets,
        full=options.full,
        smoke=options.smoke,
    )


def _get_key(name: str, options: argparse.Namespace) -> str:
    size = _make_cell_options(name, options)
    return f"{name}, {size.items} items, {size.rows} rows" + (", full" if size.full and "epoch" in name else "")


def _measure(name: str, options: argparse.Namespace) -> None:
    """Measure a cell and add it to the results."""
    facts = describe_environment()  # before, with the load average that the measurement starts under
    size = _make_cell_options(name, options)
    measured = CELLS[name].measure(size)
    if "missing" in measured:
        console.print(f"{name} is left out: {measured['missing']}")
        return
    result = {"facts": facts, "items": size.items, "rows": size.rows, "users": size.users} | measured
    write_json(options.out, read_json(options.out) | {_get_key(name, options): result})


def _print_results(names: list[str], options: argparse.Namespace) -> None:
    """Print a line for each measurement, with goals where it has their size."""
    results = read_json(options.out)
    for name in names:
        cell, result = CELLS[name], results.get(_get_key(name, options))
        if result is None:
            continue
        has_goals = (result["items"], result["rows"]) == (cell.items, cell.rows)
        goals = [goal.describe(result) for goal in cell.goals] if has_goals else []
        keys = cell.details if has_goals else (*(goal.metric for goal in cell.goals), *cell.details)
        details = [f"{key} {result[key]}" for key in keys]
        console.print(f"\n{name}, {result['items']:,} × {result['rows']:,}", style="bold")
        console.print("  " + "; ".join(goals + details), soft_wrap=True)


if __name__ == "__main__":
    main()
