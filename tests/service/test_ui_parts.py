"""What the pages are made of: form, attributes, items, metrics of releases."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from vecall.errors import QueryError
from vecall.index.index_info import IndexInfo
from vecall.live.snapshot import Snapshot
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.release.manifest import FileDigest, Manifest
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.service.settings import Limits
from vecall.service.ui.attributes import describe_attributes
from vecall.service.ui.form import ExploreForm, apply_row_buttons, parse_item_id, parse_item_ids
from vecall.service.ui.i18n import TEXTS
from vecall.service.ui.presenters import (
    find_ids_with_prefix,
    find_title_column,
    sample_ids,
    search_items,
    suggest_items,
)
from vecall.service.ui.release_cards import build_release_cards, format_bytes


@pytest.fixture
def make_snapshot(tmp_path):
    """Factory of a snapshot with random vectors."""

    def make(ids, attributes=None):
        vectors = np.random.default_rng(0).standard_normal((len(ids), 8)).astype(np.float32)
        publish_vectors(tmp_path / "store", ids, vectors, attributes=attributes)
        return Snapshot.from_release(open_release(Store.open(tmp_path / "store")))

    return make


def make_manifest(name, *, parent=None, metrics=None, size=1):
    return Manifest(
        name=name,
        created=datetime(2026, 11, 26, 18, 30, tzinfo=UTC),
        parent=parent,
        files={"ids.npy": FileDigest(bytes=size, sha256="0" * 64)},
        items=10,
        dim=4,
        id_type="integer",
        index=IndexInfo(engine="exact"),
        metrics=metrics or {},
    )


def make_metrics(recall, **baselines):
    return {
        name: {"seen_excluded": {"recall@10": value, "ndcg@10": value / 2}}
        for name, value in {"model": recall, **baselines}.items()
    }


def test_integer_ids_are_found_by_prefix(make_snapshot):
    ids = make_snapshot([*range(1, 200), 1000, 1999, 12345]).release.item_ids
    assert find_ids_with_prefix(ids, "19", 100) == [19, *range(190, 200), 1999]
    assert find_ids_with_prefix(ids, "12345", 5) == [12345]
    assert find_ids_with_prefix(ids, "x", 5) == []
    assert find_ids_with_prefix(ids, "1", 3) == [1, 10, 11]
    assert sample_ids(ids, 3) == [1, 101, 12345]


def test_integer_ids_of_64_bits_are_found_by_prefix(make_snapshot):
    large_ids = [5, 1_800_000_000_000_000_001, 5_000_000_000_000_000_001, 2**63 - 1, -(2**63), -12, -125]
    ids = make_snapshot(large_ids).release.item_ids
    assert find_ids_with_prefix(ids, "18", 9) == [1_800_000_000_000_000_001]
    assert (
        find_ids_with_prefix(ids, "50", 9)
        == find_ids_with_prefix(ids, "5000000000000000001", 9)
        == [5_000_000_000_000_000_001]
    )
    assert find_ids_with_prefix(ids, "5", 9) == [5, 5_000_000_000_000_000_001]
    assert find_ids_with_prefix(ids, "9", 9) == find_ids_with_prefix(ids, str(2**63 - 1), 9) == [2**63 - 1]
    assert find_ids_with_prefix(ids, str(2**63), 9) == find_ids_with_prefix(ids, "9" * 30, 9) == []
    assert find_ids_with_prefix(ids, "-12", 9) == [-12, -125]
    assert find_ids_with_prefix(ids, "-9", 9) == [-(2**63)]


def test_items_without_titles_are_found_by_id(make_snapshot):
    snapshot = make_snapshot([5, 6, 7])
    assert find_title_column(snapshot.release.attributes) is None
    assert search_items(snapshot, "6").tolist() == [1]
    assert search_items(snapshot, "nothing").tolist() == []


def test_ids_with_commas_and_blanks_are_those_of_the_links_of_the_pages(make_snapshot):
    ids = ["a,b", "a", " lead", "trail ", "x" * 300, "\u3000", "1,2"]
    snapshot = make_snapshot(ids)
    for item_id in ids:
        assert parse_item_id(snapshot, item_id) == item_id
        assert parse_item_ids(snapshot, "history", item_id) == [item_id]
    assert parse_item_id(snapshot, " a ") == "a"
    assert parse_item_ids(snapshot, "history", "a, trail,,b ") == ["a", "trail", "b"]
    form = ExploreForm.from_query_params({"user": [" lead"], "history": ["trail "]})
    assert (form.user, form.history, form.has_query) == (" lead", "trail ", True)
    assert not ExploreForm.from_query_params({"user": ["  "], "history": [" "]}).has_query


def test_suggested_items_are_evenly_spaced_without_popularity(make_snapshot):
    snapshot = make_snapshot(list(range(100)))
    assert suggest_items(snapshot, 3).tolist() == [0, 50, 99]
    assert suggest_items(snapshot, 500).tolist() == list(range(100))


def test_form_values_have_the_type_of_the_attribute(make_snapshot):
    attributes = pl.DataFrame({"n": [1, 2, 3], "x": [1.5, 2, 3], "s": ["a", "b", "c"], "b": [True, False, True]})
    attributes = attributes.with_columns(tags=pl.Series([["a"], ["b", "c"], []]))
    snapshot = make_snapshot([1, 2, 3], attributes)
    form = ExploreForm.from_query_params(
        {
            "user": ["5"],
            "sent": ["1"],
            "field": ["n", "x", "s", "b", "tags", "n", "s"],
            "op": ["eq", "gt", "eq", "eq", "contains_any", "in", "eq"],
            "value": ["2", "1.5", "2", "true", "a, b", "1,2", "a, b"],
        }
    )
    values = [condition["value"] for condition in form.to_query(snapshot, Limits()).where]
    assert values == [2, 1.5, "2", True, ["a", "b"], [1, 2], "a, b"]
    assert not form.exclude_seen
    assert ExploreForm.from_query_params({}).exclude_seen
    with pytest.raises(QueryError, match="integers"):
        ExploreForm.from_query_params({"history": ["a"]}).to_query(snapshot, Limits())
    for k in ("0000000019999999999", "1" * 5_000, "0", "-1"):
        with pytest.raises(QueryError, match="k: expected a number from 1 to"):
            ExploreForm.from_query_params({"user": ["1"], "k": [k]}).to_query(snapshot, Limits())


def test_row_buttons_are_applied_once():
    params = {"field": ["a", "b", "c"], "op": ["eq", "ne", "lt"], "value": ["1", "2", "3"], "lang": ["zh"]}
    removed = apply_row_buttons(params | {"remove": ["1"]})
    assert removed == {"field": ["a", "c"], "op": ["eq", "lt"], "value": ["1", "3"], "lang": ["zh"]}
    assert apply_row_buttons(params | {"add": ["1"]}) == params
    assert apply_row_buttons(params | {"remove": ["7"]}) == params


def test_attributes_are_described_by_type():
    attributes = pl.DataFrame(
        {
            "text": ["b", "a", "a", None, "x, y", "z" * 100],
            "flag": [True, False, None, True, True, True],
            "empty": pl.Series([None] * 6, dtype=pl.Int64),
            "score": [1.0, float("nan"), float("inf"), 2.5, None, 1e9],
            "tags": [["new"], ["new", "red"], [], None, ["red", "new"], ["old"]],
            "structs": [{"a": 1}] * 6,
            "nested": [[["a"]]] * 6,
        }
    )
    described = {info.name: info for info in describe_attributes(attributes)}
    assert list(described) == ["text", "flag", "empty", "score", "tags"]  # filters do not support the others
    assert described["text"].examples == ("a", "b")  # frequent first; unusable: commas, long ones
    assert described["flag"].ops == ("eq", "ne", "in", "not_in")
    assert described["empty"].examples == ()
    assert described["score"].examples == ("1", "2.5", "1e+09")
    assert described["tags"].examples == ("new", "red", "old")
    assert described["tags"].to_hint(TEXTS["zh"], "contains_any") == "标签；例如 new、red、old；多个值用逗号分隔"
    assert described["empty"].to_hint(TEXTS["en"], "eq") == "whole number"
    assert [info.kind for info in describe_attributes(attributes.clear())] == [
        *("text", "boolean", "integer", "number", "tags"),
    ]
    assert describe_attributes(pl.DataFrame(height=3)) == []


def test_release_metrics_are_compared_with_parent_and_baselines():
    parent = make_manifest("old", metrics=make_metrics(0.5))
    child = make_manifest("new", parent="old", metrics=make_metrics(0.4, popularity=0.1, ease=0.4001, other=1.0))
    table = build_release_cards([child, parent])[0].metrics
    assert table.references == ("parent", "popularity", "ease")
    assert [row.name for row in table.rows] == ["recall@10", "ndcg@10"]
    assert [reference.comparison for reference in table.rows[0].references] == ["worse", "better", "equal"]
    assert table.rows[0].references[0].value == 0.5
    assert build_release_cards([child])[0].metrics.references == ("popularity", "ease")  # the parent was pruned


def test_release_metrics_of_repeats_rank_among_all_items():
    """Where every held-out item is a repeat, the metrics with seen items excluded are null."""
    metrics = {"model": {"seen_excluded": {"recall@10": None}, "seen_included": {"recall@10": 0.5}}}
    table = build_release_cards([make_manifest("new", metrics=metrics)])[0].metrics
    assert table.split == "seen_included"
    assert [row.value for row in table.rows] == [0.5]


@pytest.mark.parametrize(
    "metrics",
    [{}, {"model": None}, {"model": {"seen_excluded": [1]}}, {"model": {"seen_excluded": {"recall@10": "high"}}}],
)
def test_release_without_usable_metrics_has_no_table(metrics):
    assert build_release_cards([make_manifest("new", metrics=metrics)])[0].metrics is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (12_345_678, "12.3 MB"),
        (999_600, "1.0 MB"),
        (3 * 10**15, "3000 TB"),
    ],
)
def test_bytes_have_a_unit(count, text):
    assert format_bytes(count) == text
    assert build_release_cards([make_manifest("new", size=count)])[0].size == text
