import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data import id_map
from vecall.data.id_map import IntegerIdMap, StringIdMap, build_id_map, build_id_map_from_arrays
from vecall.errors import DataError

INT64 = st.integers(-(2**63), 2**63 - 1)


def make_id_map(ids, id_type):
    dtype = pl.Int64 if id_type == "integer" else pl.String
    return build_id_map(pl.Series("id", ids, dtype=dtype), id_type)


def check_contract(ids, ordered_ids, id_type, other_ids):
    """Check everything that `IdMap` promises, of a built and of a restored map."""
    expected_row = {entity_id: row for row, entity_id in enumerate(ordered_ids)}
    built = make_id_map(ids, id_type)
    all_rows = np.arange(len(ordered_ids))
    for mapping in (built, build_id_map_from_arrays(built.to_arrays())):
        assert len(mapping) == len(ordered_ids)
        assert mapping.to_ids(all_rows) == ordered_ids
        assert {type(entity_id) for entity_id in mapping.to_ids(all_rows)} == {int if id_type == "integer" else str}
        assert mapping.to_column().to_list() == ordered_ids
        assert mapping.to_rows(ordered_ids).tolist() == all_rows.tolist()
        assert mapping.to_rows(other_ids).tolist() == [expected_row.get(other_id, -1) for other_id in other_ids]
        assert [mapping.to_row(entity_id) for entity_id in ordered_ids] == all_rows.tolist()
        column_ids = [*ids, *(other for other in other_ids if id_type == "string" or -(2**63) <= other < 2**63)]
        expected_rows = [expected_row.get(entity_id, -1) for entity_id in column_ids]
        assert mapping.column_to_rows(pl.Series("x", column_ids)).tolist() == expected_rows


@given(st.lists(INT64, min_size=1), st.lists(st.integers(), max_size=5))
def test_integer_map_keeps_the_contract(ids, other_ids):
    beyond_64_bits = [2**63, -(2**63) - 1, 10**400]
    check_contract(ids, sorted(set(ids)), "integer", [*other_ids, *beyond_64_bits])


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), max_size=5))
def test_string_map_keeps_the_contract(ids, other_ids):
    check_contract(ids, sorted(set(ids), key=str.encode), "string", [*other_ids, "", "0", "no\0such"])


def test_string_ids_are_ordered_by_their_utf8_bytes():
    ids = ["b", "", "é", "a\0", "a", "Z", "10", "9", "\U0001f600", "\uffff"]  # UTF-16 would swap the last two
    ordered_ids = ["", "10", "9", "Z", "a", "a\0", "b", "é", "\uffff", "\U0001f600"]
    assert make_id_map(ids, "string").to_ids(np.arange(10)) == ordered_ids


def test_string_ids_of_many_rows_are_decoded_in_chunks(monkeypatch):
    monkeypatch.setattr(id_map, "_DECODED_ROWS", 3)
    ids = ["a", "bb", "", "é", "c", "漢字", "d"]
    mapping = make_id_map(ids, "string")
    rows = np.array([6, 0, 3, 3, 5, 1, 2, 4])
    ordered_ids = sorted(ids, key=str.encode)
    assert mapping.to_ids(rows) == [ordered_ids[row] for row in rows]
    assert mapping.to_ids(rows[:0]) == []


def test_ids_with_the_same_hash_are_distinguished(monkeypatch):
    same_hash = np.uint64(7)
    monkeypatch.setattr(id_map, "hash_bytes", lambda _, offsets: np.full(len(offsets) - 1, same_hash))
    ids = [f"item-{number}" for number in range(50)]
    check_contract(ids, sorted(ids), "string", ["item-50", "item-", ""])


def test_every_id_is_unknown_to_an_empty_map():
    for mapping, other_id in ((make_id_map([], "integer"), 3), (make_id_map([], "string"), "3")):
        assert len(mapping) == 0
        assert mapping.to_row(other_id) is None
        assert mapping.to_rows([other_id, other_id]).tolist() == [-1, -1]
        assert mapping.to_rows([]).dtype == np.int64


def test_unpaired_surrogate_is_an_unknown_id():
    assert make_id_map(["a", "\ufffd", "?"], "string").to_row("\ud800") is None


@pytest.mark.parametrize("value", ["1", 1.0, True, np.bool_(True), None, b"1"])
def test_integer_map_rejects_other_types(value):
    with pytest.raises(DataError, match=r"ids here are integers, got .*type"):
        make_id_map([1], "integer").to_rows([1, value])


@pytest.mark.parametrize("value", [1, None, b"1", 1.0])
def test_string_map_rejects_other_types(value):
    with pytest.raises(DataError, match=r"ids here are strings, got .*type"):
        make_id_map(["1"], "string").to_rows(["1", value])


def test_integer_map_accepts_numpy_integers():
    assert make_id_map([5, 7], "integer").to_rows(np.array([7, 8], dtype=np.int32)).tolist() == [1, -1]


def test_map_is_restored_from_its_arrays_only():
    assert isinstance(build_id_map_from_arrays(make_id_map([1], "integer").to_arrays()), IntegerIdMap)
    assert isinstance(build_id_map_from_arrays(make_id_map(["1"], "string").to_arrays()), StringIdMap)
    with pytest.raises(DataError, match="got \\['bytes'\\]"):
        build_id_map_from_arrays({"bytes": np.zeros(1, np.uint8)})
