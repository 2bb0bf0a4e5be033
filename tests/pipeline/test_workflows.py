import numpy as np
import polars as pl
import pytest
import torch
from support import synthetic

from vecall.errors import DataError, StoreError, TrainingError
from vecall.pipeline import fit as fit_module
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import SUMMARY_FILE, Run
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.training.data import TrainingData
from vecall.training.fit import train


@pytest.fixture(autouse=True)
def _judged_by_few(monkeypatch):
    """Recall@100 of 36 items would always be 1."""
    monkeypatch.setattr(fit_module, "_MONITORED_K", 5)


@pytest.fixture
def shop(tmp_path):
    synthetic.write_tables(tmp_path)
    return tmp_path


def weights(folder):
    return Run.open(folder).load_final_model().state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def lines(folder):
    return [
        {name: x for name, x in line.items() if name != "seconds"} for line in Run.open(folder).read_epoch_metrics()
    ]


def test_from_tables_to_a_release_that_recalls_what_was_planted(shop):
    run = fit(synthetic.make_config(shop, training={"epochs": 12}), shop / "run")
    assert run.summary.protocol.startswith("leave-one-out")
    assert run.summary.metrics["seen_excluded"]["recall@5"] > 0.8
    name = publish(shop / "run", shop / "store")
    release = open_release(Store.open(shop / "store"))
    release.check_golden_queries()
    assert (release.name, release.manifest.journal_seq) == (name, 0)
    assert release.manifest.metrics == {"model": run.summary.metrics, "refit": False}
    # A user's next items are those of the group, and the unseen ones first among them.
    inputs = release.golden_queries.inputs
    best = release.index.search_exact(release.golden_queries.vectors, synthetic.GROUP_SIZE).rows
    groups = (
        pl.Series(release.attributes["title"]).str.split(" ").list.get(1).cast(pl.Int64).to_numpy() % synthetic.GROUPS
    )
    own = [np.mean(groups[rows] == groups[history[-1]]) for rows, history in zip(best, inputs.histories, strict=True)]
    assert np.mean(own) > 0.8

    with pytest.raises(StoreError, match="already"):
        publish(shop / "run", shop / "store", name=name)


def test_the_tables_of_today_are_published(shop, published):
    """The run knows 36 items; the tables have grown by two, and users have gone on."""
    run = Run.open(published / "run")
    synthetic.write_tables(shop, more_items=2)
    with (shop / "taken.csv").open("a") as taken:
        taken.write(
            f"user-0,{synthetic.make_item_id(synthetic.ITEMS)},99,5.0\nnewcomer,{synthetic.make_item_id(0)},1,5.0\n"
        )
    for file in (published / "run").rglob("*"):
        target = shop / "run" / file.relative_to(published / "run")
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            target.write_bytes(file.read_bytes())
    config = (shop / "run" / "config.json").read_text().replace(str(published), str(shop))
    (shop / "run" / "config.json").write_text(config)
    publish(shop / "run", shop / "store")
    release = open_release(Store.open(shop / "store"))
    release.check_golden_queries()
    assert release.manifest.items == synthetic.ITEMS + 2
    assert release.manifest.encoder == Store.open(published / "store").verify("tiny").encoder

    model, dataset = run.load_final_model(), synthetic.load_dataset(Run.open(shop / "run").config)
    new = release.item_ids.to_row(synthetic.make_item_id(synthetic.ITEMS))
    features = model.vocabulary.item_encoder.encode(dataset.catalogue.item_features[new : new + 1])
    with torch.no_grad():
        unknown = torch.tensor([model.towers.n_items])
        expected = model.towers.encode_items(unknown, {name: torch.from_numpy(x) for name, x in features.items()})
    np.testing.assert_allclose(release.index.get_vectors(np.array([new])), expected, atol=1e-3)
    assert release.users.histories[release.users.ids.to_row("user-0")][-1] == new
    assert release.users.histories[release.users.ids.to_row("newcomer")].tolist() == [
        release.item_ids.to_row(synthetic.make_item_id(0))
    ]
    old = open_release(Store.open(published / "store"))
    known = release.item_ids.to_rows(old.item_ids.to_ids(np.arange(synthetic.ITEMS)))
    np.testing.assert_allclose(
        release.index.get_vectors(known), old.index.get_vectors(np.arange(synthetic.ITEMS)), atol=1e-3
    )


def test_a_refit_is_published_and_the_judged_model_keeps_its_metrics(shop):
    plain = fit(synthetic.make_config(shop), shop / "plain")
    run = fit(synthetic.make_config(shop, training={"refit": True}), shop / "run")
    assert run.summary.refit
    assert run.summary.metrics == plain.summary.metrics
    assert lines(shop / "run") == lines(shop / "plain")
    assert equal(run.load_evaluated_model().state_dict(), plain.load_evaluated_model().state_dict())
    assert not equal(run.load_final_model().state_dict(), run.load_evaluated_model().state_dict())
    dataset, live = synthetic.load_dataset(run.config), run.load_final_model()
    assert len(dataset.histories.values) == synthetic.USERS * synthetic.GROUP_SIZE  # it has learned from all of them
    encoders = live.vocabulary.item_encoder, live.vocabulary.user_encoder
    everything = TrainingData.from_catalogue(dataset.catalogue, encoders, dataset.histories, synthetic.EMPTY_PAIRS)
    epochs = run.summary.best_epoch + 1
    again = train(everything, run.config.model, run.config.training, shop / "again", max_epochs=epochs)
    assert equal(again.towers.state_dict(), live.state_dict())
    assert publish(shop / "run", shop / "store", name="refitted", activate=False) == "refitted"
    store = Store.open(shop / "store")
    assert store.find_current() is None
    release = open_release(store, "refitted")
    assert release.manifest.metrics == {"model": plain.summary.metrics, "refit": True}
    features = live.vocabulary.item_encoder.encode(dataset.catalogue.item_features)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(x) for name, x in features.items()}
        items = live.towers.encode_items(torch.arange(synthetic.ITEMS), tensors)
    np.testing.assert_allclose(release.index.get_vectors(np.arange(synthetic.ITEMS)), items, atol=1e-3)


