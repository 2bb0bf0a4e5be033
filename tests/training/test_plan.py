import pytest
from support import synthetic

from vecall.errors import TrainingError
from vecall.towers.two_tower import TwoTower
from vecall.training import plan as plan_file
from vecall.training.plan import TrainingPlan, find_row_tables, resolve_loss
from vecall.training.settings import NegativeSettings, TrainingSettings


def test_auto_loss_is_softmax_until_there_are_too_many_logits(monkeypatch):
    settings = TrainingSettings(batch=10)
    monkeypatch.setattr(plan_file, "_MAX_LOGITS_CPU", 1000)
    assert resolve_loss(settings, 100) == "softmax"
    assert resolve_loss(settings, 101) == "sampled_softmax"
    assert resolve_loss(TrainingSettings(batch=10, loss="bce"), 101) == "bce"
    with pytest.raises(TrainingError, match="negatives"):
        resolve_loss(TrainingSettings(batch=10, negatives=NegativeSettings(uniform=0, in_batch=0)), 101)


@pytest.fixture
def towers(monkeypatch):
    monkeypatch.setattr(plan_file, "MIN_ROWS_OF_ROW_TABLE", 1)
    data = synthetic.make_training_data()
    return TwoTower(synthetic.make_model_settings(), data.item_specs, data.user_specs, data.n_items)


def test_item_tables_are_trained_by_rows_unless_all_items_are_read(towers):
    assert find_row_tables(towers, items_by_rows=True) == [towers.item_id_embedding]
    assert find_row_tables(towers, items_by_rows=False) == []
    by_rows_by_candidates = {
        n_candidates: TrainingPlan.make(TrainingSettings(loss=loss), towers, n_candidates).items_by_rows
        for loss, n_candidates in (
            ("softmax", synthetic.ITEMS),
            ("sampled_softmax", synthetic.ITEMS + 1),
            ("softmax", 9),
        )
    }
    assert by_rows_by_candidates == {synthetic.ITEMS: False, synthetic.ITEMS + 1: True, 9: True}


@pytest.mark.parametrize(("ema_decay", "copies"), [(0.0, 3), (0.9, 4)])
def test_rows_keep_moments_while_they_fit_in_a_third_of_the_memory(towers, monkeypatch, ema_decay, copies):
    table_bytes = towers.item_id_embedding.weight.numel() * 4
    settings = TrainingSettings(loss="sampled_softmax", ema_decay=ema_decay)
    for spare, row_moments in ((3, True), (-3, False)):
        monkeypatch.setattr(plan_file, "total_memory_bytes", lambda spare=spare: 3 * copies * table_bytes + spare)
        assert TrainingPlan.make(settings, towers, 10) == TrainingPlan(
            loss="sampled_softmax", items_by_rows=True, row_moments=row_moments
        )


def test_processes_that_hold_tables_in_common_have_all_the_memory_for_them(towers, monkeypatch):
    memory = 3 * 3 * towers.item_id_embedding.weight.numel() * 4 + 3
    monkeypatch.setattr(plan_file, "total_memory_bytes", lambda: memory)
    for shares_tables in (False, True):
        settings = TrainingSettings(loss="sampled_softmax")
        plan = TrainingPlan.make(settings, towers, 10, 2, shares_tables=shares_tables)
        assert (plan.row_moments, plan.processes) == (shares_tables, 2)


@pytest.mark.parametrize(
    ("gpu_tables", "row_moments", "on_cpu"), [(9.1, True, False), (3.1, False, False), (2, True, True)]
)
def test_tables_stay_on_the_cpu_if_a_gpu_has_no_room(towers, monkeypatch, gpu_tables, row_moments, on_cpu):
    table_bytes = towers.item_id_embedding.weight.numel() * 4
    monkeypatch.setattr(plan_file, "_get_gpu_memory", lambda: int(gpu_tables * table_bytes))
    plan = TrainingPlan.make(TrainingSettings(loss="sampled_softmax"), towers, 10)
    assert (plan.row_moments, plan.tables_on_cpu) == (row_moments, on_cpu)


def test_plan_is_kept_when_the_machine_changes(towers, monkeypatch, tmp_path):
    made = TrainingPlan.read_or_make(tmp_path, TrainingSettings(), towers, 10)
    monkeypatch.setattr(plan_file, "_MAX_LOGITS_CPU", 0)
    monkeypatch.setattr(plan_file, "total_memory_bytes", lambda: 0)
    assert TrainingPlan.read_or_make(tmp_path, TrainingSettings(), towers, 10) == made
    assert TrainingPlan.make(TrainingSettings(), towers, 10) != made


def test_damaged_plan_is_refused_by_its_path(towers, tmp_path):
    (tmp_path / "plan.json").write_text('{"loss": "softmax"}')
    with pytest.raises(TrainingError, match=r"(?s)plan\.json: cannot be read: .*row_moments"):
        TrainingPlan.read_or_make(tmp_path, TrainingSettings(), towers, 10)
