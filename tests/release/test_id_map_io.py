import numpy as np
import polars as pl
import pytest

from vecall.data.id_map import build_id_map
from vecall.errors import DataError
from vecall.release.id_map_io import load_id_map, save_id_map


@pytest.mark.parametrize(("ids", "id_type"), [([3, -7, 2**62], "integer"), (["ü", "a", "矢"], "string")])
def test_id_map_round_trips(tmp_path, ids, id_type):
    id_map = build_id_map(pl.Series(ids), id_type)
    save_id_map(id_map, tmp_path, "ids.")
    loaded = load_id_map(tmp_path, "ids.")
    assert loaded.id_type == id_type
    assert loaded.to_ids(np.arange(3)) == sorted(ids)
    assert loaded.to_rows(ids).tolist() == id_map.to_rows(ids).tolist()
    with pytest.raises(DataError):
        load_id_map(tmp_path, "others.")
