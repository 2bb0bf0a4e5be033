import json

import pytest
import torch
from support import synthetic

from vecall.errors import TrainingError
from vecall.towers.two_tower import TwoTower
from vecall.training import threads
from vecall.training.fit import train
from vecall.training.module import TwoTowerModule
from vecall.training.settings import TrainingSettings

SETTINGS = TrainingSettings(epochs=1, batch=16)


@pytest.fixture
def set_step_seconds(monkeypatch):
    """Simulate 4 cores without OMP_NUM_THREADS; the fixture sets the seconds of a step on 1 and on 4 threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    previous_count = torch.get_num_threads()
    torch.set_num_threads(4)
    yield lambda single, parallel: monkeypatch.setattr(threads, "_time_steps", lambda *_: [single, parallel])
    torch.set_num_threads(previous_count)


def make_module(**model):
    data = synthetic.make_training_data(item_features=True)
    torch.manual_seed(0)
    towers = TwoTower(synthetic.make_model_settings(**model), data.item_specs, data.user_specs, data.n_items)
    return TwoTowerModule(towers, data, SETTINGS)


@pytest.mark.parametrize(("single", "parallel", "chosen"), [(1.0, 0.6, 4), (1.0, 1.01, 4), (1.0, 1.2, 1)])
def test_faster_thread_count_is_used_and_kept_with_the_run(set_step_seconds, tmp_path, single, parallel, chosen):
    set_step_seconds(single, parallel)
    with threads.use_fastest_thread_count(make_module(), tmp_path):
        assert torch.get_num_threads() == chosen
    assert torch.get_num_threads() == 4
    assert json.loads((tmp_path / "threads.json").read_text()) == {"threads": chosen}
    set_step_seconds(parallel, single)  # a new measurement would choose the other count
    with threads.use_fastest_thread_count(make_module(), tmp_path):
        assert torch.get_num_threads() == chosen


def test_omp_num_threads_of_the_environment_is_respected(set_step_seconds, tmp_path, monkeypatch):
    set_step_seconds(1.0, 9.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with threads.use_fastest_thread_count(make_module(), tmp_path):
        assert torch.get_num_threads() == 4


@pytest.mark.parametrize("content", ["", "{}", '{"threads": 0}', '{"threads": "2"}'])
def test_damaged_threads_file_is_an_error(tmp_path, content):
    (tmp_path / "threads.json").write_text(content)
    with (
        pytest.raises(TrainingError, match=r"threads\.json"),
        threads.use_fastest_thread_count(make_module(), tmp_path),
    ):
        pass


def test_timing_does_not_change_the_module_or_the_random_state():
    module = make_module(hidden=(4,), norm="batch", dropout=0.5)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rng_state = torch.get_rng_state()
    seconds = threads._time_steps(module, (1, 1))
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), rng_state)


def test_training_runs_with_the_chosen_thread_count(set_step_seconds, tmp_path, monkeypatch):
    set_step_seconds(1.0, 2.0)
    thread_counts = []
    training_step = TwoTowerModule.training_step

    def record_thread_count(module, *args):
        thread_counts.append(torch.get_num_threads())
        return training_step(module, *args)

    monkeypatch.setattr(TwoTowerModule, "training_step", record_thread_count)
    train(synthetic.make_training_data(), synthetic.make_model_settings(), SETTINGS, tmp_path)
    assert set(thread_counts) == {1}
