"""The journal on a disk that fails at any call, and on one that loses power at any moment."""

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


def test_the_disk_sees_every_writer_and_forgets_what_was_not_synced(shim, tmp_path) -> None:
    (run,) = run_with_faults(shim, disk_session, tmp_path / "sound")
    assert run.output_lines == ["whole is kept", "there is kept", "release is kept"]
    disk, left = SimulatedDisk(run.initial_dir), tmp_path / "left"
    for number, event in enumerate(run.events):
        disk.replay(event)
        disk.write_power_loss_state(left)
        kept = {line.split(" ")[0] for line in read_output_lines(run.events[: number + 1])}
        assert (left / "there").read_bytes() in (b"before", b"after")[("there" in kept) :]
        assert (left / "whole").exists() or "whole" not in kept
        assert "release" not in kept or read_real_files(left / "release") == read_real_files(run.directory / "renamed")
    assert disk.read_files() == read_real_files(run.directory)
    names = {one.name: one.stat().st_size for one in left.iterdir()}
    assert names.keys() == {"there", "whole", "release", "unsynced", "grown"}
    assert (names["unsynced"], names["grown"]) == (0, 5)


@pytest.fixture(scope="module")
def sound(shim, tmp_path_factory) -> SessionRun:
    (run,) = run_with_faults(shim, journal_session, tmp_path_factory.mktemp("sound"))
    return run


def possible(lines: list[str], *, amid: bool = False) -> list:
    """What may be in the journal: all steps that were done; what failed or was under way, whole or not at all."""
    outcomes = [line.startswith("done") for line in lines if line.startswith(("done", "failed"))]
    return states((*outcomes, False) if amid else tuple(outcomes))


@functools.cache
def states(outcomes: tuple[bool, ...]) -> list:
    found = [ExpectedJournal()]
    for step, done in zip(STEPS, outcomes, strict=False):
        after = [state.apply_step(step) for state in found]
        if step[0] == "prune" and len(found) > 1:
            done = False  # what failed and came back after all was not there to be pruned
        found = after if done else [*found, *after]
    return [state.dump() for state in found]


def found(folder: Path) -> list:
    """What is in the journal, opened on a sound disk; it can be written to as well."""
    path = folder / JOURNAL_FILE
    if not path.exists():
        return ExpectedJournal().dump()
    with Journal.open(path, "string") as journal:
        there = dump_journal(journal, journal.read_operations(0))
        assert journal.append([make_upsert("new", "")]) == there[1] + 1
    with Journal.open(path, "string") as journal:
        *others, last = dump_journal(journal, journal.read_operations(0))[2]
    assert last[2] == "new"
    assert [one for one in there[2] if one[2] != "new"] == others
    return there


def test_nothing_is_written_unseen(sound: SessionRun) -> None:
    assert [line for line in sound.output_lines if not line.startswith("reads")] == [
        f"done {i}" for i in range(len(STEPS))
    ]
    disk = SimulatedDisk(sound.initial_dir)
    for event in sound.events:
        disk.replay(event)
    assert disk.read_files() == read_real_files(sound.directory)
    assert {"W", "T", "S", "C", "L", "U"} <= {event.kind for event in sound.events}
    assert found(sound.directory) in possible(sound.output_lines)


@pytest.fixture(scope="module")
def failing_once(shim, tmp_path_factory) -> list[SessionRun]:
    return run_with_faults(shim, journal_session, tmp_path_factory.mktemp("once"), error_code=errno.EIO)


def check_failures(runs: list[SessionRun]) -> None:
    """Each failure was told, reading went on, and what was acknowledged is there on a sound disk."""
    assert not runs[-1].failed_calls
    assert len(runs) > 100
    for run in runs:
        for number, line in enumerate(run.output_lines):
            word, *rest = line.split(" ", 3)
            assert word == "done" or word == "reads" or rest[1] == "JournalFailed", line
            if word == "reads":
                assert json.loads(line.removeprefix("reads ")) in possible(run.output_lines[:number]), (
                    run.failing_call,
                    line,
                )
        assert found(run.directory) in possible(run.output_lines), run.failing_call
        failed = [line for line in run.output_lines if line.startswith("failed")]
        if failed and run.failed_calls[0].kind == "W":
            assert failed[0].split(" ")[3] == ("full" if run.failed_calls[0].code == errno.ENOSPC else "-")


def test_a_disk_that_fails_once_costs_one_step_at_most(failing_once: list[SessionRun]) -> None:
    check_failures(failing_once)
    failed = [sum(line.startswith("failed") for line in run.output_lines) for run in failing_once]
    assert set(failed) == {0, 1}  # 0: clearing up failed, or a checkpoint, of which the log tells


@pytest.mark.parametrize(
    ("code", "forever"),
    [
        pytest.param(errno.ENOSPC, True, id="ENOSPC from then on"),
        pytest.param(errno.ENOSPC, False, id="ENOSPC once", marks=pytest.mark.slow),
        pytest.param(errno.EIO, True, id="EIO from then on", marks=pytest.mark.slow),
    ],
)
def test_a_failing_disk_is_reported_and_loses_nothing(shim, tmp_path, code: int, forever: bool) -> None:
    check_failures(run_with_faults(shim, journal_session, tmp_path, error_code=code, keeps_failing=forever))


def check_power_loss(run: SessionRun, folder: Path, moments: Container[int], *, chances: int = 0) -> None:
    """When the power goes after `moments` events of a run: what is left at the worst, and by `chances`."""
    disk = SimulatedDisk(run.initial_dir)
    for number, event in enumerate([*run.events, None]):
        if number in moments:
            right = possible(read_output_lines(run.events[:number]), amid=True)
            for chance in [None, *(Random(f"{number} {i}") for i in range(chances))]:
                disk.write_power_loss_state(folder, chance)
                assert found(folder) in right, (run.failing_call, number, chance)
        if event is not None:
            disk.replay(event)


def test_a_loss_of_power_at_any_moment_loses_nothing(sound: SessionRun, tmp_path) -> None:
    check_power_loss(sound, tmp_path / "left", range(len(sound.events) + 1), chances=2)


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.sqlite-wal"])
def test_a_journal_that_does_not_sync_is_caught(sound: SessionRun, tmp_path, name: str) -> None:
    careless = [event for event in sound.events if (event.kind, event.path) != ("S", name)]
    with pytest.raises((AssertionError, JournalCorruptedError)):
        check_power_loss(replace(sound, events=careless), tmp_path / "left", range(len(careless)))


def test_a_failed_sync_is_not_taken_for_done(failing_once: list[SessionRun], tmp_path) -> None:
    for run in failing_once:
        if run.failed_calls and run.failed_calls[0].kind == "S":
            failed = run.events.index(run.failed_calls[0])
            done = [i for i, one in enumerate(run.events) if i > failed and one.data.startswith(b"done")]
            check_power_loss(run, tmp_path / "left", [number + 1 for number in done[:1]])


@pytest.mark.slow
@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
def test_a_loss_of_power_after_a_failure_loses_nothing(shim, tmp_path, forever: bool) -> None:
    for run in run_with_faults(shim, journal_session, tmp_path / "work", error_code=errno.EIO, keeps_failing=forever):
        check_power_loss(run, tmp_path / "left", range(0, 1000, 11), chances=1)
