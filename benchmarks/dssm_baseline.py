"""The founding design's five steps with its numbers, its claims beside what was measured, and its model on MovieLens.

python benchmarks/founding.py [--pools 10_000 1_000_000] [--quick] [--no-movielens] [--fresh] [--out DIR]

Results lie in results/founding.json; each part is written as it is done, and not run again while it lies there.
"""

import argparse
import resource
import tempfile
from pathlib import Path
from typing import Any

from harness.dssm import movielens
from harness.environment import RESULTS_DIR, read_json, write_json
from harness.dssm.pool import EF, EF_CONSTRUCTION, MAX_TRAINING_ITEMS, K, M, PoolBenchmark
from harness.dssm.synthetic_market import AFFINITY_THRESHOLDS, ITEM_FEATURE_DIM, USER_FEATURE_DIM, SyntheticMarket
from rich.console import Console
from rich.table import Table

from vecall.console import configure_logging
from vecall.errors import ConfigError
from vecall.quickstart.movielens import find_data_dir

CLAIMED_LATENCY_MS = 10.0  # the claims
CLAIMED_ANN_RECALL = 0.95

console = Console(width=140, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, nargs="+", help="numbers of items; default 10_000 1_000_000")
    parser.add_argument("--quick", action="store_true", help="the pool of 10_000 alone, unless --pools says otherwise")
    parser.add_argument(
        "--labels",
        choices=AFFINITY_THRESHOLDS,
        nargs="+",
        default=list(AFFINITY_THRESHOLDS),
        help="skewed: smallest pool only",
    )
    parser.add_argument("--known", type=int, default=2_000, help="users to train on")
    parser.add_argument("--users", type=int, default=1_000, help="strangers who ask")
    parser.add_argument("--rounds", type=int, default=5, help="of timed requests; the quietest counts")
    parser.add_argument("--no-movielens", action="store_true", help="leave MovieLens out")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--work", type=Path, help="a new folder that keeps tables, runs and stores")
    parser.add_argument("--retime", action="store_true", help="time recall again on the stores in --work; quieter wins")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR)
    asked = parser.parse_args()
    configure_logging(verbose=False)
    pools = asked.pools or ([10_000] if asked.quick else [10_000, 1_000_000])
    with tempfile.TemporaryDirectory(prefix="founding-") as passing:
        work = asked.work or Path(passing)
        for labels in asked.labels:
            run_pools(pools if labels == "balanced" else [min(pools)], labels, asked, work)
        if not asked.no_movielens and has_movielens():
            run_movielens(asked, work)


