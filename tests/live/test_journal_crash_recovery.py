"""Crash recovery of the journal: a process that appends to it is killed at random moments."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from vecall.live.journal import Journal

BATCH_SIZES = (1, 1, 40, 1, 300)

WRITER_SOURCE = """
import sys
from pathlib import Path
import numpy as np
from vecall.live import journal as journal_module
from vecall.live.operations import Operation

journal_module._OPS_PER_CHECKPOINT = 100
sizes, number, vector = eval(sys.argv[2]), int(sys.argv[3]), np.ones(32, dtype=np.float32)
with journal_module.Journal.open(Path(sys.argv[1]), "string") as journal:
    print("open", flush=True)
    while True:
        ids = [f"{number}-{i}" for i in range(sizes[number % len(sizes)])] + ["last"]
        journal.append([Operation(0, "upsert", item_id, {"batch": number}, vector, "e", True) for item_id in ids])
        print(number, flush=True)
        if number % 20 == 19:
            journal.prune(journal.last_seq - 1500)
        number += 1
"""


def run_until_killed(path: Path, first: int, seconds: float) -> int:
    """Write batches from number `first` on and return the number of the last acknowledged one."""
    command = [sys.executable, "-c", WRITER_SOURCE, path, repr(BATCH_SIZES), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "open\n"
        time.sleep(seconds)
        writer.kill()
        acknowledged = [int(line) for line in writer.stdout.read().splitlines()]
    assert writer.returncode == -signal.SIGKILL
    return acknowledged[-1] if acknowledged else first - 1


def check_journal(path: Path, acknowledged: int) -> int:
    """Check that no acknowledged batch is lost and no batch is incomplete, and return the number of the last batch."""
    journal = Journal.open_readonly(path, "string")
    operations = list(journal.read_operations(0))
    assert operations[-1].seq == journal.last_seq
    assert operations[-1].id == "last"
    last = operations[-1].fields["batch"]
    assert acknowledged <= last <= acknowledged + 1
    counts = Counter(operation.fields["batch"] for operation in operations[:-1])
    oldest = operations[0].fields["batch"] + 1  # a part of the batch before may have been pruned
    assert {batch: counts[batch] for batch in range(oldest, last + 1)} == {
        batch: BATCH_SIZES[batch % len(BATCH_SIZES)] for batch in range(oldest, last + 1)
    }
    return last


def run_crash_cycles(path: Path, count: int) -> None:
    """Kill a writer `count` times; more often where the machine is so slow that it has written few batches by then."""
    rng, last, cycle = Random(count), -1, 0
    while cycle < count or last <= 3 * count:
        cycle += 1
        assert cycle < 10 * count, f"only {last + 1} batches were written"
        acknowledged = run_until_killed(path, last + 1, rng.uniform(0.01, 0.25))
        last = check_journal(path, acknowledged) if acknowledged >= 0 else acknowledged


def test_killed_writers_lose_no_acknowledged_batch(tmp_path) -> None:
    run_crash_cycles(tmp_path / "journal.sqlite", 10)


@pytest.mark.slow
def test_200_killed_writers_lose_no_acknowledged_batch(tmp_path) -> None:
    run_crash_cycles(tmp_path / "journal.sqlite", 200)
