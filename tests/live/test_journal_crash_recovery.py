"""A process that writes to the journal is killed at random moments."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from vecall.live.journal import Journal

SIZES = (1, 1, 40, 1, 300)

WRITER = """
import sys
from pathlib import Path
import numpy as np
from vecall.live import journal as module
from vecall.live.operations import Operation

module._CHECKPOINT_EVERY = 100
sizes, number, vector = eval(sys.argv[2]), int(sys.argv[3]), np.ones(32, dtype=np.float32)
with module.Journal.open(Path(sys.argv[1]), "string") as journal:
    print("open", flush=True)
    while True:
        names = [f"{number}-{i}" for i in range(sizes[number % len(sizes)])] + ["last"]
        journal.append([Operation(0, "upsert", name, {"batch": number}, vector, "e", True) for name in names])
        print(number, flush=True)
        if number % 20 == 19:
            journal.prune(journal.last_seq - 1500)
        number += 1
"""


def run_until_killed(path: Path, first: int, seconds: float) -> int:
    """Write batches from `first` on; the last acknowledged one."""
    command = [sys.executable, "-c", WRITER, path, repr(SIZES), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "open\n"
        time.sleep(seconds)
        writer.kill()
        acknowledged = [int(line) for line in writer.stdout.read().splitlines()]
    assert writer.returncode == -signal.SIGKILL
    return acknowledged[-1] if acknowledged else first - 1


def check(path: Path, acknowledged: int) -> int:
    """Nothing acknowledged is lost, no batch is there in part; the last batch that is there."""
    journal = Journal.open_readonly(path, "string")
    operations = list(journal.read_operations(0))
    assert operations[-1].seq == journal.last_seq
    assert operations[-1].id == "last"
    last = operations[-1].fields["batch"]
    assert acknowledged <= last <= acknowledged + 1
    counts = Counter(one.fields["batch"] for one in operations[:-1])
    oldest = operations[0].fields["batch"] + 1  # of which a part may have been pruned
    assert {batch: counts[batch] for batch in range(oldest, last + 1)} == {
        batch: SIZES[batch % len(SIZES)] for batch in range(oldest, last + 1)
    }
    return last


def cycles(path: Path, count: int) -> None:
    chance, last = Random(count), -1
    for _ in range(count):
        acknowledged = run_until_killed(path, last + 1, chance.uniform(0.01, 0.25))
        last = check(path, acknowledged) if acknowledged >= 0 else acknowledged
    assert last > 3 * count


def test_nothing_acknowledged_is_lost_when_a_writer_is_killed(tmp_path) -> None:
    cycles(tmp_path / "journal.sqlite", 10)


@pytest.mark.slow
def test_nothing_is_lost_in_many_deaths(tmp_path) -> None:
    cycles(tmp_path / "journal.sqlite", 200)
