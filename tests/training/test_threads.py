import json
import os
import subprocess
import sys

import pytest
import torch
from support import synthetic

from vecall.errors import TrainingError
from vecall.runtime import openmp
from vecall.towers.two_tower import TwoTower
from vecall.training import threads
from vecall.training.fit import train
from vecall.training.module import TwoTowerModule
from vecall.training.settings import TrainingSettings

SETTINGS = TrainingSettings(epochs=1, batch=16)


@pytest.fixture
def several(monkeypatch):
    """As on a machine of four cores whose user said nothing; how long a step takes is planted."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield lambda one, all_of_them: monkeypatch.setattr(threads, "_time_steps", lambda *_: [one, all_of_them])
    torch.set_num_threads(before)


def recipe(**model):
    problem = synthetic.make_training_data(item_features=True)
    torch.manual_seed(0)
    towers = TwoTower(synthetic.make_model_settings(**model), problem.item_specs, problem.user_specs, problem.n_items)
    return TwoTowerModule(towers, problem, SETTINGS)


@pytest.mark.parametrize(("one", "four", "chosen"), [(1.0, 0.6, 4), (1.0, 1.01, 4), (1.0, 1.2, 1)])
def test_the_quicker_number_is_taken_and_kept(several, tmp_path, one, four, chosen):
    several(one, four)
    with threads.use_fastest_thread_count(recipe(), tmp_path):
        assert torch.get_num_threads() == chosen
    assert torch.get_num_threads() == 4
    assert json.loads((tmp_path / "threads.json").read_text()) == {"threads": chosen}
    several(four, one)  # another answer now: what was kept stands, for sums depend on it
    with threads.use_fastest_thread_count(recipe(), tmp_path):
        assert torch.get_num_threads() == chosen


def test_what_the_user_says_stands(several, tmp_path, monkeypatch):
    several(1.0, 9.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with threads.use_fastest_thread_count(recipe(), tmp_path):
        assert torch.get_num_threads() == 4


@pytest.mark.parametrize("content", ["", "{}", '{"threads": 0}', '{"threads": "2"}'])
def test_a_damaged_number_is_told(tmp_path, content):
    (tmp_path / "threads.json").write_text(content)
    with pytest.raises(TrainingError, match=r"threads\.json"), threads.use_fastest_thread_count(recipe(), tmp_path):
        pass


def test_measuring_changes_nothing(tmp_path):
    made = recipe(hidden=(4,), norm="batch", dropout=0.5)
    before = {name: x.clone() for name, x in made.state_dict().items()}
    state = torch.get_rng_state()
    one, same = threads._time_steps(made, (1, 1))
    assert one > 0
    assert same > 0
    assert all(torch.equal(x, before[name]) for name, x in made.state_dict().items())
    assert all(x.grad is None for x in made.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_training_uses_it(several, tmp_path, monkeypatch):
    several(1.0, 2.0)
    seen = []
    step = TwoTowerModule.training_step
    monkeypatch.setattr(
        TwoTowerModule,
        "training_step",
        lambda self, *asked: (seen.append(torch.get_num_threads()), step(self, *asked))[1],
    )
    train(synthetic.make_training_data(), synthetic.make_model_settings(), SETTINGS, tmp_path)
    assert set(seen) == {1}


@pytest.mark.parametrize(
    ("load", "set_to"),
    [
        ("0.10 0.5 0.5 1/80 99", {"GOMP_SPINCOUNT": "5000"}),
        ("0.10 0.5 0.5 4/80 99", {"OMP_WAIT_POLICY": "PASSIVE"}),  # three others run now
        ("3.00 0.5 0.5 1/80 99", {"OMP_WAIT_POLICY": "PASSIVE"}),  # and so they did for a while
        ("damaged", {"GOMP_SPINCOUNT": "5000"}),
        (None, {"GOMP_SPINCOUNT": "5000"}),
    ],
)
def test_waiting_threads_sleep_soon_and_at_once_on_a_busy_machine(monkeypatch, tmp_path, load, set_to):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(openmp, "_LOAD", tmp_path / "loadavg")
    if load is not None:
        (tmp_path / "loadavg").write_text(load)
    before = dict(os.environ)
    openmp.limit_spinning()
    assert dict(os.environ) == before | set_to
    for name in set_to:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_how_threads_wait_is_the_environment_s_to_say(monkeypatch, name):
    for one in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(name, "7")
    before = dict(os.environ)
    openmp.limit_spinning()
    assert dict(os.environ) == before


@pytest.mark.parametrize(("code", "count"), [("import vecall", 0), ("import vecall; vecall.Query", 1)])
def test_it_is_set_when_something_is_used_and_not_on_import(code, count):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import os; print(sum(name in os.environ for name in {names}))"],
        env={name: value for name, value in os.environ.items() if name not in names},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == count
