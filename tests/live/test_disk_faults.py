"""The journal on disks that fail at any call, and on disks that lose power at any moment."""

import errno
import functools
import json
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from support.fault_injection.disk import (
    SessionRun,
    SimulatedDisk,
    compile_shim,
    read_output_lines,
    read_real_files,
    run_with_faults,
)
from support.sessions import disk_session, journal_session
from support.sessions.journal_session import JOURNAL_FILE, STEPS, ExpectedJournal, dump_journal, make_upsert

from vecall.errors import JournalCorruptedError
from vecall.live.journal import Journal


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return compile_shim(tmp_path_factory.mktemp("shim"))


def test_simulated_disk_records_every_write_and_loses_what_was_not_synced(shim, tmp_path) -> None:
    (run,) = run_with_faults(shim, disk_session, tmp_path / "faultless")
    assert run.output_lines == ["synced is durable", "replaced is durable", "release is durable"]
    disk, left = SimulatedDisk(run.initial_dir), tmp_path / "left"
    for number, event in enumerate(run.events):
        disk.replay(event)
        disk.write_power_loss_state(left)
        durable = {line.split(" ")[0] for line in read_output_lines(run.events[: number + 1])}
        assert (left / "replaced").read_bytes() in ([b"after"] if "replaced" in durable else [b"before", b"after"])
        assert (left / "synced").exists() or "synced" not in durable
        if "release" in durable:
            assert read_real_files(left / "release") == read_real_files(run.directory / "renamed")
    assert disk.read_files() == read_real_files(run.directory)
    sizes = {path.name: path.stat().st_size for path in left.iterdir()}
    assert sizes.keys() == {"replaced", "synced", "release", "unsynced", "grown"}
    assert (sizes["unsynced"], sizes["grown"]) == (0, 5)


@pytest.fixture(scope="module")
def faultless(shim, tmp_path_factory) -> SessionRun:
    (run,) = run_with_faults(shim, journal_session, tmp_path_factory.mktemp("faultless"))
    return run


def list_possible_dumps(lines: list[str], *, interrupted: bool = False) -> list:
    """Return the possible contents of a journal: all acknowledged steps, and any of the failed and interrupted ones."""
    outcomes = [line.startswith("done") for line in lines if line.startswith(("done", "failed"))]
    return list_dumps_after((*outcomes, False) if interrupted else tuple(outcomes))


@functools.cache
def list_dumps_after(outcomes: tuple[bool, ...]) -> list:
    states = [ExpectedJournal()]
    for step, is_done in zip(STEPS, outcomes, strict=False):
        after = [state.apply_step(step) for state in states]
        if step[0] == "prune" and len(states) > 1:
            is_done = False  # a failed step that reappears after all was not there to be pruned
        states = after if is_done else [*states, *after]
    return [state.dump() for state in states]


def dump_and_append(directory: Path) -> list:
    """Return the content of a journal on a disk that works, after checking that it can be appended to."""
    path = directory / JOURNAL_FILE
    if not path.exists():
        return ExpectedJournal().dump()
    with Journal.open(path, "string") as journal:
        dump = dump_journal(journal, journal.read_operations(0))
        assert journal.append([make_upsert("new", "")]) == dump[1] + 1
    with Journal.open(path, "string") as journal:
        *others, last = dump_journal(journal, journal.read_operations(0))[2]
    assert last[2] == "new"
    assert [row for row in dump[2] if row[2] != "new"] == others
    return dump


def test_every_write_of_the_journal_is_recorded(faultless: SessionRun) -> None:
    assert [line for line in faultless.output_lines if not line.startswith("reads")] == [
        f"done {i}" for i in range(len(STEPS))
    ]
    disk = SimulatedDisk(faultless.initial_dir)
    for event in faultless.events:
        disk.replay(event)
    assert disk.read_files() == read_real_files(faultless.directory)
    assert {"W", "T", "S", "C", "L", "U"} <= {event.kind for event in faultless.events}
    assert dump_and_append(faultless.directory) in list_possible_dumps(faultless.output_lines)


@pytest.fixture(scope="module")
def single_fault_runs(shim, tmp_path_factory) -> list[SessionRun]:
    return run_with_faults(shim, journal_session, tmp_path_factory.mktemp("once"), error_code=errno.EIO)


