"""Measure the DSSM baseline: the claims of its design on synthetic pools, and its model on MovieLens.

python benchmarks/dssm_baseline.py [--pools 10_000 1_000_000] [--quick] [--no-movielens] [--fresh] [--out DIR]

Results are kept in results/dssm.json. Each part is written as soon as it is done; a part that the file holds is not
measured again.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from harness.dssm import movielens
from harness.dssm.pool import EF, EF_CONSTRUCTION, MAX_TRAINING_ITEMS, K, M, PoolBenchmark
from harness.dssm.synthetic_market import AFFINITY_THRESHOLDS, ITEM_FEATURE_DIM, USER_FEATURE_DIM, SyntheticMarket
from harness.environment import RESULTS_DIR, read_json, read_peak_memory_gib, write_json
from harness.tables import console, print_table
from vecall.console import configure_logging
from vecall.errors import ConfigError
from vecall.quickstart.movielens import find_data_dir

CLAIMED_LATENCY_MS = 10.0
CLAIMED_ANN_RECALL = 0.95
_RESULTS_FILE = "dssm.json"


def main() -> None:
    """Measure the pools by kind of labels, then MovieLens."""
    options = _parse_options()
    configure_logging(verbose=False)
    pools = options.pools or ([10_000] if options.quick else [10_000, 1_000_000])
    with tempfile.TemporaryDirectory(prefix="dssm-") as temporary_dir:
        work_dir = options.work or Path(temporary_dir)
        for labels in options.labels:
            run_pools(pools if labels == "balanced" else [min(pools)], labels, options, work_dir)
        if not options.no_movielens and has_movielens():
            run_movielens(options, work_dir)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, nargs="+", help="numbers of items; default 10_000 1_000_000")
    parser.add_argument("--quick", action="store_true", help="only the pool of 10_000 items, unless --pools is given")
    parser.add_argument(
        "--labels",
        choices=AFFINITY_THRESHOLDS,
        nargs="+",
        default=list(AFFINITY_THRESHOLDS),
        help="skewed: smallest pool only",
    )
    parser.add_argument("--known", type=int, default=2_000, help="number of users to train on")
    parser.add_argument("--users", type=int, default=1_000, help="number of users to recall for, unknown to training")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timed recalls; the quietest counts")
    parser.add_argument("--no-movielens", action="store_true", help="leave MovieLens out")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--work", type=Path, help="new directory that keeps tables, runs and stores")
    parser.add_argument(
        "--retime", action="store_true", help="time recalls again on the stores in --work; the quieter result is kept"
    )
    parser.add_argument("--out", type=Path, default=RESULTS_DIR)
    return parser.parse_args()


def run_pools(pools: list[int], labels: str, options: argparse.Namespace, work_dir: Path) -> None:
    """Measure the pools that the results lack, and print all.

    Args:
        pools: numbers of items.
        labels: key of AFFINITY_THRESHOLDS.
        options: of the command line.
        work_dir: directory for tables, runs and stores.
    """
    path = options.out / _RESULTS_FILE
    results = read_json(path).get(labels, {})
    missing = [pool for pool in pools if options.fresh or str(pool) not in results]
    market = SyntheticMarket(AFFINITY_THRESHOLDS[labels])
    benchmark = PoolBenchmark(work_dir / labels, market, options.known, market.make_unseen_users(options.users))
    if missing:
        n_training_items = min(MAX_TRAINING_ITEMS, *missing)
        console.print(f"{labels} labels: training on {n_training_items:,} items", style="dim")
        training = benchmark.train(n_training_items)
    for pool in missing:
        console.print(f"{labels} labels: measuring {pool:,} items", style="dim")
        result = benchmark.measure(pool, rounds=options.rounds) | {"training": training}
        result["claims"] = check_claims(result)
        result["peak_memory_gib"] = round(read_peak_memory_gib(), 2)
        results |= {str(pool): result}
        write_json(path, read_json(path) | {"design": describe_design(), labels: results})
    for pool in pools:
        result = results[str(pool)]
        if options.retime and pool not in missing and (benchmark.work_dir / f"store-{pool}").is_dir():
            serving = benchmark.measure_serving(pool, rounds=options.rounds)
            result["recall"] = min(result["recall"], serving, key=lambda timed: timed["p50_ms"])
            result["claims"] = check_claims(result)
            write_json(path, read_json(path) | {labels: results})
        print_pool(labels, result)


def describe_design() -> dict[str, object]:
    """Return the numbers of the baseline's design."""
    return {
        "user_features": USER_FEATURE_DIM,
        "item_features": ITEM_FEATURE_DIM,
        "towers": "D 128, MLP (256, 128), BatchNorm, ReLU, dropout 0.3; BCE, Adam 1e-3, batch 128",
        "index": {"M": M, "ef_construction": EF_CONSTRUCTION, "ef": EF},
        "k": K,
    }


