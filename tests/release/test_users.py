import numpy as np
import polars as pl
import pytest

from vecall.data.id_map import build_id_map
from vecall.data.ragged import RaggedArray
from vecall.errors import InvalidReleaseError
from vecall.release.users import UserTable


@pytest.mark.parametrize("features", [pl.DataFrame({"age": [1.0, None], "tags": [["a"], []]}), pl.DataFrame(height=2)])
def test_user_table_round_trips(tmp_path, features):
    assert UserTable.load(tmp_path) is None
    histories = RaggedArray.from_lists([[4, 5], []])
    UserTable(build_id_map(pl.Series(["u", "v"]), "string"), features, histories).save(tmp_path)
    assert all(path.name.startswith("users.") for path in tmp_path.iterdir())
    loaded = UserTable.load(tmp_path)
    assert loaded.ids.to_ids(np.arange(2)) == ["u", "v"]
    assert loaded.features.equals(features)
    assert len(loaded.features) == 2
    assert [loaded.histories[user].tolist() for user in range(2)] == [[4, 5], []]
    (tmp_path / "users.features.arrow").write_bytes(b"nothing")
    with pytest.raises(InvalidReleaseError) as caught:
        UserTable.load(tmp_path)
    assert caught.value.file == "users.features.arrow"