def check_failures(runs: list[SessionRun]) -> None:
    """Check that failures were reported, reading went on, and no acknowledged operation is lost."""
    assert not runs[-1].failed_calls
    assert len(runs) > 100
    for run in runs:
        for number, line in enumerate(run.output_lines):
            word, *values = line.split(" ", 3)
            assert word in ("done", "reads") or values[1] == "JournalIOError", line
            if word == "reads":
                dump = json.loads(line.removeprefix("reads "))
                assert dump in list_possible_dumps(run.output_lines[:number]), (run.failing_call, line)
        assert dump_and_append(run.directory) in list_possible_dumps(run.output_lines), run.failing_call
        failed = [line for line in run.output_lines if line.startswith("failed")]
        if failed and run.failed_calls[0].kind == "W":
            assert failed[0].split(" ")[3] == ("full" if run.failed_calls[0].code == errno.ENOSPC else "-")


def test_single_fault_fails_one_step_at_most(single_fault_runs: list[SessionRun]) -> None:
    check_failures(single_fault_runs)
    failed_counts = {sum(line.startswith("failed") for line in run.output_lines) for run in single_fault_runs}
    assert failed_counts == {0, 1}  # 0 if a cleanup failed, or a checkpoint, which is logged


@pytest.mark.parametrize(
    ("code", "keeps_failing"),
    [
        pytest.param(errno.ENOSPC, True, id="ENOSPC from then on"),
        pytest.param(errno.ENOSPC, False, id="ENOSPC once", marks=pytest.mark.slow),
        pytest.param(errno.EIO, True, id="EIO from then on", marks=pytest.mark.slow),
    ],
)
def test_failing_disk_is_reported_and_loses_nothing(shim, tmp_path, code: int, keeps_failing: bool) -> None:
    check_failures(run_with_faults(shim, journal_session, tmp_path, error_code=code, keeps_failing=keeps_failing))


def check_power_loss(run: SessionRun, directory: Path, moments: Container[int], *, random_states: int = 0) -> None:
    """Check the journal after a loss of power at moments of a run.

    Args:
        run: the run.
        directory: where what is left is written.
        moments: numbers of events after which the power is lost.
        random_states: number of random states per moment, besides the one where only synced writes are left.
    """
    disk = SimulatedDisk(run.initial_dir)
    for number, event in enumerate([*run.events, None]):
        if number in moments:
            possible = list_possible_dumps(read_output_lines(run.events[:number]), interrupted=True)
            for rng in [None, *(Random(f"{number} {i}") for i in range(random_states))]:
                disk.write_power_loss_state(directory, rng)
                assert dump_and_append(directory) in possible, (run.failing_call, number, rng)
        if event is not None:
            disk.replay(event)


def test_power_loss_at_any_moment_loses_nothing(faultless: SessionRun, tmp_path) -> None:
    check_power_loss(faultless, tmp_path / "left", range(len(faultless.events) + 1), random_states=2)


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.sqlite-wal"])
def test_missing_syncs_would_be_noticed(faultless: SessionRun, tmp_path, name: str) -> None:
    events = [event for event in faultless.events if (event.kind, event.path) != ("S", name)]
    with pytest.raises((AssertionError, JournalCorruptedError)):
        check_power_loss(replace(faultless, events=events), tmp_path / "left", range(len(events)))


def test_step_with_a_failed_sync_is_not_acknowledged(single_fault_runs: list[SessionRun], tmp_path) -> None:
    for run in single_fault_runs:
        if run.failed_calls and run.failed_calls[0].kind == "S":
            failed = run.events.index(run.failed_calls[0])
            done = [i for i, event in enumerate(run.events) if i > failed and event.data.startswith(b"done")]
            check_power_loss(run, tmp_path / "left", [number + 1 for number in done[:1]])


@pytest.mark.slow
@pytest.mark.parametrize("keeps_failing", [False, True], ids=["once", "from then on"])
def test_power_loss_after_a_fault_loses_nothing(shim, tmp_path, keeps_failing: bool) -> None:
    runs = run_with_faults(shim, journal_session, tmp_path / "work", error_code=errno.EIO, keeps_failing=keeps_failing)
    for run in runs:
        check_power_loss(run, tmp_path / "left", range(0, 1000, 11), random_states=1)
