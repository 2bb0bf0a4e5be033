"""Estimate of a training's memory: beside the measured peak, and what is refused with which advice."""

import dataclasses

import numpy as np
import pytest
import torch
from support.memory import measure_peak_bytes, read_memory_bytes

from vecall.data.feature_encoder import FeatureSpec
from vecall.data.ragged import RaggedArray
from vecall.data.split import NO_HARD_NEGATIVES, HardNegatives
from vecall.errors import TrainingError
from vecall.towers.embedding import RowEmbedding
from vecall.towers.settings import HistorySettings, ModelSettings
from vecall.towers.two_tower import TwoTower
from vecall.training import fit as fit_module
from vecall.training import plan as plan_module
from vecall.training import row_table as row_table_module
from vecall.training import scoring as scoring_module
from vecall.training.data import TrainingData
from vecall.training.fit import train
from vecall.training.memory import check_memory, estimate_memory
from vecall.training.plan import TrainingPlan
from vecall.training.row_table import RowTable
from vecall.training.scoring import TowerScorer
from vecall.training.settings import NegativeSettings, TrainingSettings
from vecall.training.spectral import compute_spectral_part, estimate_spectral_bytes, initialize_item_ids

GIB = 2**30
TITLE_LENGTH, TITLE_BUCKETS = 12, 20_000


@pytest.fixture(autouse=True)
def memory_of_the_machine(monkeypatch):
    """What a plan chooses depends on the machine."""
    monkeypatch.setattr(plan_module, "total_memory_bytes", lambda: 24 * GIB)


def make_data(n_items, *, n_users=500, history_length=20, has_titles=True):
    rng = np.random.default_rng(0)
    titles = {"title": rng.integers(1, TITLE_BUCKETS, (n_items, TITLE_LENGTH), dtype=np.int32)} if has_titles else {}
    return TrainingData(
        histories=RaggedArray.from_lists(rng.integers(n_items, size=(n_users, history_length))),
        hard_negatives=NO_HARD_NEGATIVES,
        n_items=n_items,
        item_features=titles,
        user_features={},
        item_specs={"title": FeatureSpec("multi_value", TITLE_BUCKETS)} if has_titles else {},
        user_specs={},
    )


def compile_kernels():
    """Compile the kernels of row tables, so that the compiler's memory is not measured."""
    table = RowTable(RowEmbedding(2, 2), has_moments=True)
    rows = torch.arange(2)
    table.step(rows, torch.zeros_like(table.read(rows)), lr=1.0, weight_decay=0.0)


@pytest.mark.parametrize(
    ("has_moments", "ema_decay", "encoder"), [(True, 0.0, "mean"), (False, 0.9, "causal")], ids=["moments", "row-wise"]
)
def test_estimate_is_near_the_measured_peak(tmp_path, monkeypatch, has_moments, ema_decay, encoder):
    monkeypatch.setattr(plan_module, "_MAX_MEMORY_SHARE", float(has_moments))
    data = make_data(200_000, n_users=30)
    model = ModelSettings(dim=128, history=HistorySettings(encoder=encoder))
    settings = TrainingSettings(loss="sampled_softmax", epochs=1, ema_decay=ema_decay)

    def run(_):
        train(data, model, settings, tmp_path, validate=lambda scorer: {"valid_score": 1.0})

    compile_kernels()
    estimate = estimate_memory(data, model, settings)
    measured = measure_peak_bytes(run)
    assert 0.9 < (estimate.total - estimate.loaded) / measured < 1.4


def test_estimate_of_a_softmax_of_sets_is_near_the_measured_peak(tmp_path):
    data = make_data(20_000, n_users=500, has_titles=False)
    model = ModelSettings(dim=128, ensemble_size=2, history=HistorySettings(encoder="set", length=500))
    settings = TrainingSettings(loss="softmax", epochs=1)
    estimate = estimate_memory(data, model, settings)
    measured = measure_peak_bytes(lambda _: train(data, model, settings, tmp_path))
    assert 0.9 < (estimate.total - estimate.loaded) / measured < 1.4


def train_large_table(monkeypatch, directory, n_items, *, has_moments):
    """Train a table that is large beside all else, and encode items with it; return the anonymous memory in tables."""
    monkeypatch.setattr(plan_module, "_MAX_MEMORY_SHARE", float(has_moments))
    monkeypatch.setattr(scoring_module, "MAX_FULL_PRECISION_BYTES", 0)  # half precision
    monkeypatch.setattr(row_table_module, "_FLUSH_ROWS", 4096)
    data, before = make_data(n_items, n_users=10, has_titles=False), read_memory_bytes("RssAnon")
    model = ModelSettings(dim=128, history=HistorySettings(encoder="mean"))
    negatives = NegativeSettings(uniform=64, in_batch=0)
    settings = TrainingSettings(loss="sampled_softmax", epochs=1, batch=64, negatives=negatives)
    result = train(data, model, settings, directory, validate=lambda scorer: {"valid_score": 1.0})
    anonymous = read_memory_bytes("RssAnon") - before
    TowerScorer(result.towers, data)
    return anonymous / (4 * model.dim * n_items)


