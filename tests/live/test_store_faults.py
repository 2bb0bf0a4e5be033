"""A recaller and its store on a disk that fails at any call, and on one that loses power at any moment."""

import errno
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest
from support.fault_injection.disk import Disk, Run, build, files_in, play, said
from support.sessions import store_session, writers_session
from support.sessions.store_session import FIRST, NEW, STEPS, STORE
from support.store_oracle import Model, items_of, look, shown, upserted

from vecall.errors import StoreError
from vecall.recall.recaller import open_recaller


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def sound(shim, tmp_path_factory) -> Run:
    (run,) = play(shim, store_session, tmp_path_factory.mktemp("sound"))
    return run


def test_no_writer_loses_the_end_of_its_file_in_silence(shim, tmp_path) -> None:
    """C's streams, which numpy and faiss use by themselves, hold it back until they are closed."""
    (sound,) = play(shim, writers_session, tmp_path / "sound")
    runs = play(shim, writers_session, tmp_path / "failing", code=errno.ENOSPC)
    assert len(runs) > 30
    for run in runs[:-1]:
        (failed,) = {*sound.said} - {*run.said}
        assert f"failed {failed.split()[1]}" in run.said, (run.hit, failed)


def possible(lines: list[str], *, amid: bool = False) -> list[Model]:
    """What may be there: all steps that were done; the first that failed, or is under way, in any part that there is.

    The later ones that failed have done nothing. What the journal could not say to be on the disk may appear later, if
    nothing has been written in its place.
    """
    models, failed = [Model().apply(FIRST)], None
    outcomes = [line for line in lines if line.startswith(("done", "failed"))]
    for step, line in zip(STEPS, outcomes, strict=False):
        if line.startswith("done"):
            models = [one.apply(["open"]).apply(step) for one in models if can(one, step)]
        elif failed is None:
            failed, seq = step, models[0].last_seq
            models = [part for one in models for part in parts(one.apply(["open"]), step)]
    if failed is not None and failed[0] in ("upsert", "delete"):
        models += [one.copy().apply(failed) for one in models if one.last_seq == seq]
    if amid and len(outcomes) < len(STEPS):
        models = [part for one in models for part in parts(one, STEPS[len(outcomes)])]
    return models


def parts(model: Model, step: list) -> list[Model]:
    return [*model.amid(step)] if can(model, step) else [model]


def can(model: Model, step: list) -> bool:
    if step[0] == "rollback":
        return model.current is not None and model.releases[model.current].parent in model.releases
    return step[0] != "activate" or step[1] in model.releases


def check_left(folder: Path, models: Iterable[Model], where: object) -> None:
    """A store is one of `models`, whole, and can be written to."""
    found = look(folder)
    for one in models:
        found.tables = one.tables
        one.served, one.serving, one.bases = None, {}, []
        if found == one:
            break
    else:
        pytest.fail(f"{where}: found {found.brief()}, possible {[one.brief() for one in models]}")
    items = upserted(99)
    with open_recaller(folder, writable=True, auto_compact=False) as recaller:
        recaller.upsert(items_of(items))
    with open_recaller(folder) as recaller:
        assert shown(recaller) == one.releases[one.current].holds | items


def check_new(folder: Path, lines: list[str], where: object) -> None:
    """The store that was made in the session."""
    right = Model().apply(FIRST)
    if "new done" in lines:
        assert look(folder) == right, where
        return
    if not (folder / "releases").exists():
        with pytest.raises(StoreError, match="is no store"):
            look(folder)
    else:
        assert look(folder) in [Model(), right, Model().apply([*FIRST[:-1], False])], where


def test_nothing_is_written_unseen(sound: Run) -> None:
    assert [line for line in sound.said if line.startswith("done")] == [f"done {i}" for i in range(len(STEPS))]
    disk = Disk(sound.before)
    for event in sound.events:
        disk.play(event)
    assert disk.files() == files_in(sound.folder)
    check_new(sound.folder / NEW, sound.said, "sound")
    check_left(sound.folder / STORE, possible(sound.said), "sound")


def check_failures(runs: list[Run]) -> None:
    """Each failure was told clearly, reading went on, and what was acknowledged is there on a sound disk."""
    for run in runs:
        where = (run.failing, run.hit[:1])
        for number, line in enumerate(run.said):
            assert line.startswith(("done", "failed", "reads", "new")), (where, line)
            if line.startswith("reads"):
                release, items = json.loads(line.removeprefix("reads "))
                there = {name: tuple(value) for name, value in items.items()}
                models = possible(run.said[:number])
                assert any((one.served or release, one.serving or there) == (release, there) for one in models), where
        check_new(run.folder / NEW, run.said, where)
        check_left(run.folder / STORE, possible(run.said), where)


def test_a_disk_that_fails_once_costs_one_step(shim, tmp_path) -> None:
    check_failures(play(shim, store_session, tmp_path, code=errno.EIO, every=23))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "forever"),
    [(errno.EIO, False), (errno.ENOSPC, True)],
    ids=["EIO once", "ENOSPC from then on"],
)
def test_a_disk_that_fails_at_any_call_loses_nothing(shim, tmp_path, code: int, forever: bool) -> None:
    check_failures(play(shim, store_session, tmp_path, code=code, forever=forever))


def check_power_loss(run: Run, folder: Path, moments: Iterable[int]) -> None:
    """When the power goes after `moments` events: what is left at the worst, and by chance."""
    disk, moments = Disk(run.before), {*moments}
    for number, event in enumerate([*run.events, None]):
        if number in moments:
            lines = said(run.events[:number])
            for chance in (None, Random(number)):
                disk.leave(folder, chance)
                check_new(folder / NEW, lines, (run.failing, number, chance))
                check_left(folder / STORE, possible(lines, amid=True), (run.failing, number, chance))
        if event is not None:
            disk.play(event)


def test_a_loss_of_power_loses_nothing(sound: Run, tmp_path) -> None:
    check_power_loss(sound, tmp_path / "left", range(0, len(sound.events) + 1, 8))


@pytest.mark.slow
def test_a_loss_of_power_at_any_moment_loses_nothing(sound: Run, tmp_path) -> None:
    check_power_loss(sound, tmp_path / "left", range(len(sound.events) + 1))


@pytest.mark.slow
def test_a_failed_sync_is_not_taken_for_done(shim, tmp_path) -> None:
    for run in play(shim, store_session, tmp_path / "work", code=errno.EIO):
        hit = next((event for event in run.hit if event.kind == "S"), None)
        if hit is not None:
            failed = run.events.index(hit)
            done = [number for number, event in enumerate(run.events) if number > failed and event.kind == "P"]
            check_power_loss(run, tmp_path / "left", [number + 1 for number in (*done[:8:2], done[-1])])
