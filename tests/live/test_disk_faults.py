"""The journal on a disk that fails at any call, and on one that loses power at any moment."""

import errno
import functools
import json
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from support.fault_injection.disk import Disk, Run, build, files_in, play, said
from support.sessions import disk_session, journal_session
from support.sessions.journal_session import NAME, STEPS, Expected, content, upsert

from vecall.errors import JournalDamaged
from vecall.live.journal import Journal


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return build(tmp_path_factory.mktemp("shim"))


def test_the_disk_sees_every_writer_and_forgets_what_was_not_synced(shim, tmp_path) -> None:
    (run,) = play(shim, disk_session, tmp_path / "sound")
    assert run.said == ["whole is kept", "there is kept", "release is kept"]
    disk, left = Disk(run.before), tmp_path / "left"
    for number, event in enumerate(run.events):
        disk.play(event)
        disk.leave(left)
        kept = {line.split(" ")[0] for line in said(run.events[: number + 1])}
        assert (left / "there").read_bytes() in (b"before", b"after")[("there" in kept) :]
        assert (left / "whole").exists() or "whole" not in kept
        assert "release" not in kept or files_in(left / "release") == files_in(run.folder / "renamed")
    assert disk.files() == files_in(run.folder)
    names = {one.name: one.stat().st_size for one in left.iterdir()}
    assert names.keys() == {"there", "whole", "release", "unsynced", "grown"}
    assert (names["unsynced"], names["grown"]) == (0, 5)


@pytest.fixture(scope="module")
def sound(shim, tmp_path_factory) -> Run:
    (run,) = play(shim, journal_session, tmp_path_factory.mktemp("sound"))
    return run


def possible(lines: list[str], *, amid: bool = False) -> list:
    """What may be in the journal: all steps that were done; what failed or was under way, whole or not at all."""
    outcomes = [line.startswith("done") for line in lines if line.startswith(("done", "failed"))]
    return states((*outcomes, False) if amid else tuple(outcomes))


@functools.cache
def states(outcomes: tuple[bool, ...]) -> list:
    found = [Expected()]
    for step, done in zip(STEPS, outcomes, strict=False):
        after = [state.after(step) for state in found]
        if step[0] == "prune" and len(found) > 1:
            done = False  # what failed and came back after all was not there to be pruned
        found = after if done else [*found, *after]
    return [state.content() for state in found]


def found(folder: Path) -> list:
    """What is in the journal, opened on a sound disk; it can be written to as well."""
    path = folder / NAME
    if not path.exists():
        return Expected().content()
    with Journal.open(path, "string") as journal:
        there = content(journal, journal.read_operations(0))
        assert journal.append([upsert("new", "")]) == there[1] + 1
    with Journal.open(path, "string") as journal:
        *others, last = content(journal, journal.read_operations(0))[2]
    assert last[2] == "new"
    assert [one for one in there[2] if one[2] != "new"] == others
    return there


def test_nothing_is_written_unseen(sound: Run) -> None:
    assert [line for line in sound.said if not line.startswith("reads")] == [f"done {i}" for i in range(len(STEPS))]
    disk = Disk(sound.before)
    for event in sound.events:
        disk.play(event)
    assert disk.files() == files_in(sound.folder)
    assert {"W", "T", "S", "C", "L", "U"} <= {event.kind for event in sound.events}
    assert found(sound.folder) in possible(sound.said)


@pytest.fixture(scope="module")
def failing_once(shim, tmp_path_factory) -> list[Run]:
    return play(shim, journal_session, tmp_path_factory.mktemp("once"), code=errno.EIO)


def check_failures(runs: list[Run]) -> None:
    """Each failure was told, reading went on, and what was acknowledged is there on a sound disk."""
    assert not runs[-1].hit
    assert len(runs) > 100
    for run in runs:
        for number, line in enumerate(run.said):
            word, *rest = line.split(" ", 3)
            assert word == "done" or word == "reads" or rest[1] == "JournalFailed", line
            if word == "reads":
                assert json.loads(line.removeprefix("reads ")) in possible(run.said[:number]), (run.failing, line)
        assert found(run.folder) in possible(run.said), run.failing
        failed = [line for line in run.said if line.startswith("failed")]
        if failed and run.hit[0].kind == "W":
            assert failed[0].split(" ")[3] == ("full" if run.hit[0].code == errno.ENOSPC else "-")


def test_a_disk_that_fails_once_costs_one_step_at_most(failing_once: list[Run]) -> None:
    check_failures(failing_once)
    failed = [sum(line.startswith("failed") for line in run.said) for run in failing_once]
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
    check_failures(play(shim, journal_session, tmp_path, code=code, forever=forever))


def check_power_loss(run: Run, folder: Path, moments: Container[int], *, chances: int = 0) -> None:
    """When the power goes after `moments` events of a run: what is left at the worst, and by `chances`."""
    disk = Disk(run.before)
    for number, event in enumerate([*run.events, None]):
        if number in moments:
            right = possible(said(run.events[:number]), amid=True)
            for chance in [None, *(Random(f"{number} {i}") for i in range(chances))]:
                disk.leave(folder, chance)
                assert found(folder) in right, (run.failing, number, chance)
        if event is not None:
            disk.play(event)


def test_a_loss_of_power_at_any_moment_loses_nothing(sound: Run, tmp_path) -> None:
    check_power_loss(sound, tmp_path / "left", range(len(sound.events) + 1), chances=2)


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.sqlite-wal"])
def test_a_journal_that_does_not_sync_is_caught(sound: Run, tmp_path, name: str) -> None:
    careless = [event for event in sound.events if (event.kind, event.path) != ("S", name)]
    with pytest.raises((AssertionError, JournalDamaged)):
        check_power_loss(replace(sound, events=careless), tmp_path / "left", range(len(careless)))


def test_a_failed_sync_is_not_taken_for_done(failing_once: list[Run], tmp_path) -> None:
    for run in failing_once:
        if run.hit and run.hit[0].kind == "S":
            failed = run.events.index(run.hit[0])
            done = [i for i, one in enumerate(run.events) if i > failed and one.data.startswith(b"done")]
            check_power_loss(run, tmp_path / "left", [number + 1 for number in done[:1]])


@pytest.mark.slow
@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
def test_a_loss_of_power_after_a_failure_loses_nothing(shim, tmp_path, forever: bool) -> None:
    for run in play(shim, journal_session, tmp_path / "work", code=errno.EIO, forever=forever):
        check_power_loss(run, tmp_path / "left", range(0, 1000, 11), chances=1)
