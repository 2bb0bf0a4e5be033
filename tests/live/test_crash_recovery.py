"""Writers of a store are killed at random moments: amid writes, publishing, swapping, compacting and pruning."""

import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.sessions import killed_session
from support.sessions.killed_session import WriterOrder
from support.store_oracle import StoreOracle, check_searchable, execute, inspect_store, read_all_items

from vecall.recall.recaller import open_recaller
from vecall.release.file_lock import file_lock
from vecall.release.store import Store

logger = logging.getLogger("torture")

AUTOMATIC = 0.1  # of all cycles


@dataclass(frozen=True)
class Death:
    """What a writer had said when it died.

    Attributes:
        model: after all that it had acknowledged.
        doubt: the operation that was under way.
        begun: operations.
    """

    model: StoreOracle
    doubt: list[Any] | None
    begun: int


def start() -> subprocess.Popen[bytes]:
    """A writer that has no order yet: by the time when it gets one it has imported everything."""
    variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    folders = [str(Path(killed_session.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", killed_session.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | variables | {"PYTHONPATH": os.pathsep.join(folders)},
        start_new_session=True,  # a group of its own: its compactions can be found when it is gone
    )


def run_until_killed(
    writer: subprocess.Popen[bytes], order: WriterOrder, chance: Random, counts: Counter[str]
) -> Death:
    assert writer.stdin
    assert writer.stdout
    assert writer.stderr
    writer.stdin.write(pickle.dumps(order))
    writer.stdin.flush()
    said = writer.stdout.readline()
    if said == b'["open"]\n':
        if order.auto_compact:
            time.sleep(chance.uniform(0.05, 3.5))
            counts["compaction killed alone"] += kill_compaction(writer.pid) if chance.random() < 0.4 else 0
        time.sleep(min(0.05 + chance.expovariate(3), 1.0))
        writer.kill()
    said, errors = writer.stdout.read(), writer.stderr.read()
    assert writer.wait() == -signal.SIGKILL, errors.decode()
    return heard(said.decode().splitlines(), order, counts)


def heard(lines: list[str], order: WriterOrder, counts: Counter[str]) -> Death:
    model, doubt, begun = order.oracle, None, 0
    for line in lines:
        word, *rest = json.loads(line)
        if word == "begin":
            doubt, begun = rest[0], begun + 1
        elif word == "seen":
            counts["compaction gone over to"] += rest[0]["served"] != model.served_release
            model.adopt_observed(rest[0])
        elif word == "done":
            assert doubt is not None
            counts[doubt[0]] += 1
            (model.apply_concurrent if order.auto_compact else model.apply_acknowledged)(doubt, rest[0])
            doubt = None
        else:
            counts[word] += 1
            doubt = None
    return Death(model, doubt, begun)


def group(writer: int) -> list[int]:
    """Living processes that a writer had started, and itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == writer and state != "Z":
                found.append(int(path.parent.name))
    return found


def kill_compaction(writer: int) -> int:
    """How many were killed."""
    found = [one for one in group(writer) if one != writer]
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    return len(found)


def bury(writer: int, *, at_once: bool) -> None:
    """Its compactions die with it, or end by themselves."""
    deadline = time.monotonic() + (0 if at_once else 30)
    while group(writer):
        if time.monotonic() >= deadline:
            kill_compaction(writer)
        time.sleep(0.01)


def resolved(folder: Path, death: Death, *, automatic: bool) -> StoreOracle:
    """What is there now, once it was found to be right."""
    found = inspect_store(folder)
    found.exported_tables = death.model.exported_tables
    possible = [death.model] if death.doubt is None else list(death.model.iterate_possible_states(death.doubt))
    if automatic:
        possible = [with_compactions(one, found, death) for one in possible]
    for one in possible:
        one.served_release, one.served_items, one.compaction_bases = (
            found.served_release,
            found.served_items,
            found.compaction_bases,
        )
    told = [one.summarize() for one in possible]
    assert found in possible, f"after {death.doubt}: found {found.summarize()}, possible {told}"
    return found


def with_compactions(model: StoreOracle, found: StoreOracle, death: Death) -> StoreOracle:
    """What may be there if compactions, of what was served, have made releases, and are or were current.

    Which of these there are is not known, nor therefore what was pruned exactly. Whatever else has gone or come makes
    a difference between `found` and the answer.
    """
    model = model.copy()
    releases, pruning = {}, death.doubt is not None and death.doubt[0] == "prune"
    for name, there in found.releases.items():
        known = model.releases.pop(name, None)
        if known is not None and known.items is not None:
            releases[name] = replace(known, parent=there.parent)
        elif there.items in model.compaction_bases:
            releases[name] = there
    model.releases = releases if pruning else releases | model.releases
    if found.current not in death.model.releases:
        model.current = found.current
    if pruning and found.pruned_to <= min((made.journal_seq for made in releases.values()), default=0):
        model.drop_operations(max(model.pruned_to, found.pruned_to))
    return model


def count_stage(folder: Path, death: Death, counts: Counter[str]) -> None:
    """Where the death fell."""
    kind = "between" if death.doubt is None else death.doubt[0]
    counts[f"killed amid {kind}"] += 1
    left = list(folder.glob("tmp-*"))
    if any(one.is_dir() for one in left):
        whole = any((one / "manifest.sha256").exists() for one in left)
        counts[f"{'whole' if whole else 'half'} draft left"] += 1
    counts["CURRENT half replaced"] += any(one.is_file() for one in left)


def check_free(folder: Path) -> None:
    """No lock is held by the dead, and what they left is swept away."""
    for lock in ("writer.lock", "store.lock"):
        with file_lock(folder / lock, timeout=0):
            pass
    with Store.open(folder).create_draft():
        pass
    assert not list(folder.glob("tmp-*"))


def cycles(folder: Path, count: int, seed: int) -> Counter[str]:
    chance, number, counts = Random(seed), 1, Counter[str]()
    first = ["publish", "p0", "old", True]
    execute(first, folder, None, StoreOracle())
    model, began = StoreOracle().apply(first), time.monotonic()
    writer = start()
    try:
        for cycle in range(1, count + 1):
            order = WriterOrder(folder, model.restart(), chance.getrandbits(32), number, chance.random() < AUTOMATIC)
            mortal, writer = writer, start()
            with mortal:
                death = run_until_killed(mortal, order, chance, counts)
            counts["writer killed beside a compaction"] += len(group(mortal.pid))
            bury(mortal.pid, at_once=chance.random() < 0.5)
            count_stage(folder, death, counts)
            model = resolved(folder, death, automatic=order.auto_compact)
            check_free(folder)
            number += death.begun
            if cycle % 50 == 0:
                logger.info("%d cycles, %.0f s: %s", cycle, time.monotonic() - began, dict(sorted(counts.items())))
    finally:
        writer.kill()
        with writer:
            pass
    with open_recaller(folder, writable=True) as recaller:
        items = model.restart().served_items
        assert read_all_items(recaller) == items
        check_searchable(recaller, items)
    return counts


def test_nothing_is_lost_when_writers_are_killed(tmp_path) -> None:
    counts = cycles(tmp_path / "store", 20, seed=4)
    assert counts["upsert"] > 20  # how many there is time for depends on the machine
    assert counts["publish"] > 1


@pytest.mark.slow
def test_nothing_is_lost_in_many_deaths(tmp_path) -> None:
    cycles(tmp_path / "store", 200, seed=200)


@pytest.mark.torture
def test_nothing_is_lost_in_a_thousand_deaths(tmp_path) -> None:
    seed = int(os.environ.get("SEED", "0")) or time.time_ns() % 2**32
    logger.info("seed %d: SEED=%d make torture repeats its choices, though not its moments", seed, seed)
    counts = cycles(tmp_path / "store", int(os.environ.get("CYCLES", "1000")), seed)
    for stage in ("upsert", "publish", "compact", "activate", "prune"):
        assert counts[f"killed amid {stage}"], stage
    logger.info("clean")
