"""A process that writes to a store until it is killed by `live/test_crash_recovery.py`.

It reads a pickled `WriterOrder` from stdin, and prints a JSON list per line:

    ["open"]                     the store is open
    ["begin", operation]         an operation starts
    ["done", answer]             it was acknowledged
    ["rejected"]                 it was rejected, and changed nothing
    ["observed", store state]    what the store contains; only with automatic compactions, which cannot be predicted
"""

import contextlib
import json
import os
import pickle
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from support.store_oracle import (
    DIM,
    N_POSSIBLE_IDS,
    StoreOracle,
    check_searchable,
    draw_delete,
    draw_upsert,
    execute,
    read_all_items,
)
from vecall.errors import DeltaFullError, StoreError
from vecall.index.kernels import compile_kernels
from vecall.live import compactor
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller, open_recaller
from vecall.release.store import Store

OPERATION_WEIGHTS: dict[str, float] = {
    "upsert": 10,
    "delete": 5,
    "read": 5,
    "snapshot": 2,
    "publish": 3,
    "compact": 2,
    "activate": 3,
    "rollback": 1,
    "prune": 3,
}
# With automatic compactions: their base must stay served for a while, or they are not switched to.
AUTO_COMPACT_WEIGHTS = OPERATION_WEIGHTS | {
    "publish": 0.4,
    "compact": 0.2,
    "activate": 0.2,
    "rollback": 0.1,
    "prune": 0.4,
}
PAUSE_SECONDS = 0.005  # between operations, with automatic compactions
STORE_OPERATIONS = ("publish", "compact", "activate", "rollback", "prune")


@dataclass(frozen=True)
class WriterOrder:
    """The task of a writer.

    Attributes:
        store_dir: directory of the store.
        oracle: the expected state of the store.
        seed: seed of the choice of operations.
        first_number: number of the first operation.
        auto_compact: whether automatic compactions run.
    """

    store_dir: Path
    oracle: StoreOracle
    seed: int
    first_number: int
    auto_compact: bool


def emit(*line: Any) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def main() -> None:
    compile_kernels()
    order: WriterOrder = pickle.load(sys.stdin.buffer)
    compactor._MIN_DELTA_ITEMS, compactor._MIN_TOMBSTONES, compactor._MAX_TOMBSTONE_SHARE = 30, 30, 0.0
    with open_recaller(
        order.store_dir,
        writable=True,
        auto_compact=order.auto_compact,
        max_delta_items=400 if order.auto_compact else 100_000,
    ) as recaller:
        assert read_all_items(recaller) == order.oracle.served_items
        emit("open")
        run_writer(order, recaller, Random(order.seed))


def run_writer(order: WriterOrder, recaller: Recaller, rng: Random) -> None:
    oracle, number = order.oracle, order.first_number
    weights = AUTO_COMPACT_WEIGHTS if order.auto_compact else OPERATION_WEIGHTS
    while True:
        operation = choose_operation(oracle, rng, number, weights)
        time.sleep(PAUSE_SECONDS if order.auto_compact else 0)
        number += 1
        emit("begin", operation)
        try:
            answer = execute(operation, order.store_dir, recaller, oracle)
        except DeltaFullError:
            emit("rejected")
            time.sleep(0.02)
            continue
        except StoreError:
            if not (order.auto_compact and operation[0] == "rollback"):  # the parent release may be pruned by now
                raise
            emit("rejected")
            continue
        emit("done", answer)
        if not order.auto_compact:
            oracle.apply_acknowledged(operation, answer)
        else:
            oracle.apply_concurrent(operation, answer)
        if order.auto_compact and (operation[0] in STORE_OPERATIONS or recaller.release != oracle.served_release):
            observed = read_store_state(order.store_dir, recaller)
            emit("observed", observed)
            oracle.adopt_observed(observed)
        check_visible(recaller, oracle, operation)


def choose_operation(oracle: StoreOracle, rng: Random, number: int, weights: dict[str, float]) -> list[Any]:
    (kind,) = rng.choices([*weights], [*weights.values()])
    activate = rng.random() < 0.5
    if kind in ("upsert", "delete", "read"):
        return [kind, number]
    if kind == "publish" and (oracle.exported_tables is not None or rng.random() < 0.3):
        return [kind, f"p{number}", "new" if oracle.exported_tables and rng.random() < 0.7 else "old", activate]
    if kind == "compact":
        return [kind, f"c{number}", activate]
    if kind == "activate":
        return [kind, rng.choice([name for name, release in oracle.releases.items() if release.items is not None])]
    if kind == "rollback" and oracle.releases[str(oracle.current)].parent in oracle.releases:
        return [kind]
    if kind == "prune":
        return [kind, rng.randint(0, 3)]
    return ["snapshot"]


def read_store_state(store_dir: Path, recaller: Recaller) -> dict[str, Any]:
    store = Store.open(store_dir)
    served = recaller.release  # read first: otherwise it might be a release that is not listed yet
    releases = {
        manifest.name: (manifest.journal_seq, manifest.tables_seq, manifest.parent)
        for manifest in reversed(store.list_releases())
    }
    return {"served": served, "current": store.get_current().release, "releases": releases}


def check_visible(recaller: Recaller, oracle: StoreOracle, operation: list[Any]) -> None:
    """Check that the operation that was just acknowledged is visible."""
    match operation:
        case ["upsert", number]:
            check_searchable(recaller, dict([*draw_upsert(number).items()][:3]))
        case ["delete", number]:
            answer = recaller.recall(Query(vector=[0.0] * (DIM - 1) + [1.0], k=N_POSSIBLE_IDS))
            assert answer.exhausted
            assert not {*answer.ids} & {*draw_delete(number)}
            assert len(answer.ids) == len(oracle.served_items)
        case ["read", number]:
            assert read_all_items(recaller) == oracle.served_items
            check_searchable(recaller, dict(Random(number).sample([*oracle.served_items.items()], 5)))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