def check_claims(result: dict[str, Any]) -> list[dict[str, object]]:
    """Return each claim of the design, what was measured of it, and whether it holds."""
    at_ef, recall, identical = result["ann"]["at_asked_ef"], result["recall"], result["identical"]
    min_ef = result["ann"]["least_ef_for"]
    return [
        {
            "claim": f"ANN recall@{K} > {CLAIMED_ANN_RECALL:.0%} at ef {EF}",
            "measured": f"{at_ef['ann_recall']:.4f} ± {at_ef['ci95']:.4f}, searched at ef = max(ef, k) = {at_ef['ef']}"
            + "; "
            + ", ".join(f"{target} from ef {ef or '(beyond the sweep)'}" for target, ef in min_ef.items()),
            "holds": at_ef["ann_recall"] > CLAIMED_ANN_RECALL,
        },
        {
            "claim": f"one recall < {CLAIMED_LATENCY_MS:.0f} ms, tower included",
            "measured": f"p50 {recall['p50_ms']:.2f} ms, p99 {recall['p99_ms']:.2f} ms "
            f"(tower and request {recall['tower_p50_ms']:.2f}, search {recall['search_p50_ms']:.2f})",
            "holds": recall["p99_ms"] < CLAIMED_LATENCY_MS,
        },
        {
            "claim": "save and load gives identical answers",
            "measured": f"{identical['identical']} of {identical['users']} users, ids and scores to the bit",
            "holds": identical["identical"] == identical["users"],
        },
    ]


def print_pool(labels: str, result: dict[str, Any]) -> None:
    """Print the results of a pool."""
    training, ann = result["training"], result["ann"]
    claims = [[claim["claim"], claim["measured"], "yes" if claim["holds"] else "NO"] for claim in result["claims"]]
    title = f"{result['items']:,} items, {labels} labels ({training['taken_of_shown']:.0%} positive)"
    print_table(title, ["claim of the DSSM baseline", "measured", "holds"], claims, align_left=3)
    for line in _format_measures(result):
        console.print(line)
    columns = ["ef", f"ANN recall@{K}", "± 95 %", "worst 1 %", "search p50 ms"]
    keys = ("ann_recall", "ci95", "worst_1_percent", "search_p50_ms")
    rows = [[str(point["ef"]), *(f"{point[key]:.4f}" for key in keys)] for point in ann["ladder"]]
    print_table("ANN recall by ef, one query at a time on one thread", columns, rows)


def _format_measures(result: dict[str, Any]) -> list[str]:
    """Format what was measured beside the claims, a line per topic."""
    facts, training, build, size = result["facts"], result["training"], result["build"], result["size"]
    preferences, serving, ann = result["planted"], result["recall"], result["ann"]
    at_smaller_k = ", ".join(f"@{k} {point['ann_recall']:.4f}" for k, point in ann["at_smaller_k"].items())
    added_mib, peak_mib = ((serving[key] - serving["rss_before"]) / 2**20 for key in ("rss_after", "rss_peak"))
    return [
        f"ANN recall at ef {EF}, for k below it: {at_smaller_k}",
        f"trained on {training['items']:,} items in {training['seconds']:.0f} s; true probability to be taken: "
        f"{preferences['taken_of_all']:.3f} of all items, {preferences['taken_of_exact_top_100']:.3f} of the towers' "
        f"top 100, {preferences['taken_of_best_100']:.3f} of the best 100",
        f"cosines of users and items: mean {preferences['cosine_mean']:.3f}, SD within a user "
        f"{preferences['cosine_sd_within_a_user']:.4f}",
        f"encoded in {build['encoding_items_seconds']:.1f} s, graph built on {build['threads']} threads in "
        f"{build['graph_seconds']:.1f} s, opened in {serving['open_seconds']:.2f} s",
        f"bytes per item: index file {size['index_file_bytes_an_item']:.0f}, release "
        f"{size['release_bytes_an_item']:.0f}; opening and recalls add {added_mib:.0f} MiB to a process, at peak "
        f"{peak_mib:.0f} MiB",
        f"{facts['machine']['cpu']}, {facts['machine']['cores']} cores, load {serving['load_average']} in the quietest "
        f"round of {len(serving['rounds'])}; {ann['queries']} users",
    ]


def has_movielens() -> bool:
    """Return whether MovieLens is in the repository, and say where it should be if not."""
    try:
        find_data_dir(None)
    except ConfigError as error:
        console.print(f"MovieLens is left out: {error}")
        return False
    return True


def run_movielens(options: argparse.Namespace, work_dir: Path) -> None:
    """Measure each model and seed that the results lack, and print means and deviations."""
    results = []
    for name, result, exists in movielens.iterate_results(options.out, work_dir, fresh=options.fresh):
        status = "measured before" if exists else f"{result['fit_seconds']:.0f} s"
        console.print(f"{name}: {status}", style="dim")
        results.append(result)
    summary = movielens.summarize(results)
    path = options.out / _RESULTS_FILE
    write_json(path, read_json(path) | {"movielens": summary})
    metrics = list(summary["models"]["dssm"]["mean"])
    rows = []
    for name, model in summary["models"].items():
        deviation = model["sd"] or {}
        cells = [f"{model['mean'][m]:.4f}" + (f" ± {deviation[m]:.4f}" if m in deviation else "") for m in metrics]
        rows.append([name, str(model["seeds"]), *cells])
    print_table(summary["protocol"], ["mean ± SD", "seeds", *metrics], rows)


if __name__ == "__main__":
    main()
