import numpy as np
import polars as pl
import pytest

from vecall.data.id_map import build_vocabulary
from vecall.data.ragged import Sequences
from vecall.errors import DataError, ReleaseRefused
from vecall.release.users import Users, load_vocabulary, save_vocabulary


@pytest.mark.parametrize(("ids", "id_type"), [([3, -7, 2**62], "integer"), (["ü", "a", "矢"], "string")])
def test_a_vocabulary_comes_back(tmp_path, ids, id_type):
    vocabulary = build_vocabulary(pl.Series(ids), id_type)
    save_vocabulary(vocabulary, tmp_path, "ids.")
    again = load_vocabulary(tmp_path, "ids.")
    assert again.id_type == id_type
    assert again.ids(np.arange(3)) == sorted(ids)
    assert again.rows(ids).tolist() == vocabulary.rows(ids).tolist()
    with pytest.raises(DataError):
        load_vocabulary(tmp_path, "others.")


@pytest.mark.parametrize("fields", [pl.DataFrame({"age": [1.0, None], "tags": [["a"], []]}), pl.DataFrame(height=2)])
def test_users_come_back(tmp_path, fields):
    assert Users.load(tmp_path) is None
    histories = Sequences.of([[4, 5], []])
    Users(build_vocabulary(pl.Series(["u", "v"]), "string"), fields, histories).save(tmp_path)
    assert all(path.name.startswith("users.") for path in tmp_path.iterdir())
    again = Users.load(tmp_path)
    assert again.ids.ids(np.arange(2)) == ["u", "v"]
    assert again.fields.equals(fields)
    assert len(again.fields) == 2
    assert [again.histories[i].tolist() for i in range(2)] == [[4, 5], []]
    (tmp_path / "users.fields.arrow").write_bytes(b"nothing")
    with pytest.raises(ReleaseRefused) as refused:
        Users.load(tmp_path)
    assert refused.value.file == "users.fields.arrow"
