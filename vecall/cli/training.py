"""Commands from tables to a release: quickstart, fit, publish, evaluate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vecall import console
from vecall.cli.output import ActivateOption, JsonOption, RunOption, StoreOption, wrap_command
from vecall.runtime.process_rank import is_main_process

if TYPE_CHECKING:
    from vecall.evaluation.ann import AnnBenchmarkResult
    from vecall.evaluation.compare import EvaluationReport
    from vecall.quickstart.run import QuickstartResult


@wrap_command
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Directory of the run, the store and the report.")] = Path(
        "quickstart"
    ),
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Directory with MovieLens' ratings.csv and movies.csv (default: the copy in vecall's repository).",
        ),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """End-to-end demo on MovieLens: fit, publish, evaluate, recall."""
    from vecall.quickstart.run import run_quickstart

    result = run_quickstart(out, data)
    if as_json:
        console.print_json(result.as_json())
    else:
        _print_quickstart_result(result)


def _print_quickstart_result(result: "QuickstartResult") -> None:
    for example in result.examples:
        newest_first = example.history[::-1]
        rows = [[*pair] for pair in zip(newest_first, example.final_list, strict=False)]
        console.print_table(f"\n{example.user}", ["watched, newest first", "final list"], rows, align_left=True)
    evaluation = result.evaluation
    metrics_by_model = _insert_merged(evaluation, "seen_excluded") | {"dssm": result.dssm.seen_excluded}
    console.print_metrics("\nmodel recall over all items, seen items excluded", metrics_by_model)
    _print_channels(evaluation)
    console.out.print()
    _print_ann_results(evaluation.ann_results[:1])
    console.out.print(evaluation.route_summary)
    console.out.print(f"release {result.release}; report: {result.report_path}")
    console.out.print(", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds_by_stage.items()))


@wrap_command
def fit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings file, such as vecall.toml.")],
    run: RunOption,
    init: Annotated[Path | None, typer.Option("--init", help="Warm-start from this run.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Train the two-tower model and evaluate it on the held-out split, beside popularity, EASE and co-occurrence."""
    from vecall.config import load_config
    from vecall.evaluation.evaluator import select_seen_key
    from vecall.pipeline.fit import fit as fit_run

    finished_run = fit_run(load_config(config), run, init=init)
    if not is_main_process():
        return
    summary = finished_run.summary
    if as_json:
        console.print_json({"run": str(run), "seconds": summary.seconds, "metrics": summary.metrics})
        return
    metrics: dict[str, Any] = summary.metrics
    models: dict[str, Any] = {"model": metrics, **summary.baselines}
    key = select_seen_key(metrics)
    if key == "seen_included":
        console.out.print(
            "all held-out items are in their users' histories: nothing is left if seen items are excluded"
        )
    console.print_metrics(
        f"{summary.protocol}; {key.replace('_', ' items ')}", {name: values[key] for name, values in models.items()}
    )
    comparison = summary.comparison
    if comparison is not None and comparison.level != "below":  # which `fit` has warned of
        console.out.print(f"{comparison.message} {comparison.advice}".strip())
    for note in summary.baseline_notes:
        console.out.print(note)
    console.out.print(
        f"preset {finished_run.config.model.preset}, {summary.epochs} epochs in {summary.seconds:.0f} s, best epoch "
        f"{summary.best_epoch + 1}: {run}"
    )


@wrap_command
def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")],
    store: StoreOption,
    name: Annotated[str | None, typer.Option(help="Release name (default: UTC timestamp).")] = None,
    activate: ActivateOption = True,
    journal_seq: Annotated[
        int,
        typer.Option(
            min=0,
            help="Sequence number of the last live change that the tables include; later ones are re-applied.",
        ),
    ] = 0,
    allow_worse: Annotated[
        bool,
        typer.Option(
            "--allow-worse",
            help="Publish even if items or recall are less than half of the current release's (a smaller loss is never "
            "refused); do not warn of a model below the baselines.",
        ),
    ] = False,
    *,
    as_json: JsonOption = False,
) -> None:
    """Publish a run as a release: export the towers, encode all items, build the index."""
    from vecall.pipeline.publish import publish as publish_run

    release = publish_run(run, store, name=name, activate=activate, journal_seq=journal_seq, allow_worse=allow_worse)
    verify_and_print_release(store, release, as_json=as_json)


def verify_and_print_release(store: Path, name: str, *, as_json: bool) -> None:
    """Verify a new release, then print its size and the search parameters that were tried for its index."""
    from vecall.release.store import Store

    manifest = Store.open(store).verify(name)
    if as_json:
        payload = {"release": name, "store": str(store), "items": manifest.items, "dim": manifest.dim}
        console.print_json(payload | {"ann": manifest.ann})
        return
    console.out.print(
        f"release {name}: {manifest.items:,} items of {manifest.dim} dimensions, {manifest.total_bytes:,} bytes"
    )
    trials = cast("list[dict[str, float]]", (manifest.ann or {}).get("frontier", []))
    if not trials:
        return
    parameters = cast("list[list[float]]", manifest.index.parameters.get("search_params", []))
    chosen = {tuple(search_params) for search_params in parameters}
    console.out.print(
        f"  {manifest.index.engine}: ANN recall and median latency of the search parameters tried; * marks those in use"
    )
    for trial in trials:
        point = (trial["k"], trial["width"], trial["rerank_depth"], trial["spread"])
        mark = "*" if point in chosen else " "
        console.out.print(
            "  {mark} k {k:>5,}  width {width:>5,}  depth {rerank_depth:>6,}  ANN recall {recall:.4f} ± "
            "{recall_ci95:.4f}  worst 1 % {worst_recall:.3f}  {p50_ms:.2f} ms".format(mark=mark, **trial)
        )


