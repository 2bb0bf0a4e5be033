import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data import id_numbering
from vecall.data.id_numbering import IdNumbering

INTEGERS = st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1)
TEXTS = st.sampled_from(["", "a", "b", "é", "a" * 40, "a" * 40 + "b"]) | st.text()


def number_one_by_one(batches, known):
    """Codes of the ids of each batch, in the order in which ids are first seen."""
    code_by_id = {entity_id: code for code, entity_id in enumerate(known)}
    codes = [[code_by_id.setdefault(entity_id, len(code_by_id)) for entity_id in batch] for batch in batches]
    return codes, list(code_by_id)


def check(id_type, batches, known):
    dtype = pl.Int64 if id_type == "integer" else pl.String
    numbering = IdNumbering(id_type, pl.Series(known, dtype=dtype) if known else None)
    codes = [numbering.number(pl.Series(batch, dtype=dtype)) for batch in batches]
    expected_codes, expected_ids = number_one_by_one(batches, known)
    assert [batch.tolist() for batch in codes] == expected_codes
    assert {batch.dtype.name for batch in codes} <= {"int32"}
    assert numbering.ids.to_list() == expected_ids
    assert numbering.ids.dtype == dtype


@given(st.lists(st.lists(INTEGERS, max_size=8), max_size=4), st.lists(INTEGERS, unique=True, max_size=4))
def test_integers_are_numbered_in_the_order_of_their_first_occurrence(batches, known):
    check("integer", batches, known)


@given(st.lists(st.lists(TEXTS, max_size=8), max_size=4), st.lists(TEXTS, unique=True, max_size=4))
def test_texts_are_numbered_in_the_order_of_their_first_occurrence(batches, known):
    check("string", batches, known)


def test_texts_with_the_same_hash_get_codes_of_their_own(monkeypatch):
    """Hashes of the first two seeds collide for all texts, or for an id that is not known."""

    def hash_poorly(self, ids):
        hashes = ids.hash(self._seed)
        return hashes % 1 if self._seed == 0 else hashes % 2 if self._seed == 1 else hashes

    monkeypatch.setattr(id_numbering.IdNumbering, "_to_keys", hash_poorly)
    texts = [f"id {number}" for number in range(20)]
    check("string", [texts[:1], texts[1:3], texts, texts[::-1]], [])
    numbering = IdNumbering("string", pl.Series(texts[:1]))
    assert numbering.find(pl.Series(texts)).tolist() == [0] + [-1] * 19


@pytest.mark.parametrize("id_type", ["integer", "string"])
def test_null_and_unknown_ids_are_not_found(id_type):
    ids = pl.Series([5, 6]).cast(pl.Int64 if id_type == "integer" else pl.String)
    numbering = IdNumbering(id_type, ids)
    assert numbering.find(pl.Series([6, None, 7, 5]).cast(ids.dtype)).tolist() == [1, -1, -1, 0]
    assert numbering.find(ids.head(0)).tolist() == []
    assert numbering.ids.to_list() == ids.to_list()