def test_table_is_in_memory_once_after_training(tmp_path, monkeypatch):
    """The peak is that of the validation: the table, and vectors in half precision; a second table would be more."""
    compile_kernels()
    peak = measure_peak_bytes(lambda _: train_large_table(monkeypatch, tmp_path, 500_000, has_moments=False))
    assert peak < 2.0 * 4 * 128 * 500_000


def test_moments_and_weights_of_the_last_step_are_freed_after_training(tmp_path, monkeypatch):
    def run(_):
        assert train_large_table(monkeypatch, tmp_path, 200_000, has_moments=True) < 0.8

    compile_kernels()
    measure_peak_bytes(run)  # fails if the child does


@pytest.mark.parametrize(("n_users", "n_items"), [(500, 60_000), (60_000, 15_000)])
def test_estimate_of_a_spectral_start_is_near_the_measured_peak(n_users, n_items):
    data = make_data(n_items, n_users=n_users, history_length=100 if n_users == 500 else 5, has_titles=False)
    model = ModelSettings(dim=128, item_init="spectral", history=HistorySettings(encoder="set"))
    estimate = estimate_memory(data, model, TrainingSettings(loss="sampled_softmax"))
    measured = measure_peak_bytes(
        lambda towers: initialize_item_ids(towers, data.histories, seed=0),
        lambda: TwoTower(model, {}, {}, n_items),
    )
    assert 0.9 < estimate.spectral_start / measured < 1.4


@pytest.mark.parametrize(("n_users", "n_items"), [(500, 60_000), (60_000, 15_000)])
def test_estimate_of_a_spectral_part_is_near_the_measured_peak(n_users, n_items):
    data = make_data(n_items, n_users=n_users, history_length=100 if n_users == 500 else 5, has_titles=False)
    history = HistorySettings(encoder="set")
    model = ModelSettings(dim=160, max_trained_dim=32, item_init="random", history=history)
    estimate = estimate_memory(data, model, TrainingSettings(loss="sampled_softmax"))
    measured = measure_peak_bytes(
        lambda towers: compute_spectral_part(towers, data.histories, seed=0),
        lambda: TwoTower(model, {}, {}, n_items),
    )
    assert 0.9 < estimate.spectral_start / measured < 1.5
    start = model.model_copy(update={"item_init": "spectral"})
    started = estimate_memory(data, start, TrainingSettings(loss="sampled_softmax")).spectral_start
    assert started == max(estimate.spectral_start, estimate_spectral_bytes(data.histories, n_items, dim=32))


def test_items_of_a_step_of_sets_are_those_of_users_that_are_learned_from():
    """Users without two items are not; of a larger set a step draws 2 L items."""
    model = ModelSettings(history=HistorySettings(encoder="set", length=10))
    sampled = TrainingSettings(loss="sampled_softmax")
    data = make_data(100_000, has_titles=False)  # with 20 items of each user
    steps = []
    for lists in ([[1]] * 99 + [range(20)], [range(20)], [range(5000)], [[1]], [[]]):
        histories = RaggedArray.from_lists(lists)
        steps.append(estimate_memory(dataclasses.replace(data, histories=histories), model, sampled).step)
    assert steps[0] == steps[1] == steps[2] == estimate_memory(data, model, sampled).step
    assert steps[3] == steps[4] < steps[0]
    whole = estimate_memory(data, model, TrainingSettings(loss="softmax"))
    assert whole.step > 4 * 512 * 100_000 * 4


def test_total_is_the_sum_of_its_parts():
    data = make_data(1000)
    estimate = estimate_memory(data, ModelSettings(), TrainingSettings(batch=64))
    parts = dataclasses.asdict(estimate)
    assert min(parts.values()) >= 0
    assert estimate.loaded == data.item_features["title"].nbytes + 8 * (501 + 500 * 20)
    assert parts["spectral_start"] == 0
    assert estimate.total == sum(parts.values())
    without_validation = estimate_memory(data, ModelSettings(), TrainingSettings(batch=64), validates=False)
    assert estimate.total - without_validation.total == estimate.validation > 4 * 1000 * 128


def test_a_spectral_start_counts_where_it_needs_more_than_training():
    data, settings = make_data(1000, n_users=60_000, history_length=5, has_titles=False), TrainingSettings(batch=32)
    random, spectral = (ModelSettings(dim=128, item_init=start) for start in ("random", "spectral"))
    estimate = estimate_memory(data, spectral, settings)
    assert estimate.total == estimate.loaded + estimate.weights + estimate.spectral_start
    needed = estimate_memory(data, random, settings)
    assert dataclasses.replace(estimate, spectral_start=0) == needed
    assert needed.total < estimate.total
    with pytest.raises(TrainingError, match=r'would fit: .*model\.item_init = "random"'):
        check_memory(data, spectral, settings, needed.total)