@wrap_command
def evaluate(
    run: Annotated[Path | None, typer.Option("--run", help="Directory of a finished run.")] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Store directory, whose current release is evaluated.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="Settings file that names the tables (default: the run's); required with --store."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write an HTML report to this file.")] = None,
    *,
    all_users: Annotated[
        bool,
        typer.Option(
            "--all-users",
            help="Evaluate all users even where users x items exceed 10^10 (default: then a fixed sample of 10,000).",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a run or a release against popularity, EASE and co-occurrence baselines."""
    from vecall.config import load_config
    from vecall.evaluation.report import check_report_path
    from vecall.pipeline.evaluate import evaluate_run_or_store

    if (run is None) == (store is None):
        raise typer.BadParameter("use either --run or --store")
    if report is not None:
        check_report_path(report)
    settings = None if config is None else load_config(config)
    evaluation = evaluate_run_or_store(run=run, store=store, config=settings, all_users=all_users)
    if report is not None:
        from vecall.doctor.examination import examine
        from vecall.doctor.report_rows import build_finding_rows
        from vecall.evaluation.report_builder import write_evaluation_report
        from vecall.pipeline.run import Run
        from vecall.pipeline.selection_report import read_selection_section

        epochs = [] if run is None else Run.open(run).read_epoch_metrics()
        findings = examine(run=run, store=store, config=settings, evaluation=evaluation)
        write_evaluation_report(
            report,
            evaluation,
            title=f"vecall: {run or store}",
            epochs=epochs,
            findings=build_finding_rows(findings),
            selection=None if run is None else read_selection_section(run),
        )
    if as_json:
        console.print_json(evaluation.as_json())
    else:
        _print_evaluation(evaluation)


def _print_evaluation(evaluation: "EvaluationReport") -> None:
    from vecall.evaluation.compare import WITH_HISTORY

    results = evaluation.results
    for seen in ("seen_excluded", "seen_included"):
        console.print_metrics(f"model recall, {seen.replace('_', ' items ')}", _insert_merged(evaluation, seen))
    if any(result.as_json(WITH_HISTORY) != result.as_json() for result in results.values()):
        metrics_by_model = {name: result.as_json(WITH_HISTORY)["seen_excluded"] for name, result in results.items()}
        console.print_metrics("model recall, seen items excluded, of users with a history", metrics_by_model)
    _print_channels(evaluation)
    _print_segments(evaluation)
    _print_ann_results(evaluation.ann_results)
    console.out.print(evaluation.route_summary)
    if evaluation.comparison is not None:
        console.out.print(f"{evaluation.comparison.message} {evaluation.comparison.advice}".strip())
    dropped = [f"dropped: {count:,} {reason}" for reason, count in evaluation.dropped.items()]
    console.out.print("\n".join([*evaluation.protocol, *dropped]))


def _insert_merged(evaluation: "EvaluationReport", seen: str) -> dict[str, "Mapping[str, float | None]"]:
    """Return the metrics by model, with those of the merged channels after `model` if they are of the same users."""
    metrics: dict[str, Mapping[str, float | None]] = {}
    for name, result in evaluation.results.items():
        metrics[name] = result.as_json()[seen]
        if name == "model" and evaluation.channels is not None and not evaluation.channels.is_sample:
            metrics["merged"] = evaluation.channels.merged_as_json()[seen]
    return metrics


def _print_channels(evaluation: "EvaluationReport") -> None:
    from vecall.evaluation.channel_table import build_channel_table

    if evaluation.channels is not None:
        table = build_channel_table(evaluation.channels, evaluation.results["model"].headline_key)
        console.print_table(table.title, ["", *table.columns], [[name, *cells] for name, cells in table.rows])


def _print_segments(evaluation: "EvaluationReport") -> None:
    from vecall.evaluation.segment_tables import build_segment_tables

    key = evaluation.results["model"].headline_key
    for table in build_segment_tables(evaluation.results):
        rows = [
            [bucket, f"{users:,}", *("–" if value is None else f"{value:.3f}" for value in values)]
            for bucket, users, values in table.rows
        ]
        columns = [column.removeprefix(f"{key}, ").removesuffix(", model") for column in table.columns]
        console.print_table(f"{key} by {table.name}", ["", "users", *columns], rows)


def _print_ann_results(results: Sequence["AnnBenchmarkResult"]) -> None:
    for result in results:
        console.out.print(
            f"{result.engine}: ANN recall@{result.k} {result.recall:.4f}, "
            f"query latency {result.p50_ms:.2f} ms (p50), {result.p99_ms:.2f} ms (p99)"
        )
