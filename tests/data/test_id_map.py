import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data import id_map
from vecall.data.id_map import IntegerIdMap, StringIdMap, build_id_map, build_id_map_from_arrays
from vecall.errors import DataError

INT64 = st.integers(-(2**63), 2**63 - 1)


def made(ids, id_type):
    dtype = pl.Int64 if id_type == "integer" else pl.String
    return build_id_map(pl.Series("id", ids, dtype=dtype), id_type)


def hold(ids, ordered, id_type, strangers):
    """Everything that is promised of any vocabulary."""
    built = made(ids, id_type)
    everything = np.arange(len(ordered))
    for words in (built, build_id_map_from_arrays(built.to_arrays())):
        assert len(words) == len(ordered)
        assert words.to_ids(everything) == ordered
        assert all(type(one) is (int if id_type == "integer" else str) for one in words.to_ids(everything))
        assert words.to_rows(ordered).tolist() == everything.tolist()
        assert words.to_rows(strangers).tolist() == [ordered.index(one) if one in ordered else -1 for one in strangers]
        assert [words.to_row(one) for one in ordered] == everything.tolist()
        column = pl.Series("x", [*ids, *(one for one in strangers if id_type == "string" or -(2**63) <= one < 2**63)])
        expected = [ordered.index(one) if one in ordered else -1 for one in column]
        assert words.column_to_rows(column).tolist() == expected


@given(st.lists(INT64, min_size=1), st.lists(st.integers(), max_size=5))
def test_integers_there_and_back(ids, strangers):
    beyond = [2**63, -(2**63) - 1, 10**400]
    hold(ids, sorted(set(ids)), "integer", [*strangers, *beyond])


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), max_size=5))
def test_strings_there_and_back(ids, strangers):
    by_bytes = sorted(set(ids), key=lambda one: one.encode())
    hold(ids, by_bytes, "string", [*strangers, "", "0", "no\0such"])


def test_strings_stand_in_the_order_of_their_bytes():
    ids = ["b", "", "é", "a\0", "a", "Z", "10", "9", "\U0001f600", "\uffff"]  # UTF-16 would swap the last two
    ordered = ["", "10", "9", "Z", "a", "a\0", "b", "é", "\uffff", "\U0001f600"]
    assert made(ids, "string").to_ids(np.arange(10)) == ordered


def test_ids_with_one_hash_are_told_apart(monkeypatch):
    one = np.uint64(7)
    monkeypatch.setattr(id_map, "hash_bytes", lambda _, offsets: np.full(len(offsets) - 1, one))
    ids = [f"item-{number}" for number in range(50)]
    hold(ids, sorted(ids), "string", ["item-50", "item-", ""])


def test_nothing_is_known_of_an_empty_one():
    for words, stranger in ((made([], "integer"), 3), (made([], "string"), "3")):
        assert len(words) == 0
        assert words.to_row(stranger) is None
        assert words.to_rows([stranger, stranger]).tolist() == [-1, -1]
        assert words.to_rows([]).dtype == np.int64


def test_half_a_surrogate_pair_is_unknown():
    assert made(["a", "\ufffd", "?"], "string").to_row("\ud800") is None


@pytest.mark.parametrize("wrong", ["1", 1.0, True, np.bool_(True), None, b"1"])
def test_integers_alone_are_ids_of_integers(wrong):
    with pytest.raises(DataError, match=r"ids here are integers, got .*type"):
        made([1], "integer").to_rows([1, wrong])


@pytest.mark.parametrize("wrong", [1, None, b"1", 1.0])
def test_strings_alone_are_ids_of_strings(wrong):
    with pytest.raises(DataError, match=r"ids here are strings, got .*type"):
        made(["1"], "string").to_rows(["1", wrong])


def test_numpys_integers_will_do():
    assert made([5, 7], "integer").to_rows(np.array([7, 8], dtype=np.int32)).tolist() == [1, -1]


def test_other_arrays_are_no_vocabulary():
    assert isinstance(build_id_map_from_arrays(made([1], "integer").to_arrays()), IntegerIdMap)
    assert isinstance(build_id_map_from_arrays(made(["1"], "string").to_arrays()), StringIdMap)
    with pytest.raises(DataError, match="got \\['bytes'\\]"):
        build_id_map_from_arrays({"bytes": np.zeros(1, np.uint8)})