def run_pools(pools: list[int], labels: str, options: argparse.Namespace, work_dir: Path) -> None:
    """Each pool by itself; the towers are trained once, where a pool is to be measured at all."""
    path = options.out / "founding.json"
    kept = read_json(path).get(labels, {})
    missing = [pool for pool in pools if options.fresh or str(pool) not in kept]
    market = SyntheticMarket(AFFINITY_THRESHOLDS[labels])
    bench = PoolBenchmark(work_dir / labels, market, options.known, market.make_unseen_users(options.users))
    if missing:
        console.print(f"{labels} labels: training on {min(MAX_TRAINING_ITEMS, *missing):,} items", style="dim")
        training = bench.train(min(MAX_TRAINING_ITEMS, *missing))
    for pool in missing:
        console.print(f"{labels} labels: measuring {pool:,} items", style="dim")
        measured = bench.measure(pool, rounds=options.rounds) | {"training": training}
        measured["claims"] = check_claims(measured)
        measured["peak_memory_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        kept |= {str(pool): measured}
        write_json(path, read_json(path) | {"design": describe_design(), labels: kept})
    for pool in pools:
        if options.retime and pool not in missing and (bench.work_dir / f"store-{pool}").is_dir():
            again, _ = bench.measure_serving(pool, rounds=options.rounds)
            kept[str(pool)]["recall"] = min(kept[str(pool)]["recall"], again, key=lambda one: one["p50_ms"])
            kept[str(pool)]["claims"] = check_claims(kept[str(pool)])
            write_json(path, read_json(path) | {labels: kept})
        print_pool(labels, kept[str(pool)])


def describe_design() -> dict[str, object]:
    """The founding design's numbers."""
    return {
        "user_features": USER_FEATURE_DIM,
        "item_features": ITEM_FEATURE_DIM,
        "towers": "D 128, MLP (256, 128), BatchNorm, ReLU, dropout 0.3; BCE, Adam 1e-3, batch 128",
        "index": {"M": M, "ef_construction": EF_CONSTRUCTION, "ef": EF},
        "k": K,
    }


def check_claims(measured: dict[str, Any]) -> list[dict[str, object]]:
    """What the design claims, what was measured, and whether it holds."""
    at, recall, same = measured["ann"]["at_asked_ef"], measured["recall"], measured["identical"]
    reached = measured["ann"]["least_ef_for"]
    return [
        {
            "claim": f"ANN recall@{K} > {CLAIMED_ANN_RECALL:.0%} at ef {EF}",
            "measured": f"{at['ann_recall']:.4f} ± {at['ci95']:.4f}, searched at ef = max(ef, k) = {at['ef']}; "
            + ", ".join(f"{target} from ef {ef or '(beyond the ladder)'}" for target, ef in reached.items()),
            "holds": at["ann_recall"] > CLAIMED_ANN_RECALL,
        },
        {
            "claim": f"one recall < {CLAIMED_LATENCY_MS:.0f} ms, tower included",
            "measured": f"p50 {recall['p50_ms']:.2f} ms, p99 {recall['p99_ms']:.2f} ms "
            f"(tower and request {recall['tower_p50_ms']:.2f}, search {recall['search_p50_ms']:.2f})",
            "holds": recall["p99_ms"] < CLAIMED_LATENCY_MS,
        },
        {
            "claim": "save and load gives identical answers",
            "measured": f"{same['identical']} of {same['users']} users, ids and scores to the bit",
            "holds": same["identical"] == same["users"],
        },
    ]


def print_pool(labels: str, result: dict[str, Any]) -> None:
    """One pool, for people."""
    facts, training, build, size = result["facts"], result["training"], result["build"], result["size"]
    verdicts = [[claim["claim"], claim["measured"], "yes" if claim["holds"] else "NO"] for claim in result["claims"]]
    title = f"{result['items']:,} items, {labels} labels ({training['taken_of_shown']:.0%} positive)"
    print_table(title, ["the founding design claims", "measured", "holds"], verdicts)
    planted, served, ann = result["planted"], result["recall"], result["ann"]
    smaller = ", ".join(f"@{k} {step['ann_recall']:.4f}" for k, step in ann["at_smaller_k"].items())
    console.print(
        f"ANN recall at ef {EF}, where k does not raise it: {smaller}\n"
        f"trained on {training['items']:,} items in {training['seconds']:.0f} s; planted chance to be taken: "
        f"{planted['taken_of_all']:.3f} of all items, {planted['taken_of_exact_top_100']:.3f} of the towers' top 100, "
        f"{planted['taken_of_best_100']:.3f} of the best 100\n"
        f"cosines of users and items: mean {planted['cosine_mean']:.3f}, SD within a user "
        f"{planted['cosine_sd_within_a_user']:.4f}\n"
        f"encoded in {build['encoding_items_seconds']:.1f} s, graph built on {build['threads']} threads in "
        f"{build['graph_seconds']:.1f} s, opened in {served['open_seconds']:.2f} s\n"
        f"bytes an item: index file {size['index_file_bytes_an_item']:.0f}, release "
        f"{size['release_bytes_an_item']:.0f}; opening adds "
        f"{(served['rss_after'] - served['rss_before']) / 2**20:.0f} MiB to a process, at most "
        f"{(served['rss_peak'] - served['rss_before']) / 2**20:.0f} on the way\n"
        f"{facts['machine']['cpu']}, {facts['machine']['cores']} cores, load {served['load_average']} in the quietest "
        f"round of {len(served['rounds'])}; {ann['queries']} users"
    )
    columns = ["ef", f"ANN recall@{K}", "± 95 %", "worst 1 %", "search p50 ms"]
    keys = ("ann_recall", "ci95", "worst_1_percent", "search_p50_ms")
    ladder = [[str(step["ef"]), *(f"{step[key]:.4f}" for key in keys)] for step in ann["ladder"]]
    print_table("what a wider search gives, one query on one thread", columns, ladder)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A plain table."""
    made = Table(*columns, title=f"\n{title}", title_justify="left", box=None, pad_edge=False)
    for row in rows:
        made.add_row(*row)
    console.print(made)


def has_movielens() -> bool:
    """Whether the repository's copy is there."""
    try:
        find_data_dir(None)
    except ConfigError as error:
        console.print(f"MovieLens is left out: {error}")
        return False
    return True


def run_movielens(options: argparse.Namespace, work_dir: Path) -> None:
    """The floor, cell by cell."""
    done = []
    for name, cell, there in movielens.iterate_results(options.out, work_dir, fresh=options.fresh):
        how = "there already" if there else f"{cell['fit_seconds']:.0f} s"
        console.print(f"{name}: {how}", style="dim")
        done.append(cell)
    floor = movielens.summarize(done)
    path = options.out / "founding.json"
    write_json(path, read_json(path) | {"movielens": floor})
    metrics = list(floor["models"]["founding"]["mean"])
    rows = []
    for name, one in floor["models"].items():
        spread = one["sd"] or {}
        cells = (f"{one['mean'][m]:.4f}" + (f" ± {spread[m]:.4f}" if m in spread else "") for m in metrics)
        rows.append([name, str(one["seeds"]), *cells])
    print_table(floor["protocol"], ["mean ± SD", "seeds", *metrics], rows)


if __name__ == "__main__":
    main()
