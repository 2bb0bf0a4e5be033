"""The section [channels]: the columns that it names exist and have values to group by."""

import pytest
from support.doctor import make_config

from vecall.errors import ConfigError

SCHEMA = {
    "interactions": {"user": "user", "item": "item"},
    "items": {
        "id": "id",
        "id_type": "string",
        "attributes": {"genres": "tags", "shop": None, "price": "number", "added": "datetime"},
    },
    "users": {
        "id": "id",
        "id_type": "string",
        "features": {"region": {"kind": "category"}, "age": {"kind": "numeric"}},
    },
}


@pytest.mark.parametrize("popular", [{"by": "genres"}, {"by": "shop", "by_user": "region"}, {}, False])
def test_columns_with_values_are_taken(popular):
    config = make_config(schema=SCHEMA, channels={"popular": popular})
    assert config.channels.popular is False or config.channels.popular.by == popular.get("by")


@pytest.mark.parametrize(
    ("popular", "message"),
    [
        (
            {"by": "colour"},
            r"channels\.popular\.by: expected an attribute of items of \['genres', 'shop'\], got 'colour'",
        ),
        ({"by": "price"}, "got 'price'"),
        ({"by": "added"}, "got 'added'"),
        ({"by": "region"}, "got 'region'"),
        ({"by_user": "age"}, r"channels\.popular\.by_user: expected a category feature of users of \['region'\]"),
        ({"by_user": "genres"}, "got 'genres'"),
        ({"days": 0}, "days"),
    ],
)
def test_other_columns_are_refused(popular, message):
    with pytest.raises(ConfigError, match=message):
        make_config(schema=SCHEMA, channels={"popular": popular})


@pytest.mark.parametrize("weights", [{"similar": 1.0}, {}])
def test_weights_without_vectors_are_refused(weights):
    """Users who are unknown and name no channels would get nothing, although popular items are there."""
    with pytest.raises(ConfigError, match=r"weights: expected 'vector' among them"):
        make_config(schema=SCHEMA, channels={"merge": "rrf", "weights": weights})
