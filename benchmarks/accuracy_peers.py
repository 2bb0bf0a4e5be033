"""Measure models of other libraries on vecall's splits, on the same machine and in the same time.

    python benchmarks/accuracy_peers.py --venv DIR [--sets movielens steam] [--peers als bm25 sasrec dssm]
    python benchmarks/accuracy_peers.py --venv DIR --seconds 180

Each peer gets the training histories and the validation of vecall's own split, trains in a process of the virtual
environment DIR, which is created if it is not there, and returns the 500 best items of each test user. vecall's code
evaluates them: seen items excluded, all items ranked. Within the time of vecall's `auto`, as `accuracy.py` measured it
(or --seconds), neural peers train epoch by epoch and the others try settings; the best on the validation counts. A peer
that cannot be installed is left out. Results are kept in `results/accuracy-peers/`; a peer is measured again with
--fresh, or when it may take longer than it did.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from harness.accuracy.datasets import DATASETS
from harness.accuracy.metric_tables import KS, METRICS, get_chosen_preset, get_fit_seconds
from harness.accuracy.peer_process import (
    PEERS,
    PeerError,
    evaluate_lists,
    install_peer,
    read_versions,
    run_peer_process,
    write_split,
)
from harness.environment import DEFAULT_DATA_DIR, RESULTS_DIR, describe_environment, read_json, write_json
from harness.tables import console, print_table
from vecall.config import parse_config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.split import Split

DEFAULT_SECONDS = 180.0

Result = dict[str, Any]


def main() -> None:
    """Measure each peer on each data set that is available, and print them beside vecall."""
    options = _parse_options()
    for name in options.sets:
        directory = options.data / DATASETS[name].directory
        if not directory.is_dir():
            console.print(f"{name} is left out: {directory} does not exist")
            continue
        vecall_result = read_json(options.vecall_results / f"{name}-{options.preset}-{options.seed}.json")
        seconds = options.seconds or (get_fit_seconds(vecall_result) if vecall_result else DEFAULT_SECONDS)
        with tempfile.TemporaryDirectory(prefix="peers-") as work_dir:
            config = parse_config(DATASETS[name].build_settings(directory, Path(work_dir)))
            dataset = read_dataset(config.data, config.schema_)
            split = dataset.split(config.data)
            write_split(split, len(dataset.catalogue.items), Path(work_dir) / "split.npz")
            results = {
                peer: _measure_peer(peer, name, dataset, split, Path(work_dir), seconds, options)
                for peer in options.peers
            }
        _print_results(name, vecall_result, results)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True, help="directory of the peers' virtual environment")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--sets", choices=DATASETS, nargs="+", default=["movielens", "steam"])
    parser.add_argument("--peers", choices=PEERS, nargs="+", default=list(PEERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="time of each peer; default: that of vecall's result, or 180")
    parser.add_argument("--preset", default="auto", help="whose result of accuracy.py stands beside the peers")
    parser.add_argument("--vecall-results", type=Path, default=RESULTS_DIR / "accuracy")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "accuracy-peers")
    return parser.parse_args()


def _measure_peer(
    peer_name: str,
    dataset_name: str,
    dataset: Dataset,
    split: Split,
    work_dir: Path,
    seconds: float,
    options: argparse.Namespace,
) -> Result:
    """Train and evaluate a peer, or return the kept result; an empty one if it cannot be installed or fails."""
    path = options.out / f"{dataset_name}-{peer_name}-{options.seed}.json"
    kept = read_json(path)
    if kept and kept["allowed_seconds"] >= round(seconds, 1) and not options.fresh:
        return kept  # more time than that of vecall does not flatter it
    peer = PEERS[peer_name]
    console.print(f"{dataset_name}, {peer.title}", style="dim")
    environment = describe_environment()
    try:
        python = install_peer(peer, options.venv.absolute())
        versions = read_versions(python, peer.packages)
        lists = run_peer_process(python, peer, work_dir / "split.npz", seconds=seconds, seed=options.seed)
    except PeerError as error:
        console.print(f"{peer.title} is left out: {error}")
        return {}
    result = {
        "set": dataset_name,
        "peer": peer.title,
        "seed": options.seed,
        "facts": environment,
        "peer_versions": versions,
        "allowed_seconds": round(seconds, 1),
        "seconds": lists["seconds"],
        "tried": lists["tried"],
        "metrics": evaluate_lists(lists["rows"], dataset, split, KS),
    }
    write_json(path, result)
    return result


def _print_results(name: str, vecall_result: Result, results: dict[str, Result]) -> None:
    rows = []
    if vecall_result:
        metrics = vecall_result["model"]["seen_excluded"]
        title = f"vecall, {get_chosen_preset(vecall_result)}"
        rows.append([title, f"{get_fit_seconds(vecall_result):.0f}", *_format_metrics(metrics)])
    rows += [
        [result["peer"], f"{result['seconds']:.0f}", *_format_metrics(result["metrics"])]
        for result in results.values()
        if result
    ]
    print_table(f"{name}, seen items excluded", ["", "seconds", *METRICS], rows)
    for result in filter(None, results.values()):
        best = max(result["tried"], key=lambda tried: next(v for k, v in tried.items() if k.startswith("valid_recall")))
        console.print(f"{result['peer']}: {len(result['tried'])} tried, best {best['tried']}", style="dim")


def _format_metrics(metrics: dict[str, float]) -> list[str]:
    return [f"{metrics[metric]:.4f}" for metric in METRICS]


if __name__ == "__main__":
    main()
