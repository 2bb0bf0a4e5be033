"""Encoders for one's own training: tables as they are give the arrays that requests give in production."""

import numpy as np
import polars as pl
import pytest
from support import synthetic

from vecall.data.feature_encoder import FeatureEncoder, to_tower_inputs
from vecall.data.request_features import to_feature_frame
from vecall.data.table_encoder import TableEncoder, fit_encoders, parse_schema
from vecall.errors import ConfigError, DataError

FEATURES = {name: feature.model_dump(mode="json") for name, feature in synthetic.FEATURES.items()}
SCHEMA = {
    "items": {"id": "id", "id_type": "string", "features": FEATURES},
    "users": {"id": "id", "id_type": "string", "features": {"age": {"kind": "numeric"}}},
}


def assert_equal(encoded, expected):
    assert list(encoded) == list(expected)
    for name, array in encoded.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name])


def test_raw_tables_are_encoded_as_requests_are(tmp_path):
    synthetic.write_tables(tmp_path)
    users = pl.DataFrame({"age": [None, 20, 40]})
    item_encoder, user_encoder = fit_encoders(SCHEMA, tmp_path / "items.csv", users)
    frame = synthetic.make_features(synthetic.ITEMS + 8, 1, groups=synthetic.assign_item_groups(synthetic.ITEMS + 8))
    requests = to_feature_frame(frame[: synthetic.ITEMS].to_dicts(), synthetic.FEATURES)
    production = to_tower_inputs(FeatureEncoder(item_encoder.state).encode(requests))
    assert_equal(item_encoder.encode(str(tmp_path / "items.csv")), production)
    assert_equal(item_encoder.encode(pl.read_csv(tmp_path / "items.csv")), production)
    assert user_encoder.encode(users)["age"].tolist() == pytest.approx(
        np.array([[0, 0], [-0.70710677, 1], [0.70710677, 1]])
    )


def test_dense_features_are_concatenated_in_the_order_of_the_schema():
    features = parse_schema(SCHEMA).items.features
    frame = synthetic.make_features(20, 3)
    encoder = TableEncoder.fit(features, frame)
    encoded = encoder.encode(frame)
    assert encoder.dense_dim == 5
    expected = np.concatenate([encoded["price.eur"], encoded["look"]], axis=1)
    np.testing.assert_array_equal(encoder.encode_dense(frame), expected)
    assert encoder.encode_dense(frame).dtype == np.float32


def test_without_user_features_no_users_table_is_needed():
    schema = SCHEMA | {"users": {"id": "id", "id_type": "string"}}
    _, user_encoder = fit_encoders(schema, synthetic.make_features(5))
    assert user_encoder.specs == {}
    assert parse_schema({"items": SCHEMA["items"]}).users.id_type == "string"


def test_a_missing_users_table_is_explained():
    with pytest.raises(ConfigError, match=r"schema.users.features: names \['age'\], but there is no users table"):
        fit_encoders(SCHEMA, synthetic.make_features(5))


def test_an_invalid_value_is_named_with_its_table():
    users = pl.DataFrame({"age": ["20", "old"]})
    with pytest.raises(DataError, match=r"users: column 'age': expected a finite number.*row 2: 'old'"):
        fit_encoders(SCHEMA, synthetic.make_features(5), users)
    encoder = TableEncoder.fit(parse_schema(SCHEMA).users.features, users[:1])
    with pytest.raises(DataError, match="table: no column 'age'"):
        encoder.encode(pl.DataFrame({"years": [1]}))
