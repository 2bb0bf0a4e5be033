"""From tables to a release: fit, refit, resume, warm start and publish."""

import shutil

import numpy as np
import polars as pl
import pytest
import torch
from support import synthetic

from vecall.data.split import NO_HARD_NEGATIVES
from vecall.errors import DataError, StoreError, TrainingError
from vecall.pipeline import fit as fit_module
from vecall.pipeline import publish as publish_module
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import CONFIG_FILE, SUMMARY_FILE, Run
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.training.data import TrainingData
from vecall.training.fit import train

ID_TABLE = "item_id_embedding.weight"


@pytest.fixture(autouse=True)
def _monitor_small_k(monkeypatch):
    """Monitor recall@5: recall@100 of 36 items would always be 1."""
    monkeypatch.setattr(fit_module, "_MONITORED_K", 5)


@pytest.fixture
def tables_dir(tmp_path):
    synthetic.write_tables(tmp_path)
    return tmp_path


def load_final_weights(run_dir):
    return Run.open(run_dir).load_final_model().state_dict()


def have_equal_weights(weights, other_weights):
    return weights.keys() == other_weights.keys() and all(
        torch.equal(weights[name], other_weights[name]) for name in weights
    )


def read_metrics_without_time(run_dir):
    return [
        {name: value for name, value in metrics.items() if name != "seconds"}
        for metrics in Run.open(run_dir).read_epoch_metrics()
    ]


def test_published_release_recalls_the_planted_groups(tables_dir):
    run = fit(synthetic.make_config(tables_dir, training={"epochs": 12}), tables_dir / "run")
    assert run.summary.protocol.startswith("leave-one-out")
    assert run.summary.metrics["seen_excluded"]["recall@5"] > 0.8
    name = publish(tables_dir / "run", tables_dir / "store")
    release = open_release(Store.open(tables_dir / "store"))
    release.check_golden_queries()
    assert (release.name, release.manifest.journal_seq) == (name, 0)
    assert release.manifest.metrics == {
        "model": run.summary.metrics,
        **run.summary.baselines,
        "refit": False,
        "split": run.summary.protocol,
    }
    # A user's next items are those of the same group, and most of the nearest items belong to it.
    inputs = release.golden_queries.inputs
    nearest = release.vectors.search_exact(release.golden_queries.vectors, synthetic.GROUP_SIZE).rows
    item_numbers = pl.Series(release.attributes["title"]).str.split(" ").list.get(1).cast(pl.Int64).to_numpy()
    groups = item_numbers % synthetic.GROUPS
    own_group_shares = [
        np.mean(groups[rows] == groups[history[-1]]) for rows, history in zip(nearest, inputs.histories, strict=True)
    ]
    assert np.mean(own_group_shares) > 0.8

    with pytest.raises(StoreError, match="already"):
        publish(tables_dir / "run", tables_dir / "store", name=name)


@pytest.mark.examples
def test_publish_reads_the_tables_again(tables_dir, published):
    """The run knows 36 items; since then the tables have got two more, and users have new interactions."""
    run = Run.open(published / "run")
    synthetic.write_tables(tables_dir, more_items=2)
    with synthetic.make_config(tables_dir).data.interactions[0].open("a") as interactions:
        interactions.write(
            f"user-0,{synthetic.make_item_id(synthetic.ITEMS)},99,5.0\nnewcomer,{synthetic.make_item_id(0)},1,5.0\n"
        )
    shutil.copytree(published / "run", tables_dir / "run")
    config_path = tables_dir / "run" / CONFIG_FILE
    config_path.write_text(config_path.read_text().replace(str(published), str(tables_dir)))
    publish(tables_dir / "run", tables_dir / "store")
    release = open_release(Store.open(tables_dir / "store"))
    release.check_golden_queries()
    assert release.manifest.items == synthetic.ITEMS + 2
    assert release.manifest.encoder == Store.open(published / "store").verify("tiny").encoder

    model, dataset = run.load_final_model(), synthetic.load_dataset(Run.open(tables_dir / "run").config)
    new_row = release.item_ids.to_row(synthetic.make_item_id(synthetic.ITEMS))
    features = model.vocabulary.item_encoder.encode(dataset.catalogue.item_features[new_row : new_row + 1])
    with torch.no_grad():
        unknown = torch.tensor([model.towers.n_items])
        expected = model.towers.encode_items(unknown, {name: torch.from_numpy(x) for name, x in features.items()})
    np.testing.assert_allclose(release.vectors.get_vectors(np.array([new_row])), expected, atol=1e-3)
    assert release.users.histories[release.users.ids.to_row("user-0")][-1] == new_row
    assert release.users.histories[release.users.ids.to_row("newcomer")].tolist() == [
        release.item_ids.to_row(synthetic.make_item_id(0))
    ]
    old_release = open_release(Store.open(published / "store"))
    old_rows = np.arange(synthetic.ITEMS)
    rows = release.item_ids.to_rows(old_release.item_ids.to_ids(old_rows))
    np.testing.assert_allclose(release.vectors.get_vectors(rows), old_release.vectors.get_vectors(old_rows), atol=1e-3)


