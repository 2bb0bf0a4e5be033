"""Labels, impressions and columns of the interactions table, in the types that tables have."""

from decimal import Decimal

import polars as pl
import pytest

from vecall.data.dataset import read_dataset
from vecall.data.settings import DataSettings
from vecall.errors import DataError
from vecall.schema import Schema


@pytest.fixture
def read(tmp_path):
    """Factory that writes a column beside users and items, and returns which interactions are positive."""

    def write_and_read(values, suffix="parquet", **interactions):
        path = tmp_path / f"log.{suffix}"
        frame = pl.DataFrame({"u": [1] * len(values), "i": list(range(len(values))), "x": values})
        frame.write_parquet(path) if suffix == "parquet" else frame.write_csv(path)
        schema = Schema.model_validate(
            {
                "interactions": {"user": "u", "item": "i"} | interactions,
                "items": {"id": "i", "id_type": "integer"},
                "users": {"id": "u", "id_type": "integer"},
            }
        )
        return read_dataset(DataSettings(interactions=(path,)), schema).interactions.is_positive.tolist()

    return write_and_read


@pytest.mark.parametrize(
    ("labels", "threshold", "expected"),
    [
        (pl.Series([Decimal("0.7"), Decimal("0.6")]), 0.7, [True, False]),
        (pl.Series([Decimal("0.7"), Decimal("0.6")]), 0.65, [True, False]),
        (pl.Series([Decimal("4.10"), Decimal("4.09")], dtype=pl.Decimal(38, 2)), 4.1, [True, False]),
        (pl.Series([Decimal("-1.5"), Decimal("1.5")]), -1.5, [True, True]),
        (pl.Series([Decimal(1), Decimal(2)]), 1e300, [False, False]),
        (pl.Series([Decimal(1), Decimal(2)]), -1e300, [True, True]),
        (pl.Series([255, 1], dtype=pl.UInt8), 300.0, [False, False]),
        (pl.Series([255, 1], dtype=pl.UInt8), -1.0, [True, True]),
        (pl.Series([2, 1], dtype=pl.Int8), 1.5, [True, False]),
        (pl.Series([True, False]), 1.0, [True, False]),
        (pl.Series(["2", "10"], dtype=pl.Categorical), 3.0, [False, True]),
    ],
    ids=str,
)
def test_labels_are_compared_in_the_precision_of_their_type(read, labels, threshold, expected):
    assert read(labels, label="x", positive=threshold) == expected


def test_impressions_are_flags_in_any_spelling(read):
    assert read(["1.0", "0.0", "TRUE", "false"], "csv", impression="x") == [False, True, False, True]
    assert read(pl.Series([1.0, 0.0]), impression="x") == [False, True]


def test_column_that_a_text_table_has_twice_is_an_error(tmp_path, read):
    read([1], "csv")
    (tmp_path / "log.csv").write_text("u,i,x,i\n1,2,3,4\n")
    schema = {"id_type": "integer"}
    with pytest.raises(DataError, match=r"two columns are named 'i' \(schema\.interactions\.item\); rename one"):
        read_dataset(
            DataSettings(interactions=(tmp_path / "log.csv",)),
            Schema.model_validate(
                {
                    "interactions": {"user": "u", "item": "i"},
                    "items": schema | {"id": "i"},
                    "users": schema | {"id": "u"},
                }
            ),
        )
