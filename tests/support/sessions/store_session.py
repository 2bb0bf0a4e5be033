"""A session for `fault_injection.disk`: steps of a recaller and its store, whose results `store_oracle` predicts."""

import json
from pathlib import Path
from typing import Any

from support.store_oracle import StoreOracle, execute, read_all_items
from vecall.errors import VecallError
from vecall.live import journal as journal_module
from vecall.recall.recaller import Recaller, open_recaller

STORE_DIR, NEW_STORE_DIR = "store", "parent/new"  # the session creates the second one

STEPS: tuple[list[Any], ...] = (
    ["open"],
    ["upsert", 1],
    ["delete", 2],
    ["compact", "two", False],
    ["activate", "two"],
    ["upsert", 3],
    ["snapshot"],
    ["publish", "three", "new", True],
    ["delete", 4],
    ["activate", "three"],
    ["rollback"],
    ["prune", 1],
    ["publish", "four", "old", False],
    ["compact", "five", True],
    ["prune", 0],
    ["upsert", 5],
    ["close"],
)
FIRST_PUBLISH = ["publish", "one", "old", True]


def prepare(directory: Path) -> None:
    execute(FIRST_PUBLISH, directory / STORE_DIR, None, StoreOracle())


def run_session(directory: Path, emit: Any) -> None:
    journal_module._OPS_PER_CHECKPOINT = 40
    try:
        execute(FIRST_PUBLISH, directory / NEW_STORE_DIR, None, StoreOracle())
    except VecallError as error:
        emit(f"new failed {type(error).__name__} {error}")
    else:
        emit("new done")
    _SessionWriter(directory / STORE_DIR, emit).run()


class _SessionWriter:
    def __init__(self, store_dir: Path, emit: Any) -> None:
        self._store_dir, self._emit = store_dir, emit
        self._recaller: Recaller | None = None
        self._oracle = StoreOracle()  # only for its exported tables

    def run(self) -> None:
        for number, operation in enumerate(STEPS):
            try:
                self._execute(operation)
            except VecallError as error:
                self._emit(f"failed {number} {type(error).__name__} {error}")
            else:
                self._emit(f"done {number}")
            if self._recaller is not None:  # it must answer after failures too
                self._emit(f"reads {json.dumps([self._recaller.release, read_all_items(self._recaller)])}")

    def _execute(self, operation: list[Any]) -> None:
        if self._recaller is None:
            self._recaller = open_recaller(self._store_dir, writable=True, auto_compact=False)
        if operation == ["snapshot"]:
            self._oracle.exported_tables = (self._recaller.live_index.snapshot.seq, read_all_items(self._recaller))
        elif operation == ["close"]:
            recaller, self._recaller = self._recaller, None
            recaller.close()
        elif operation != ["open"]:
            execute(operation, self._store_dir, self._recaller, self._oracle)