class Cut(BaseException):
    """The process dies."""


@pytest.mark.parametrize("where", ["in the second epoch", "while judging", "in the refit"])
def test_a_fit_that_was_cut_short_is_gone_on_with(shop, monkeypatch, where):
    config = synthetic.make_config(shop, training={"refit": True, "epochs": 3}, model={"dropout": 0.2})
    whole = fit(config, shop / "whole")
    calls = []

    def dies(*args, original, at, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise Cut
        return original(*args, **kwargs)

    target, at = {
        "in the second epoch": ("_validate", 2),
        "while judging": ("judge", 4),
        "in the refit": ("labelled_negatives", 1),
    }[where]
    with monkeypatch.context() as patch:
        original = getattr(fit_module, target)
        patch.setattr(fit_module, target, lambda *a, **k: dies(*a, original=original, at=at, **k))
        with pytest.raises(Cut):
            fit(config, shop / "cut")
    with pytest.raises(TrainingError, match="cut short"):
        publish(shop / "cut", shop / "store")
    with pytest.raises(TrainingError, match="other settings"):
        fit(synthetic.make_config(shop), shop / "cut")
    resumed = fit(config, shop / "cut")
    assert lines(shop / "cut") == lines(shop / "whole")
    assert equal(resumed.load_final_model().state_dict(), whole.load_final_model().state_dict())
    assert equal(resumed.load_evaluated_model().state_dict(), whole.load_evaluated_model().state_dict())
    without_time = [summary.model_copy(update={"seconds": 0}) for summary in (resumed.summary, whole.summary)]
    assert without_time[0] == without_time[1]
    assert not list((shop / "cut").rglob("*.ckpt"))


def test_a_finished_run_is_not_overwritten(published):
    before = (published / "run" / SUMMARY_FILE).read_bytes()
    with pytest.raises(TrainingError, match="holds a finished run"):
        fit(synthetic.make_config(published), published / "run")
    assert (published / "run" / SUMMARY_FILE).read_bytes() == before
    assert list((published / "run").glob("*.ckpt")) == []


def test_bad_tables_leave_no_run_behind(shop):
    (shop / "items.csv").unlink()
    with pytest.raises(DataError, match=r"items\.csv: no such file"):
        fit(synthetic.make_config(shop), shop / "run")
    assert not (shop / "run").exists()


def test_an_older_run_is_a_start_for_new_items(shop, published):
    older = Run.open(published / "run")
    synthetic.write_tables(shop, more_items=3)
    config = synthetic.make_config(shop, training={"epochs": 1, "lr": 1e-9, "weight_decay": 0.0})
    run = fit(config, shop / "run", init=published / "run")
    old, new = older.load_final_model(), run.load_evaluated_model()
    rows = old.vocabulary.item_id_map.to_rows(new.vocabulary.item_id_map.to_ids(np.arange(synthetic.ITEMS + 3)))
    assert (rows < 0).sum() == 3
    # Hardly trained at all, each item is where it was, and a new one where the unknown one was.
    expected = old.state_dict()["item_ids.weight"][torch.from_numpy(rows)]
    torch.testing.assert_close(new.state_dict()["item_ids.weight"][:-1], expected, atol=1e-6, rtol=0)
    other = synthetic.make_config(shop, model={"history": {"encoder": "attention"}})
    with pytest.raises(TrainingError, match="--init: the older run has other layers"):
        fit(other, shop / "other", init=published / "run")


def test_integer_ids_alone_are_enough(shop):
    """No items or users table, no labels, no times: file order is time."""
    taken = [
        (10 * user, 7 * int(item) - 50) for user, walk in enumerate(synthetic.make_user_sequences()) for item in walk
    ]
    pl.DataFrame(taken, schema=["user", "item"], orient="row").write_csv(shop / "taken.csv")
    bare = {"id": "id", "id_type": "integer", "features": {}}
    config = synthetic.make_config(
        shop,
        data={"items": None, "users": None},
        schema={"interactions": {"user": "user", "item": "item"}, "items": bare, "users": bare},
        training={"epochs": 10},
    )
    run = fit(config, shop / "run")
    assert run.summary.metrics["seen_excluded"]["recall@5"] > 0.8
    publish(shop / "run", shop / "store")
    release = open_release(Store.open(shop / "store"))
    release.check_golden_queries()
    assert release.item_ids.to_ids(np.arange(2)) == [-50, -43]
    assert (len(release.attributes), len(release.users.ids)) == (synthetic.ITEMS, synthetic.USERS)
