"""Commands from tables to a release: quickstart, fit, publish, evaluate."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from vecall import console
from vecall.cli.output import JsonOption, RunOption, StoreOption, handle_errors


@handle_errors
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Where run, store and report go.")] = Path("quickstart"),
    data: Annotated[Path | None, typer.Option("--data", help="Folder with MovieLens' ratings.csv, movies.csv.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """The whole story on MovieLens: fit, publish, evaluate, recall."""
    from vecall.quickstart.run import run_quickstart

    story = run_quickstart(out, data)
    if as_json:
        console.print_json(story.as_json())
    else:
        story.print_summary()


@handle_errors
def fit(
    config: Annotated[Path, typer.Argument(help="A vecall.toml.")],
    run: RunOption,
    init: Annotated[Path | None, typer.Option("--init", help="An older run to start from.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Train towers on the tables, and judge them on what was held out."""
    from vecall.config import load_config
    from vecall.pipeline.fit import fit as fit_run

    finished = fit_run(load_config(config), run, init=init)
    summary = finished.summary
    if as_json:
        console.print_json({"run": str(run), "seconds": summary.seconds, "metrics": summary.metrics})
        return
    metrics: dict[str, Any] = summary.metrics
    seen = "excluded" if any(value is not None for value in metrics["seen_excluded"].values()) else "included"
    console.print_metrics(f"{summary.protocol}; seen items {seen}", {"model": metrics[f"seen_{seen}"]})
    console.out.print(
        f"{summary.epochs} epochs in {summary.seconds:.0f} s, the best was {summary.best_epoch + 1}: {run}"
    )


@handle_errors
def publish(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    store: StoreOption,
    name: Annotated[str | None, typer.Option(help="Of the release; the time by default.")] = None,
    activate: Annotated[bool, typer.Option("--activate/--no-activate", help="Make it the current one.")] = True,
    journal_seq: Annotated[int, typer.Option(min=0, help="Journal operations that the tables already hold.")] = 0,
    allow_worse: Annotated[
        bool, typer.Option("--allow-worse", help="Though half of the items, or of the recall, is gone.")
    ] = False,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a release of a run: export the towers, encode all items, build the index."""
    from vecall.pipeline.publish import publish as publish_run

    made = publish_run(run, store, name=name, activate=activate, journal_seq=journal_seq, allow_worse=allow_worse)
    print_release(store, made, as_json=as_json)


def print_release(store: Path, name: str, *, as_json: bool) -> None:
    """Print what a new release is, with the index efforts that were tried."""
    from vecall.release.store import Store

    manifest = Store.open(store).verify(name)
    if as_json:
        answer = {"release": name, "store": str(store), "items": manifest.items, "dim": manifest.dim}
        console.print_json(answer | {"ann": manifest.ann})
        return
    ann = manifest.ann or {}
    console.out.print(
        f"release {name}: {manifest.items:,} items of {manifest.dim} dimensions, {manifest.total_bytes:,} bytes"
    )
    frontier = cast("list[dict[str, float]]", ann.get("frontier", []))
    if not frontier:
        return
    chosen = {tuple(point) for point in cast("list[list[int]]", manifest.index.parameters.get("search_params", []))}
    console.out.print(f"  {manifest.index.engine}: ANN recall and median latency of the efforts tried; * is used")
    for point in frontier:
        effort = point["k"], point["width"], point["rerank_depth"]
        console.out.print(
            "  {mark} k {k:>5,}  width {width:>5,}  depth {depth:>6,}  ANN recall {recall:.4f} ± {recall_ci95:.4f}  "
            "{p50_ms:.2f} ms".format(mark="*" if effort in chosen else " ", **point)
        )


@handle_errors
def evaluate(
    run: Annotated[Path | None, typer.Option("--run", help="A finished run.")] = None,
    store: Annotated[Path | None, typer.Option("--store", help="A store: its current release.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Names the tables; a store needs it.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the report to this .html file.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Judge a run or a release beside popularity, EASE and co-occurrence, by one protocol."""
    from vecall.config import load_config
    from vecall.evaluation.compare import WITH_HISTORY
    from vecall.pipeline.evaluate import evaluate_run_or_store

    made = evaluate_run_or_store(run=run, store=store, config=None if config is None else load_config(config))
    if report is not None:
        from vecall.evaluation.report_builder import write_evaluation_report
        from vecall.pipeline.run import Run

        epochs = [] if run is None else Run.open(run).read_epoch_metrics()
        write_evaluation_report(report, made, title=f"vecall: {run or store}", epochs=epochs)
    if as_json:
        console.print_json(made.as_json())
        return
    for seen in ("seen_excluded", "seen_included"):
        models = {name: judged.as_json()[seen] for name, judged in made.results.items()}
        console.print_metrics(f"model recall, {seen.replace('_', ' items ')}", models)
    if any(judged.as_json(WITH_HISTORY) != judged.as_json() for judged in made.results.values()):
        models = {name: judged.as_json(WITH_HISTORY)["seen_excluded"] for name, judged in made.results.items()}
        console.print_metrics("model recall, seen items excluded, of users with a history", models)
    for ann in made.ann_results:
        console.out.print(
            f"{ann.engine}: ANN recall@{ann.k} {ann.recall:.4f}, "
            f"one query {ann.p50_ms:.2f} ms (p50), {ann.p99_ms:.2f} ms (p99)"
        )
    console.out.print(made.route_summary)
    console.out.print("\n".join([*made.protocol, *(f"dropped: {n:,} {why}" for why, n in made.dropped.items())]))
