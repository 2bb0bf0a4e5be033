"""A recaller and its store on disks that fail at any call, and on disks that lose power at any moment."""

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
def faultless(shim, tmp_path_factory) -> SessionRun:
    (run,) = run_with_faults(shim, store_session, tmp_path_factory.mktemp("faultless"))
    return run


def test_writers_report_every_failed_write(shim, tmp_path) -> None:
    """Even the last one of a file, which C's streams, used by numpy and faiss, delay until they are closed."""
    (faultless,) = run_with_faults(shim, writers_session, tmp_path / "faultless")
    runs = run_with_faults(shim, writers_session, tmp_path / "failing", error_code=errno.ENOSPC)
    assert len(runs) > 30
    for run in runs[:-1]:
        (missing,) = {*faultless.output_lines} - {*run.output_lines}
        assert f"failed {missing.split()[1]}" in run.output_lines, (run.failed_calls, missing)


def list_possible_states(lines: list[str], *, interrupted: bool = False) -> list[StoreOracle]:
    """Return the possible states of a store after a session has emitted `lines`.

    All acknowledged steps have taken effect. The first failed step, or the interrupted one, has done any part of its
    work; later failed ones have done nothing. A write of which the journal could not tell whether it reached the disk
    may appear later, unless another one was written in its place.
    """
    states, failed = [StoreOracle().apply(FIRST_PUBLISH)], None
    outcomes = [line for line in lines if line.startswith(("done", "failed"))]
    for step, line in zip(STEPS, outcomes, strict=False):
        if line.startswith("done"):
            states = [state.apply(["open"]).apply(step) for state in states if is_applicable(state, step)]
        elif failed is None:
            failed, seq = step, states[0].last_seq
            states = [after for state in states for after in list_states_after(state.apply(["open"]), step)]
    if failed is not None and failed[0] in ("upsert", "delete"):
        states += [state.copy().apply(failed) for state in states if state.last_seq == seq]
    if interrupted and len(outcomes) < len(STEPS):
        states = [after for state in states for after in list_states_after(state, STEPS[len(outcomes)])]
    return states


def list_states_after(state: StoreOracle, step: list) -> list[StoreOracle]:
    return [*state.iterate_possible_states(step)] if is_applicable(state, step) else [state]


def is_applicable(state: StoreOracle, step: list) -> bool:
    if step[0] == "rollback":
        return state.current is not None and state.releases[state.current].parent in state.releases
    return step[0] != "activate" or step[1] in state.releases


def check_store(store_dir: Path, possible: Iterable[StoreOracle], context: object) -> None:
    """Check that a store is in one of the possible states and can be written to."""
    observed = inspect_store(store_dir)
    for state in possible:
        observed.exported_tables = state.exported_tables
        state.served_release, state.served_items, state.compaction_bases = None, {}, []
        if observed == state:
            break
    else:
        summaries = [state.summarize() for state in possible]
        pytest.fail(f"{context}: found {observed.summarize()}, possible {summaries}")
    items = draw_upsert(99)
    with open_recaller(store_dir, writable=True, auto_compact=False) as recaller:
        recaller.upsert(to_upsert_items(items))
    with open_recaller(store_dir) as recaller:
        assert read_all_items(recaller) == state.releases[state.current].items | items


def check_new_store(store_dir: Path, lines: list[str], context: object) -> None:
    """Check the store that the session has created."""
    complete = StoreOracle().apply(FIRST_PUBLISH)
    if "new done" in lines:
        assert inspect_store(store_dir) == complete, context
        return
    if not (store_dir / "releases").exists():
        with pytest.raises(StoreError, match="is no store"):
            inspect_store(store_dir)
    else:
        not_activated = StoreOracle().apply([*FIRST_PUBLISH[:-1], False])
        assert inspect_store(store_dir) in [StoreOracle(), complete, not_activated], context


def test_every_write_to_the_store_is_recorded(faultless: SessionRun) -> None:
    lines = faultless.output_lines
    assert [line for line in lines if line.startswith("done")] == [f"done {i}" for i in range(len(STEPS))]
    disk = SimulatedDisk(faultless.initial_dir)
    for event in faultless.events:
        disk.replay(event)
    assert disk.read_files() == read_real_files(faultless.directory)
    check_new_store(faultless.directory / NEW_STORE_DIR, lines, "faultless")
    check_store(faultless.directory / STORE_DIR, list_possible_states(lines), "faultless")


def check_failures(runs: list[SessionRun]) -> None:
    """Check that failures were reported, reading went on, and no acknowledged step is lost."""
    for run in runs:
        context = (run.failing_call, run.failed_calls[:1])
        for number, line in enumerate(run.output_lines):
            assert line.startswith(("done", "failed", "reads", "new")), (context, line)
            if line.startswith("reads"):
                release, versions = json.loads(line.removeprefix("reads "))
                items = {item_id: tuple(version) for item_id, version in versions.items()}
                assert any(
                    (state.served_release or release, state.served_items or items) == (release, items)
                    for state in list_possible_states(run.output_lines[:number])
                ), context
        check_new_store(run.directory / NEW_STORE_DIR, run.output_lines, context)
        check_store(run.directory / STORE_DIR, list_possible_states(run.output_lines), context)


@pytest.mark.examples
def test_single_faults_lose_nothing(shim, tmp_path) -> None:
    check_failures(run_with_faults(shim, store_session, tmp_path, error_code=errno.EIO, step=23))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "keeps_failing"),
    [(errno.EIO, False), (errno.ENOSPC, True)],
    ids=["EIO once", "ENOSPC from then on"],
)
def test_faults_at_any_call_lose_nothing(shim, tmp_path, code: int, keeps_failing: bool) -> None:
    check_failures(run_with_faults(shim, store_session, tmp_path, error_code=code, keeps_failing=keeps_failing))


def check_power_loss(run: SessionRun, directory: Path, moments: Iterable[int]) -> None:
    """Check the stores after a loss of power that follows on event number `moments`.

    Each time with only the synced writes left, and with a random part of the others.
    """
    disk, moments = SimulatedDisk(run.initial_dir), {*moments}
    for number, event in enumerate([*run.events, None]):
        if number in moments:
            lines = read_output_lines(run.events[:number])
            for rng in (None, Random(number)):
                context = (run.failing_call, number, rng)
                disk.write_power_loss_state(directory, rng)
                check_new_store(directory / NEW_STORE_DIR, lines, context)
                check_store(directory / STORE_DIR, list_possible_states(lines, interrupted=True), context)
        if event is not None:
            disk.replay(event)


@pytest.mark.examples
def test_power_loss_loses_nothing(faultless: SessionRun, tmp_path) -> None:
    check_power_loss(faultless, tmp_path / "left", range(0, len(faultless.events) + 1, 8))


@pytest.mark.slow
def test_power_loss_at_any_moment_loses_nothing(faultless: SessionRun, tmp_path) -> None:
    check_power_loss(faultless, tmp_path / "left", range(len(faultless.events) + 1))


@pytest.mark.slow
def test_step_with_a_failed_sync_is_not_acknowledged(shim, tmp_path) -> None:
    for run in run_with_faults(shim, store_session, tmp_path / "work", error_code=errno.EIO):
        failed_sync = next((event for event in run.failed_calls if event.kind == "S"), None)
        if failed_sync is not None:
            failed = run.events.index(failed_sync)
            emitted = [number for number, event in enumerate(run.events) if number > failed and event.kind == "P"]
            check_power_loss(run, tmp_path / "left", [number + 1 for number in (*emitted[:8:2], emitted[-1])])
