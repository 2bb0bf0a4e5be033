"""A recaller and its store on a disk that fails at any call, and on one that loses power at any moment."""

import errno
import json
from collections.abc import Iterable
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
from support.sessions import store_session, writers_session
from support.sessions.store_session import FIRST_PUBLISH, NEW_STORE_DIR, STEPS, STORE_DIR
from support.store_oracle import StoreOracle, draw_upsert, inspect_store, read_all_items, to_upsert_items

from vecall.errors import StoreError
from vecall.recall.recaller import open_recaller


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def sound(shim, tmp_path_factory) -> SessionRun:
    (run,) = run_with_faults(shim, store_session, tmp_path_factory.mktemp("sound"))
    return run


def test_no_writer_loses_the_end_of_its_file_in_silence(shim, tmp_path) -> None:
    """C's streams, which numpy and faiss use by themselves, hold it back until they are closed."""
    (sound,) = run_with_faults(shim, writers_session, tmp_path / "sound")
    runs = run_with_faults(shim, writers_session, tmp_path / "failing", error_code=errno.ENOSPC)
    assert len(runs) > 30
    for run in runs[:-1]:
        (failed,) = {*sound.output_lines} - {*run.output_lines}
        assert f"failed {failed.split()[1]}" in run.output_lines, (run.failed_calls, failed)


def possible(lines: list[str], *, amid: bool = False) -> list[StoreOracle]:
    """What may be there: all steps that were done; the first that failed, or is under way, in any part that there is.

    The later ones that failed have done nothing. What the journal could not say to be on the disk may appear later, if
    nothing has been written in its place.
    """
    models, failed = [StoreOracle().apply(FIRST_PUBLISH)], None
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


def parts(model: StoreOracle, step: list) -> list[StoreOracle]:
    return [*model.iterate_possible_states(step)] if can(model, step) else [model]


def can(model: StoreOracle, step: list) -> bool:
    if step[0] == "rollback":
        return model.current is not None and model.releases[model.current].parent in model.releases
    return step[0] != "activate" or step[1] in model.releases


def check_left(folder: Path, models: Iterable[StoreOracle], where: object) -> None:
    """A store is one of `models`, whole, and can be written to."""
    found = inspect_store(folder)
    for one in models:
        found.exported_tables = one.exported_tables
        one.served_release, one.served_items, one.compaction_bases = None, {}, []
        if found == one:
            break
    else:
        pytest.fail(f"{where}: found {found.summarize()}, possible {[one.summarize() for one in models]}")
    items = draw_upsert(99)
    with open_recaller(folder, writable=True, auto_compact=False) as recaller:
        recaller.upsert(to_upsert_items(items))
    with open_recaller(folder) as recaller:
        assert read_all_items(recaller) == one.releases[one.current].items | items


def check_new(folder: Path, lines: list[str], where: object) -> None:
    """The store that was made in the session."""
    right = StoreOracle().apply(FIRST_PUBLISH)
    if "new done" in lines:
        assert inspect_store(folder) == right, where
        return
    if not (folder / "releases").exists():
        with pytest.raises(StoreError, match="is no store"):
            inspect_store(folder)
    else:
        assert inspect_store(folder) in [StoreOracle(), right, StoreOracle().apply([*FIRST_PUBLISH[:-1], False])], where


def test_nothing_is_written_unseen(sound: SessionRun) -> None:
    assert [line for line in sound.output_lines if line.startswith("done")] == [f"done {i}" for i in range(len(STEPS))]
    disk = SimulatedDisk(sound.initial_dir)
    for event in sound.events:
        disk.replay(event)
    assert disk.read_files() == read_real_files(sound.directory)
    check_new(sound.directory / NEW_STORE_DIR, sound.output_lines, "sound")
    check_left(sound.directory / STORE_DIR, possible(sound.output_lines), "sound")


def check_failures(runs: list[SessionRun]) -> None:
    """Each failure was told clearly, reading went on, and what was acknowledged is there on a sound disk."""
    for run in runs:
        where = (run.failing_call, run.failed_calls[:1])
        for number, line in enumerate(run.output_lines):
            assert line.startswith(("done", "failed", "reads", "new")), (where, line)
            if line.startswith("reads"):
                release, items = json.loads(line.removeprefix("reads "))
                there = {name: tuple(value) for name, value in items.items()}
                models = possible(run.output_lines[:number])
                assert any(
                    (one.served_release or release, one.served_items or there) == (release, there) for one in models
                ), where
        check_new(run.directory / NEW_STORE_DIR, run.output_lines, where)
        check_left(run.directory / STORE_DIR, possible(run.output_lines), where)


def test_a_disk_that_fails_once_costs_one_step(shim, tmp_path) -> None:
    check_failures(run_with_faults(shim, store_session, tmp_path, error_code=errno.EIO, step=23))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "forever"),
    [(errno.EIO, False), (errno.ENOSPC, True)],
    ids=["EIO once", "ENOSPC from then on"],
)
def test_a_disk_that_fails_at_any_call_loses_nothing(shim, tmp_path, code: int, forever: bool) -> None:
    check_failures(run_with_faults(shim, store_session, tmp_path, error_code=code, keeps_failing=forever))


def check_power_loss(run: SessionRun, folder: Path, moments: Iterable[int]) -> None:
    """When the power goes after `moments` events: what is left at the worst, and by chance."""
    disk, moments = SimulatedDisk(run.initial_dir), {*moments}
    for number, event in enumerate([*run.events, None]):
        if number in moments:
            lines = read_output_lines(run.events[:number])
            for chance in (None, Random(number)):
                disk.write_power_loss_state(folder, chance)
                check_new(folder / NEW_STORE_DIR, lines, (run.failing_call, number, chance))
                check_left(folder / STORE_DIR, possible(lines, amid=True), (run.failing_call, number, chance))
        if event is not None:
            disk.replay(event)


def test_a_loss_of_power_loses_nothing(sound: SessionRun, tmp_path) -> None:
    check_power_loss(sound, tmp_path / "left", range(0, len(sound.events) + 1, 8))


@pytest.mark.slow
def test_a_loss_of_power_at_any_moment_loses_nothing(sound: SessionRun, tmp_path) -> None:
    check_power_loss(sound, tmp_path / "left", range(len(sound.events) + 1))


@pytest.mark.slow
def test_a_failed_sync_is_not_taken_for_done(shim, tmp_path) -> None:
    for run in run_with_faults(shim, store_session, tmp_path / "work", error_code=errno.EIO):
        hit = next((event for event in run.failed_calls if event.kind == "S"), None)
        if hit is not None:
            failed = run.events.index(hit)
            done = [number for number, event in enumerate(run.events) if number > failed and event.kind == "P"]
            check_power_loss(run, tmp_path / "left", [number + 1 for number in (*done[:8:2], done[-1])])