@pytest.mark.examples
def test_refit_is_published_with_the_metrics_of_the_evaluated_model(tables_dir):
    plain_run = fit(synthetic.make_config(tables_dir), tables_dir / "plain")
    run = fit(synthetic.make_config(tables_dir, training={"refit": True}), tables_dir / "run")
    assert run.summary.refit
    assert run.summary.metrics == plain_run.summary.metrics
    assert read_metrics_without_time(tables_dir / "run") == read_metrics_without_time(tables_dir / "plain")
    evaluated_weights = run.load_evaluated_model().state_dict()
    assert have_equal_weights(evaluated_weights, plain_run.load_evaluated_model().state_dict())
    dataset, final_model = synthetic.load_dataset(run.config), run.load_final_model()
    assert not have_equal_weights(final_model.state_dict(), evaluated_weights)
    # The refit has trained on all interactions, for as many epochs as the evaluated model.
    assert len(dataset.histories.values) == synthetic.USERS * synthetic.GROUP_SIZE
    encoders = final_model.vocabulary.item_encoder, final_model.vocabulary.user_encoder
    all_data = TrainingData.from_catalogue(dataset.catalogue, encoders, dataset.histories, NO_HARD_NEGATIVES)
    epochs = run.summary.best_epoch + 1
    repeated = train(all_data, run.config.model, run.config.training, tables_dir / "again", max_epochs=epochs)
    assert have_equal_weights(repeated.towers.state_dict(), final_model.state_dict())
    assert publish(tables_dir / "run", tables_dir / "store", name="refitted", activate=False) == "refitted"
    store = Store.open(tables_dir / "store")
    assert store.find_current() is None
    release = open_release(store, "refitted")
    assert release.manifest.metrics == {
        "model": run.summary.metrics,
        **plain_run.summary.baselines,
        "refit": True,
        "split": run.summary.protocol,
    }
    features = final_model.vocabulary.item_encoder.encode(dataset.catalogue.item_features)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(x) for name, x in features.items()}
        items = final_model.towers.encode_items(torch.arange(synthetic.ITEMS), tensors)
    np.testing.assert_allclose(release.vectors.get_vectors(np.arange(synthetic.ITEMS)), items, atol=1e-3)


class SimulatedCrash(BaseException):
    """The process dies; not an Exception, so that no handler catches it."""


@pytest.mark.parametrize("stage", ["second epoch", "test evaluation", "refit"])
def test_interrupted_fit_resumes_bit_equal(tables_dir, monkeypatch, stage):
    config = synthetic.make_config(tables_dir, training={"refit": True, "epochs": 3}, model={"dropout": 0.2})
    complete_run = fit(config, tables_dir / "complete")
    target, crashing_call = {
        "second epoch": ("_validate", 2),
        "test evaluation": ("evaluate_scorer", 4),  # after one in each of the three epochs
        "refit": ("select_hard_negatives", 1),
    }[stage]
    original = getattr(fit_module, target)
    call_count = 0

    def crash(*args, **kwargs):
        nonlocal call_count
        call_count += 1
        if call_count == crashing_call:
            raise SimulatedCrash
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, target, crash)
        with pytest.raises(SimulatedCrash):
            fit(config, tables_dir / "run")
    with pytest.raises(TrainingError, match="is unfinished"):
        publish(tables_dir / "run", tables_dir / "store")
    with pytest.raises(TrainingError, match="other settings"):
        fit(synthetic.make_config(tables_dir), tables_dir / "run")
    resumed_run = fit(config, tables_dir / "run")
    assert read_metrics_without_time(tables_dir / "run") == read_metrics_without_time(tables_dir / "complete")
    assert have_equal_weights(load_final_weights(tables_dir / "run"), load_final_weights(tables_dir / "complete"))
    assert have_equal_weights(
        resumed_run.load_evaluated_model().state_dict(), complete_run.load_evaluated_model().state_dict()
    )
    summaries = [run.summary.model_copy(update={"seconds": 0}) for run in (resumed_run, complete_run)]
    assert summaries[0] == summaries[1]
    assert not list((tables_dir / "run").rglob("*.ckpt"))


