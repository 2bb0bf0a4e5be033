import numpy as np
import pytest

from vecall import publish_vectors
from vecall.errors import StoreError
from vecall.pipeline.publish import publish
from vecall.pipeline.run import Run
from vecall.release.regression import find_regression
from vecall.release.store import Store


@pytest.fixture
def store(tmp_path):
    publish_vectors(tmp_path / "store", range(100), np.eye(100, 8), name="one")
    return Store.open(tmp_path / "store")


def test_half_of_the_items_may_go_and_no_more(store):
    assert find_regression(store, 50, {}) is None
    assert find_regression(store, 49, {}) == "it has 49 items, and 'one', which is current, has 100"
    assert find_regression(store, 1000, {}) is None


def metrics(**recalls):
    return {"seen_excluded": {name.replace("_", "@"): value for name, value in recalls.items()}}


def test_the_recalls_nearest_to_100_are_compared(published):
    store = Store.open(published / "store")
    recall = Run.open(published / "run").summary.metrics["seen_excluded"]["recall@10"]
    assert find_regression(store, 36, metrics(recall_5=0.0, recall_10=recall / 2 + 0.01)) is None
    told = find_regression(store, 36, metrics(recall_5=0.9, recall_10=recall / 2 - 0.01))
    assert told.startswith("its model's recall@10 is 0.")
    for none in ({}, metrics(recall_7=0.0), metrics(recall_10=None), {"seen_excluded": None}):
        assert find_regression(store, 36, none) is None


def test_there_may_be_nothing_to_compare_with(tmp_path, store):
    assert find_regression(Store.create(tmp_path / "new"), 1, {}) is None
    (store.path / "CURRENT").write_text("{")
    assert find_regression(store, 1, {}) is None


def test_what_has_lost_its_items_is_not_published(published, tmp_path, caplog):
    run, store = published / "run", tmp_path / "store"
    publish_vectors(store, range(100), np.eye(100, 8), name="one")
    with pytest.raises(StoreError, match=r"is not published: it has 36 items, .*has 100.*--allow-worse"):
        publish(run, store)
    assert [one.name for one in Store.open(store).list_releases()] == ["one"]
    publish(run, store, name="beside", activate=False)
    assert "it has 36 items" in caplog.text
    publish(run, store, name="meant", allow_worse=True)
    assert Store.open(store).get_current().release == "meant"
