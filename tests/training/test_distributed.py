"""Two processes that train together, compared with one; see `support/sessions/training_session.py`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.sessions import training_session
from support.sessions.training_session import VARIANTS, read_losses, train_variant

from vecall.errors import TrainingError
from vecall.runtime.process_rank import ProcessRank
from vecall.training.distributed import join_process_group

pytestmark = pytest.mark.examples

ROOT = Path(__file__).parents[2]


def find_free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Directory and results of both processes of a session."""
    out = tmp_path_factory.mktemp("session")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port()), "OMP_NUM_THREADS": "1"}
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    processes = [
        subprocess.Popen(
            [sys.executable, training_session.__file__, out],
            env={**os.environ, **address, **path, **ProcessRank(rank, 2, rank, 2).to_environment()},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return out, [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_merged_rows_are_distinct_and_their_gradients_averaged(session):
    for results in session[1]:
        rows, gradients = results["collectives"]["merged"]
        assert rows.tolist() == [2, 5, 7]
        assert gradients.tolist() == [[0.5, 0.5], [0.5, 0.5], [1.5, 1.5]]


def test_process_without_rows_gets_those_of_the_others(session):
    for results in session[1]:
        rows, gradients = results["collectives"]["merged with empty"]
        assert (rows.tolist(), gradients.tolist()) == ([4], [[0.5, 0.5]])


def test_merged_gradients_equal_a_dense_mean_and_have_the_same_bits_everywhere(session):
    dense = torch.zeros(200, 3)
    for rank in range(2):
        random = torch.Generator().manual_seed(rank)
        rows = torch.randperm(200, generator=random)[: 90 + 60 * rank]
        dense[rows] += torch.randn(len(rows), 3, generator=random) / 2
    first, second = (results["collectives"]["merged random"] for results in session[1])
    assert all(torch.equal(own, other) for own, other in zip(first, second, strict=True))
    rows, gradients = first
    assert torch.equal(rows, dense.abs().sum(1).nonzero().squeeze(1))
    torch.testing.assert_close(gradients, dense[rows])


def test_missing_gradients_count_0_and_stay_missing_if_nobody_has_them(session):
    for results in session[1]:
        both, first, neither = results["collectives"]["gradients"]
        assert (both.tolist(), first.tolist(), neither) == ([1.5, 3.0], [2.0, 4.0], None)


def test_objects_are_broadcast_and_gathered_and_values_averaged(session):
    for results in session[1]:
        collectives = results["collectives"]
        assert collectives["mean"].tolist() == [1.5, 4.5]
        assert collectives["broadcast"] == "from 0"
        assert collectives["gathered"] == ["from 0", "from 1"]


def test_shared_memory_has_what_all_processes_write(session):
    for results in session[1]:
        assert results["collectives"]["shared"].tolist() == [1, 2, 0]


def test_tables_in_common_have_the_bits_of_tables_of_each_process(session):
    for results in session[1]:
        assert results["shares memory"] == [True, False]
        assert all(
            torch.equal(weight, results["apart"][name]) for name, weight in results[next(iter(VARIANTS))].items()
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_have_the_losses_of_one(session, tmp_path, monkeypatch, variant):
    monkeypatch.setattr("vecall.training.plan.MIN_ROWS_OF_ROW_TABLE", 1)
    train_variant(variant, tmp_path, None)
    assert read_losses(session[0] / variant) == pytest.approx(read_losses(tmp_path), abs=1e-4)


@pytest.mark.parametrize("variant", [*VARIANTS, "resumed"])
def test_all_processes_have_the_same_weights(session, variant):
    first, second = (results[variant] for results in session[1])
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_resumed_training_equals_an_uninterrupted_one(session):
    uninterrupted, resumed = (session[1][0][name] for name in (next(iter(VARIANTS)), "resumed"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in uninterrupted.items())
    assert read_losses(session[0] / "resumed") == read_losses(session[0] / next(iter(VARIANTS)))


def test_another_number_of_processes_does_not_resume(session):
    with pytest.raises(TrainingError, match="2 processes"):
        train_variant("pooled, sampled", session[0] / "resumed", None)


def test_incomplete_environment_is_an_error(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match="LOCAL_RANK"), join_process_group():
        pass


@pytest.mark.parametrize("variables", [{}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_single_process_needs_no_group(monkeypatch, variables):
    monkeypatch.delenv("RANK", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with join_process_group() as group:
        assert group is None


def test_incomplete_environment_is_told_as_such(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1234")
    with pytest.raises(TrainingError, match="not MASTER_ADDR: start the processes by torchrun"), join_process_group():
        pass
