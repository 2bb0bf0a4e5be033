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


def test_losing_more_than_half_of_the_items_is_a_regression(store):
    assert find_regression(store, 50, {}) is None
    assert find_regression(store, 49, {}) == "it has 49 items; the current release 'one' has 100"
    assert find_regression(store, 1000, {}) is None


def test_vectors_of_fewer_than_half_of_the_items_are_published_only_inactive_or_if_allowed(store, caplog):
    publish_vectors(store.path, range(50), np.eye(50, 8), name="two")
    assert not caplog.text
    with pytest.raises(StoreError, match=r"not published: it has 20 items; .*'two' has 50.*allow_worse=True"):
        publish_vectors(store.path, range(20), np.eye(20, 8), name="three")
    assert [manifest.name for manifest in store.list_releases()] == ["two", "one"]
    publish_vectors(store.path, range(20), np.eye(20, 8), name="inactive", activate=False)
    assert "has lost items: it has 20 items; the current release 'two' has 50" in caplog.text
    assert publish_vectors(store.path, range(20), np.eye(20, 8), name="three", allow_worse=True) == "three"


def make_metrics(**recalls):
    return {"seen_excluded": {name.replace("_", "@"): value for name, value in recalls.items()}}


def test_losing_more_than_half_of_the_recall_nearest_to_100_is_a_regression(published):
    store = Store.open(published / "store")
    recall = Run.open(published / "run").summary.metrics["seen_excluded"]["recall@10"]
    assert find_regression(store, 36, make_metrics(recall_5=0.0, recall_10=recall / 2 + 0.01)) is None
    regression = find_regression(store, 36, make_metrics(recall_5=0.9, recall_10=recall / 2 - 0.01))
    assert regression.startswith("its model's recall@10 is 0.")
    for incomparable in ({}, make_metrics(recall_7=0.0), make_metrics(recall_10=None), {"seen_excluded": None}):
        assert find_regression(store, 36, incomparable) is None


def test_without_readable_current_release_there_is_no_regression(tmp_path, store):
    assert find_regression(Store.open_or_create(tmp_path / "new"), 1, {}) is None
    (store.path / "CURRENT").write_text("{")
    assert find_regression(store, 1, {}) is None


@pytest.mark.examples
def test_regression_is_published_only_inactive_or_if_allowed(published, tmp_path, caplog):
    run, store = published / "run", tmp_path / "store"
    publish_vectors(store, [f"item {number}" for number in range(100)], np.eye(100, 8), name="one")
    with pytest.raises(StoreError, match=r"is not published: it has 36 items; .*has 100.*--allow-worse"):
        publish(run, store)
    assert [manifest.name for manifest in Store.open(store).list_releases()] == ["one"]
    publish(run, store, name="inactive", activate=False)
    assert "it has 36 items" in caplog.text
    publish(run, store, name="allowed", allow_worse=True)
    assert Store.open(store).get_current().release == "allowed"
