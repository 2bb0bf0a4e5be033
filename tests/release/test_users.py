import numpy as np
import polars as pl
import pytest

from vecall.data.id_map import build_id_map
from vecall.data.ragged import RaggedArray
from vecall.errors import DataError, InvalidReleaseError
from vecall.release.users import UserTable, load_id_map, save_id_map


@pytest.mark.parametrize(("ids", "id_type"), [([3, -7, 2**62], "integer"), (["ü", "a", "矢"], "string")])
def test_a_vocabulary_comes_back(tmp_path, ids, id_type):
    vocabulary = build_id_map(pl.Series(ids), id_type)
    save_id_map(vocabulary, tmp_path, "ids.")
    again = load_id_map(tmp_path, "ids.")
    assert again.id_type == id_type
    assert again.to_ids(np.arange(3)) == sorted(ids)
    assert again.to_rows(ids).tolist() == vocabulary.to_rows(ids).tolist()
    with pytest.raises(DataError):
        load_id_map(tmp_path, "others.")


@pytest.mark.parametrize("fields", [pl.DataFrame({"age": [1.0, None], "tags": [["a"], []]}), pl.DataFrame(height=2)])
def test_users_come_back(tmp_path, fields):
    assert UserTable.load(tmp_path) is None
    histories = RaggedArray.from_lists([[4, 5], []])
    UserTable(build_id_map(pl.Series(["u", "v"]), "string"), fields, histories).save(tmp_path)
    assert all(path.name.startswith("users.") for path in tmp_path.iterdir())
    again = UserTable.load(tmp_path)
    assert again.ids.to_ids(np.arange(2)) == ["u", "v"]
    assert again.features.equals(fields)
    assert len(again.features) == 2
    assert [again.histories[i].tolist() for i in range(2)] == [[4, 5], []]
    (tmp_path / "users.fields.arrow").write_bytes(b"nothing")
    with pytest.raises(InvalidReleaseError) as refused:
        UserTable.load(tmp_path)
    assert refused.value.file == "users.fields.arrow"
