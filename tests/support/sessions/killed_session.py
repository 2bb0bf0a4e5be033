"""A writer that is to be killed: what `live/test_killed.py` starts, and what it says of itself until then.

It is handed an `Order`, and says a line of JSON for each of these: `open`; `begin` and the operation; `done`, once that
was acknowledged; `refused`, where it was and changed nothing; `seen`, what it finds in the store, where compactions
go on beside it and their results cannot be foretold.
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

from support.store_oracle import ALL, D, Model, check_found, deleted, perform, shown, upserted
from vecall.errors import DeltaFull, StoreError
from vecall.index.kernels import compile_kernels
from vecall.live import compactor
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller, open_recaller
from vecall.release.store import Store

SHARES: dict[str, float] = {
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
# Beside compactions, which are only gone over to while what they were made of is served.
SELDOM = SHARES | {"publish": 0.4, "compact": 0.2, "activate": 0.2, "rollback": 0.1, "prune": 0.4}
PAUSE = 0.005  # seconds between operations then
OF_STORE = ("publish", "compact", "activate", "rollback", "prune")


@dataclass(frozen=True)
class Order:
    """What a writer is to do.

    Attributes:
        folder: of the store.
        model: what is in it.
        seed: of its choices.
        number: of its first operation.
        automatic: whether compactions go on beside it.
    """

    folder: Path
    model: Model
    seed: int
    number: int
    automatic: bool


def say(*line: Any) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def main() -> None:
    compile_kernels()
    order: Order = pickle.load(sys.stdin.buffer)
    compactor._MIN_DELTA_ITEMS, compactor._MIN_TOMBSTONES, compactor._MAX_TOMBSTONE_SHARE = 30, 30, 0.0
    delta_max = 400 if order.automatic else 100_000
    opened = open_recaller(order.folder, writable=True, auto_compact=order.automatic, max_delta_items=delta_max)
    with opened as recaller:
        assert shown(recaller) == order.model.serving
        say("open")
        run(order, recaller, Random(order.seed))


def run(order: Order, recaller: Recaller, chance: Random) -> None:
    model, number = order.model, order.number
    while True:
        operation = choose(model, chance, number, SELDOM if order.automatic else SHARES)
        time.sleep(PAUSE if order.automatic else 0)
        number += 1
        say("begin", operation)
        try:
            answer = perform(operation, order.folder, recaller, model)
        except DeltaFull:
            say("refused")
            time.sleep(0.02)
            continue
        except StoreError:
            if not (order.automatic and operation[0] == "rollback"):  # what it would go back to may be gone by now
                raise
            say("refused")
            continue
        say("done", answer)
        if not order.automatic:
            model.acknowledged(operation, answer)
        else:
            model.told(operation, answer)
        if order.automatic and (operation[0] in OF_STORE or recaller.release != model.served):
            seen = what_is_there(order.folder, recaller)
            say("seen", seen)
            model.see(seen)
        check(recaller, model, operation)


def choose(model: Model, chance: Random, number: int, shares: dict[str, float]) -> list[Any]:
    (kind,) = chance.choices([*shares], [*shares.values()])
    activate = chance.random() < 0.5
    if kind in ("upsert", "delete", "read"):
        return [kind, number]
    if kind == "publish" and (model.tables is not None or chance.random() < 0.3):
        return [kind, f"p{number}", "new" if model.tables and chance.random() < 0.7 else "old", activate]
    if kind == "compact":
        return [kind, f"c{number}", activate]
    if kind == "activate":
        return [kind, chance.choice([name for name, made in model.releases.items() if made.holds is not None])]
    if kind == "rollback" and model.releases[str(model.current)].parent in model.releases:
        return [kind]
    if kind == "prune":
        return [kind, chance.randint(0, 3)]
    return ["snapshot"]


def what_is_there(folder: Path, recaller: Recaller) -> dict[str, Any]:
    store = Store.open(folder)
    served = recaller.release  # before the rest, or it might not be listed
    listed = {one.name: (one.journal_seq, one.tables_seq, one.parent) for one in reversed(store.list_releases())}
    return {"served": served, "current": store.get_current().release, "releases": listed}


def check(recaller: Recaller, model: Model, operation: list[Any]) -> None:
    """What was acknowledged a moment ago is seen."""
    match operation:
        case ["upsert", number]:
            check_found(recaller, dict([*upserted(number).items()][:3]))
        case ["delete", number]:
            answer = recaller.recall(Query(vector=[0.0] * (D - 1) + [1.0], k=ALL))
            assert answer.exhausted
            assert not {*answer.ids} & {*deleted(number)}
            assert len(answer.ids) == len(model.serving)
        case ["read", number]:
            assert shown(recaller) == model.serving
            check_found(recaller, dict(Random(number).sample([*model.serving.items()], 5)))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
