"""Crash recovery: writers are killed at random moments of writes, publishing, switching, compaction and pruning."""

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

AUTO_COMPACT_SHARE = 0.1  # of all cycles


@dataclass(frozen=True)
class Crash:
    """What is known of a killed writer.

    Attributes:
        oracle: the expected state after all operations that it had acknowledged.
        pending: the operation that was running; None if there was none.
        started_count: number of operations that it had started.
    """

    oracle: StoreOracle
    pending: list[Any] | None
    started_count: int


def start_writer() -> subprocess.Popen[bytes]:
    """Start a writer ahead of its order, so that it has imported everything when it gets one."""
    variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    paths = [str(Path(killed_session.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", killed_session.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | variables | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,  # its own process group, by which its compactions are found after it was killed
    )


def run_until_killed(writer: subprocess.Popen[bytes], order: WriterOrder, rng: Random, counts: Counter[str]) -> Crash:
    assert writer.stdin
    assert writer.stdout
    assert writer.stderr
    writer.stdin.write(pickle.dumps(order))
    writer.stdin.flush()
    if writer.stdout.readline() == b'["open"]\n':
        if order.auto_compact:
            time.sleep(rng.uniform(0.05, 3.5))
            counts["only the compaction killed"] += kill_compaction(writer.pid) if rng.random() < 0.4 else 0
        time.sleep(min(0.05 + rng.expovariate(3), 1.0))
        writer.kill()
    output, errors = writer.stdout.read(), writer.stderr.read()
    assert writer.wait() == -signal.SIGKILL, errors.decode()
    return replay_output(output.decode().splitlines(), order, counts)


def replay_output(lines: list[str], order: WriterOrder, counts: Counter[str]) -> Crash:
    """Apply the operations that a writer has reported to the oracle."""
    oracle, pending, started_count = order.oracle, None, 0
    for line in lines:
        word, *values = json.loads(line)
        if word == "begin":
            pending, started_count = values[0], started_count + 1
        elif word == "observed":
            counts["switched to a compaction"] += values[0]["served"] != oracle.served_release
            oracle.adopt_observed(values[0])
        elif word == "done":
            assert pending is not None
            counts[pending[0]] += 1
            (oracle.apply_concurrent if order.auto_compact else oracle.apply_acknowledged)(pending, values[0])
            pending = None
        else:
            counts[word] += 1
            pending = None
    return Crash(oracle, pending, started_count)


def list_process_group(writer_pid: int) -> list[int]:
    """Return the pids of the running processes of a writer's group: itself, and those that it has started."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if int(group) == writer_pid and state != "Z":
                pids.append(int(path.parent.name))
    return pids


def kill_compaction(writer_pid: int) -> int:
    """Kill a writer's compactions and return their number."""
    pids = [pid for pid in list_process_group(writer_pid) if pid != writer_pid]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def wait_for_compactions(writer_pid: int, *, kill_at_once: bool) -> None:
    """Wait until a dead writer's compactions have ended by themselves, or kill them."""
    deadline = time.monotonic() + (0 if kill_at_once else 30)
    while list_process_group(writer_pid):
        if time.monotonic() >= deadline:
            kill_compaction(writer_pid)
        time.sleep(0.01)


def check_recovered(store_dir: Path, crash: Crash, *, auto_compact: bool) -> StoreOracle:
    """Check that the store is in one of the possible states, and return that state."""
    observed = inspect_store(store_dir)
    observed.exported_tables = crash.oracle.exported_tables
    possible = [crash.oracle] if crash.pending is None else list(crash.oracle.iterate_possible_states(crash.pending))
    if auto_compact:
        possible = [add_compactions(state, observed, crash) for state in possible]
    for state in possible:
        state.served_release, state.served_items = observed.served_release, observed.served_items
        state.compaction_bases = observed.compaction_bases
    summaries = [state.summarize() for state in possible]
    assert observed in possible, f"after {crash.pending}: found {observed.summarize()}, possible {summaries}"
    return observed


def add_compactions(oracle: StoreOracle, observed: StoreOracle, crash: Crash) -> StoreOracle:
    """Return the expected state, completed by automatic compactions that were observed and are possible.

    Which compactions have been published, which are or were current, and therefore what exactly was pruned, is not
    known; it is taken from `observed`. Any other difference between `observed` and the result is an error.
    """
    oracle = oracle.copy()
    releases, is_pruning = {}, crash.pending is not None and crash.pending[0] == "prune"
    for name, release in observed.releases.items():
        known = oracle.releases.pop(name, None)
        if known is not None and known.items is not None:
            releases[name] = replace(known, parent=release.parent)
        elif release.items in oracle.compaction_bases:
            releases[name] = release
    oracle.releases = releases if is_pruning else releases | oracle.releases
    if observed.current not in crash.oracle.releases:
        oracle.current = observed.current
    min_journal_seq = min((release.journal_seq for release in releases.values()), default=0)
    if is_pruning and observed.pruned_to <= min_journal_seq:
        oracle.drop_operations(max(oracle.pruned_to, observed.pruned_to))
    return oracle


def count_stage(store_dir: Path, crash: Crash, counts: Counter[str]) -> None:
    """Count what was interrupted by a crash."""
    kind = "nothing" if crash.pending is None else crash.pending[0]
    counts[f"killed during {kind}"] += 1
    leftovers = list(store_dir.glob("tmp-*"))
    if any(path.is_dir() for path in leftovers):
        is_complete = any((path / "manifest.sha256").exists() for path in leftovers)
        counts[f"{'complete' if is_complete else 'incomplete'} draft left"] += 1
    counts["CURRENT not yet replaced"] += any(path.is_file() for path in leftovers)


def check_cleaned_up(store_dir: Path) -> None:
    """Check that dead processes hold no lock, and that a new draft removes what they have left."""
    for lock in ("writer.lock", "store.lock"):
        with file_lock(store_dir / lock, timeout=0):
            pass
    with Store.open(store_dir).create_draft():
        pass
    assert not list(store_dir.glob("tmp-*"))


def run_crash_cycles(store_dir: Path, count: int, seed: int) -> Counter[str]:
    """Kill a writer `count` times and check the store each time. Return the counts of operations and stages."""
    rng, number, counts = Random(seed), 1, Counter[str]()
    first_publish = ["publish", "p0", "old", True]
    execute(first_publish, store_dir, None, StoreOracle())
    oracle, start = StoreOracle().apply(first_publish), time.monotonic()
    next_writer = start_writer()
    try:
        for cycle in range(1, count + 1):
            writer_seed, auto_compact = rng.getrandbits(32), rng.random() < AUTO_COMPACT_SHARE
            order = WriterOrder(store_dir, oracle.restart(), writer_seed, number, auto_compact)
            writer, next_writer = next_writer, start_writer()
            with writer:
                crash = run_until_killed(writer, order, rng, counts)
            counts["writer killed during a compaction"] += len(list_process_group(writer.pid))
            wait_for_compactions(writer.pid, kill_at_once=rng.random() < 0.5)
            count_stage(store_dir, crash, counts)
            oracle = check_recovered(store_dir, crash, auto_compact=order.auto_compact)
            check_cleaned_up(store_dir)
            number += crash.started_count
            if cycle % 50 == 0:
                logger.info("%d cycles, %.0f s: %s", cycle, time.monotonic() - start, dict(sorted(counts.items())))
    finally:
        next_writer.kill()
        with next_writer:
            pass
    with open_recaller(store_dir, writable=True) as recaller:
        items = oracle.restart().served_items
        assert read_all_items(recaller) == items
        check_searchable(recaller, items)
    return counts


@pytest.mark.examples
def test_killed_writers_lose_nothing(tmp_path) -> None:
    counts = run_crash_cycles(tmp_path / "store", 12, seed=4)
    assert counts["upsert"] > 12  # the number depends on the machine's speed
    assert counts["publish"] > 1


@pytest.mark.slow
def test_200_killed_writers_lose_nothing(tmp_path) -> None:
    run_crash_cycles(tmp_path / "store", 200, seed=200)


@pytest.mark.torture
def test_1000_killed_writers_lose_nothing(tmp_path) -> None:
    seed = int(os.environ.get("SEED", "0")) or time.time_ns() % 2**32
    logger.info("seed %d: SEED=%d make torture repeats the choices, though not the moments of the kills", seed, seed)
    counts = run_crash_cycles(tmp_path / "store", int(os.environ.get("CYCLES", "1000")), seed)
    for stage in ("upsert", "publish", "compact", "activate", "prune"):
        assert counts[f"killed during {stage}"], stage
    logger.info("all cycles passed")
