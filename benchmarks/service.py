"""HTTP end to end beside the bare calls that it stands on: one run, one machine, JSON in, 500 ids and scores out.

    python benchmarks/service.py [--items 1_000_000] [--dim 128] [--seconds 10] [--work DIR]

The bare loop encodes a history by ONNX Runtime and searches the index, in one thread of a process of its own. HTTP is
`vecall serve` by one process and by one for each core, asked with the same histories by `http_load.py` from this
process; the most a second by `wrk` too, where it is installed. ANN recall is that of HTTP answers.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from clustered import Clusters
from facts import RESULTS, facts, load_average, read_json, write_json
from http_load import Connection, closed, open_loop, post, wrk
from service_users import HISTORY, K, asked
from tables import console, show

from vecall.data.fields import frame_of
from vecall.release.bundle import open_release
from vecall.release.store import Store

CONNECTIONS = (1, 2, 4, 8)
PROCESSES = (1, os.cpu_count() or 1)
_LIMIT_SHARE = 0.6
_JUDGED = 100  # answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--encoders", nargs="+", default=["mean", "causal"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vecall-service")
    parser.add_argument("--out", type=Path, default=RESULTS / "service.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for encoder in options.encoders:
        store = options.work / f"{encoder}-{options.items}-{options.dim}"
        if not (store / "CURRENT").exists():
            command = [sys.executable, str(Path(__file__).with_name("service_store.py")), str(store)]
            command += ["--items", str(options.items), "--dim", str(options.dim), "--encoder", encoder]
            subprocess.run(command, check=True)
        result = {"facts": facts()} | measure(store, Clusters(options.items, options.dim), options.seconds)
        write_json(options.out, read_json(options.out) | {encoder: result | {"load_after": load_average()}})
        _show(encoder, result)


def measure(store: Path, pool: Clusters, seconds: float) -> dict[str, Any]:
    """Bare, then HTTP by connections, then the open loop with the bare loop once more beside it in time."""
    histories = asked(pool)
    requests = [post("/v1/recall", {"history": one, "k": K, "exclude_seen": False}) for one in histories]
    result: dict[str, Any] = {"k": K, "history": HISTORY, "bare": _bare(store, seconds)}
    with Served(store) as served:
        result["ann_recall"] = _ann_recall(store, served.port, requests[:_JUDGED], histories)
    result["by_processes"] = {str(count): _served(store, count, requests, seconds) for count in PROCESSES}
    return result | {"bare_after": _bare(store, seconds)}


def _served(store: Path, processes: int, requests: list[bytes], seconds: float) -> dict[str, Any]:
    """By connections, each of which asks again at once; then at a part of the most that this gave."""
    with Served(store, "--processes", str(processes)) as served:
        closed(served.port, requests, connections=4 * processes, seconds=2)  # warm up
        by_connections = {
            str(count): closed(served.port, requests, connections=count, seconds=seconds).figures()
            for count in CONNECTIONS
        }
        by_wrk = wrk(served.port, requests, connections=max(CONNECTIONS), seconds=seconds)
        limit = max([one["per_second"] for one in by_connections.values()] + ([by_wrk] if by_wrk else []))
        opened = open_loop(served.port, requests, rate=_LIMIT_SHARE * limit, seconds=2 * seconds).figures()
    return {"http": by_connections, "wrk_per_second": by_wrk, "limit_per_second": limit, "open_at_60_percent": opened}


class Served:
    """`vecall serve`, while the `with` block runs."""

    def __init__(self, store: Path, *options: str) -> None:
        self._command = [sys.executable, "-m", "vecall", "serve", "--store", str(store), "--port", "0", *options]

    def __enter__(self) -> "Served":
        self._log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(self._command, stderr=self._log, stdout=subprocess.DEVNULL)
        while not (found := re.search(r"running on http://[^ ]*?:(\d+)", self.log())):
            if self.process.poll() is not None:
                raise SystemExit(self.log())
            time.sleep(0.1)
        self.port = int(found.group(1))
        self._wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._log.close()

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def _wait_until_ready(self) -> None:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=10).close()
            except urllib.error.URLError:  # it does not listen yet, or is not ready
                time.sleep(0.1)
            else:
                return
        raise SystemExit("the service does not become ready")


def _bare(store: Path, seconds: float) -> dict[str, float]:
    script = Path(__file__).with_name("service_bare.py")
    done = subprocess.run(
        [sys.executable, str(script), str(store), str(seconds)], capture_output=True, text=True, check=True
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _ann_recall(store: Path, port: int, requests: list[bytes], histories: list[list[int]]) -> float:
    """Share of the exact answer in the answers over HTTP."""

    async def ask() -> list[list[int]]:
        line = Connection(port)
        answers = [json.loads((await line.ask(request))[1])["ids"] for request in requests]
        line.close()
        return answers

    answers = asyncio.run(ask())
    release = open_release(Store.open(store))
    shares = []
    for history, ids in zip(histories, answers, strict=False):
        vectors = release.index.vectors(release.items.rows(history))[None]
        assert release.encoder is not None
        vector = release.encoder.encode_users(frame_of([{}], {}), vectors, np.array([len(history)]))
        exact = release.items.ids(release.index.search_exact(vector, K).rows[0])
        shares.append(len(set(exact) & set(ids)) / K)
    return round(float(np.mean(shares)), 4)


def _show(encoder: str, result: dict[str, Any]) -> None:
    bare = result["bare"]
    lines = {"bare calls": bare}
    for processes, served in result["by_processes"].items():
        name = "1 process" if processes == "1" else f"{processes} processes"
        lines |= {f"{name}, {count} at a time": one for count, one in served["http"].items()}
        lines[f"{name}, {_LIMIT_SHARE:.0%} of the limit"] = served["open_at_60_percent"]
    rows = [
        [
            *(name, f"{one['p50_ms']:.2f}", f"{one['p99_ms']:.2f}", f"{one['per_second']:.0f}"),
            *(f"{one['p50_ms'] / bare['p50_ms']:.2f}", f"{one['generator_cpu']:.2f}" if "generator_cpu" in one else ""),
        ]
        for name, one in lines.items()
    ]
    columns = ["", "p50 ms", "p99 ms", "a second", "x bare p50", "generator, cores"]
    show(f"{encoder} tower, k {K}, ANN recall {result['ann_recall']}", columns, rows)
    cores = facts()["machine"]["cores"]
    reach = 0.5 * cores / (bare["p50_ms"] / 1e3)
    limit = max(served["limit_per_second"] for served in result["by_processes"].values())
    console.print(f"limit {limit:.0f} a second; 0.5 × {cores} cores / bare p50 = {reach:.0f}")


if __name__ == "__main__":
    main()