def test_average_moments_and_full_softmax_need_more():
    data, model = make_data(50_000), ModelSettings()
    sampled = TrainingSettings(loss="sampled_softmax")
    row_wise, moments = (
        estimate_memory(
            data, model, sampled, TrainingPlan(loss="sampled_softmax", items_by_rows=True, row_moments=has_moments)
        )
        for has_moments in (False, True)
    )
    n_table_weights = (50_001 + TITLE_BUCKETS) * model.dim
    assert moments.optimizer_state - row_wise.optimizer_state == 8 * n_table_weights - 4 * (50_001 + TITLE_BUCKETS)
    averaged = estimate_memory(data, model, sampled.model_copy(update={"ema_decay": 0.9}))
    assert averaged.moving_average == averaged.weights == moments.weights
    full = estimate_memory(data, model, TrainingSettings(loss="softmax"))
    assert full.step > 1.05 * moments.step


def test_hard_negatives_count_where_they_are_read():
    data, count = make_data(1000), 100_000
    pairs = HardNegatives(*(np.zeros(count, dtype=np.int64) for _ in range(3)))
    negatives = dataclasses.replace(data, hard_negatives=pairs)
    for settings, low, high in (
        (TrainingSettings(loss="softmax"), 24, 24),
        (TrainingSettings(loss="bce"), 48, 48),
        (TrainingSettings(loss="sampled_softmax", negatives={"hard": 0}), 24, 24),
        (TrainingSettings(loss="sampled_softmax"), 60, 70),
    ):
        plan = TrainingPlan(loss=settings.loss, items_by_rows=False, row_moments=True)
        without, with_negatives = (estimate_memory(part, ModelSettings(), settings, plan) for part in (data, negatives))
        added = with_negatives.loaded - without.loaded + with_negatives.samples - without.samples
        assert low <= added / count <= high


def test_processes_that_share_tables_need_one_and_twice_as_much_at_the_start():
    data, model = make_data(50_000, has_titles=False), ModelSettings()
    settings = TrainingSettings(loss="sampled_softmax", ema_decay=0.9)
    alone = estimate_memory(data, model, settings)
    apart, shared = (
        estimate_memory(data, model, settings, processes=2, shares_tables=shares_tables)
        for shares_tables in (False, True)
    )
    assert (apart.weights, apart.optimizer_state, apart.unshared_tables) == (alone.weights, alone.optimizer_state, 0)
    assert apart.step > alone.step
    table_bytes = 4 * 50_001 * model.dim
    assert shared.weights == alone.weights - table_bytes // 2
    assert shared.moving_average == alone.moving_average - table_bytes // 2
    assert shared.optimizer_state == alone.optimizer_state - (2 * table_bytes + 4 * 50_001) // 2
    assert shared.unshared_tables == table_bytes  # half of the weights and of their average
    assert shared.total == sum(dataclasses.asdict(shared).values()) - shared.unshared_tables


def test_training_that_fits_is_accepted():
    data, model, settings = make_data(1000), ModelSettings(), TrainingSettings()
    estimate = estimate_memory(data, model, settings)
    assert check_memory(data, model, settings, estimate.total - estimate.loaded) == estimate


def test_training_that_does_not_fit_is_refused_with_numbers_and_settings():
    data = make_data(100, has_titles=False)
    data = dataclasses.replace(data, n_items=10_000_000)
    settings = TrainingSettings(ema_decay=0.99)
    with pytest.raises(TrainingError) as raised:
        check_memory(data, ModelSettings(dim=256), settings, 12 * GIB)
    text = str(raised.value)
    assert "needs about 14.8 GiB" in text
    assert "has 12.0 GiB" in text
    assert "(weights 9.5, validation 4.8, " in text
    assert "settings that would fit: model.dim = 128 (" in text
    assert "item_id" not in text  # there are no features to encode items by
    halved = estimate_memory(data, ModelSettings(dim=128), settings)
    assert halved.total < 12 * GIB


def test_item_id_is_suggested_where_items_have_features():
    data = dataclasses.replace(make_data(100), n_items=3_000_000)
    with pytest.raises(TrainingError, match=r"would fit: model\.dim = 32 .*; model\.item_id = false"):
        check_memory(data, ModelSettings(), TrainingSettings(), 2 * GIB)


def test_no_setting_is_suggested_where_none_is_enough():
    data = dataclasses.replace(make_data(100, has_titles=False), n_items=10_000_000)
    with pytest.raises(TrainingError, match=r"no single setting is enough: lower model\.dim and training\.batch"):
        check_memory(data, ModelSettings(), TrainingSettings(), GIB // 4)


def test_training_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "available_memory_bytes", lambda: 2**20)
    with pytest.raises(TrainingError, match=r"needs about .* GiB of memory and has"):
        train(make_data(1000), ModelSettings(), TrainingSettings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