def test_finished_run_is_not_overwritten(published, monkeypatch):
    monkeypatch.setattr("vecall.pipeline.fit.read_dataset", None)  # it is refused before the tables are read
    summary = (published / "run" / SUMMARY_FILE).read_bytes()
    with pytest.raises(TrainingError, match="holds a finished run"):
        fit(synthetic.make_config(published), published / "run")
    assert (published / "run" / SUMMARY_FILE).read_bytes() == summary
    assert list((published / "run").glob("*.ckpt")) == []


@pytest.mark.parametrize(("name", "message"), [("March", "cannot name a release"), ("tiny", "already has a release")])
def test_name_that_cannot_be_used_is_refused_before_the_tables_are_read(published, monkeypatch, name, message):
    monkeypatch.setattr(publish_module, "read_dataset", None)
    with pytest.raises(StoreError, match=message):
        publish(published / "run", published / "store", name=name)


def test_invalid_tables_create_no_run_directory(tables_dir):
    (tables_dir / "items.csv").unlink()
    with pytest.raises(DataError, match=r"items\.csv: no such file"):
        fit(synthetic.make_config(tables_dir), tables_dir / "run")
    assert not (tables_dir / "run").exists()


def test_warm_start_keeps_old_embeddings_and_starts_new_items_as_unknown(tables_dir, published):
    init_run = Run.open(published / "run")
    synthetic.write_tables(tables_dir, more_items=3)
    # With a vanishing learning rate the weights stay where warm start puts them.
    config = synthetic.make_config(tables_dir, training={"epochs": 1, "lr": 1e-9, "weight_decay": 0.0})
    run = fit(config, tables_dir / "run", init=published / "run")
    old_model, new_model = init_run.load_final_model(), run.load_evaluated_model()
    new_ids = new_model.vocabulary.item_id_map.to_ids(np.arange(synthetic.ITEMS + 3))
    old_rows = old_model.vocabulary.item_id_map.to_rows(new_ids)  # -1, the row of unknown items, for new ones
    assert (old_rows < 0).sum() == 3
    expected = old_model.state_dict()[ID_TABLE][torch.from_numpy(old_rows)]
    torch.testing.assert_close(new_model.state_dict()[ID_TABLE][:-1], expected, atol=1e-6, rtol=0)
    other = synthetic.make_config(tables_dir, model={"history": {"encoder": "attention"}})
    with pytest.raises(TrainingError, match=r"--init: .* other layers"):
        fit(other, tables_dir / "other", init=published / "run")


def test_items_that_the_older_model_did_not_learn_stay_unknown_in_a_warm_start(tables_dir):
    """They are negatives of neither: nothing would be learned of them but that nobody takes them."""
    synthetic.write_tables(tables_dir, more_items=3)
    config = synthetic.make_config(tables_dir, model={"id_dropout": 0.3}, training={"epochs": 2})
    first = fit(config, tables_dir / "first")
    second = fit(config, tables_dir / "second", init=tables_dir / "first")
    new_ids = [synthetic.make_item_id(synthetic.ITEMS + number) for number in range(3)]
    for run in (first, second):
        model = run.load_evaluated_model()
        table = model.state_dict()[ID_TABLE]
        is_unknown = (table[:-1] == table[-1]).all(dim=1)
        assert is_unknown.nonzero().flatten().tolist() == sorted(model.vocabulary.item_id_map.to_rows(new_ids))
        torch.testing.assert_close(model.towers.mark_items_with_ids(), ~is_unknown)


def test_integer_ids_alone_are_enough_to_train(tmp_path):
    """No items or users table, no labels, no times: the order of the file is the order of time."""
    interactions = [
        (10 * user, 7 * int(item) - 50) for user, items in enumerate(synthetic.make_user_sequences()) for item in items
    ]
    path = tmp_path / "interactions.csv"
    pl.DataFrame(interactions, schema=["user", "item"], orient="row").write_csv(path)
    bare = {"id": "id", "id_type": "integer", "features": {}}
    config = synthetic.make_config(
        tmp_path,
        data={"interactions": str(path), "items": None, "users": None},
        schema={"interactions": {"user": "user", "item": "item"}, "items": bare, "users": bare},
        training={"epochs": 10},
    )
    run = fit(config, tmp_path / "run")
    assert run.summary.metrics["seen_excluded"]["recall@5"] > 0.8
    publish(tmp_path / "run", tmp_path / "store")
    release = open_release(Store.open(tmp_path / "store"))
    release.check_golden_queries()
    assert release.item_ids.to_ids(np.arange(2)) == [-50, -43]
    assert (len(release.attributes), len(release.users.ids)) == (synthetic.ITEMS, synthetic.USERS)
