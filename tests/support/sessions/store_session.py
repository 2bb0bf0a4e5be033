"""A session of a recaller and its store, for `disk_faults`; `store_model` knows what is right after each step."""

import json
from pathlib import Path
from typing import Any

from support.store_oracle import Model, perform, shown
from vecall.errors import VecallError
from vecall.live import journal as module
from vecall.recall.recaller import Recaller, open_recaller

STORE, NEW = "store", "places/new"  # the second one is made in the session

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
FIRST = ["publish", "one", "old", True]


def prepare(folder: Path) -> None:
    perform(FIRST, folder / STORE, None, Model())


def session(folder: Path, say: Any) -> None:
    module._OPS_PER_CHECKPOINT = 40
    try:
        perform(FIRST, folder / NEW, None, Model())
    except VecallError as error:
        say(f"new failed {type(error).__name__} {error}")
    else:
        say("new done")
    _Writer(folder / STORE, say).run()


class _Writer:
    def __init__(self, store: Path, say: Any) -> None:
        self._store, self._say = store, say
        self._recaller: Recaller | None = None
        self._model = Model()  # only for `tables`

    def run(self) -> None:
        for number, operation in enumerate(STEPS):
            try:
                self._take(operation)
            except VecallError as error:
                self._say(f"failed {number} {type(error).__name__} {error}")
            else:
                self._say(f"done {number}")
            if self._recaller is not None:  # it answers, whatever has happened
                self._say(f"reads {json.dumps([self._recaller.release, shown(self._recaller)])}")

    def _take(self, operation: list[Any]) -> None:
        if self._recaller is None:
            self._recaller = open_recaller(self._store, writable=True, auto_compact=False)
        if operation == ["snapshot"]:
            self._model.tables = (self._recaller.live_index.snapshot.seq, shown(self._recaller))
        elif operation == ["close"]:
            recaller, self._recaller = self._recaller, None
            recaller.close()
        elif operation != ["open"]:
            perform(operation, self._store, self._recaller, self._model)
