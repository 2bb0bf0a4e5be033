import pytest
from pydantic import ValidationError

from vecall.evaluation.settings import EvaluationSettings, find_segment_column
from vecall.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "interactions": {"user": "u", "item": "i"},
        "items": {
            "id": "i",
            "id_type": "integer",
            "attributes": ["shop", "kind"],
            "features": {"kind": {"kind": "category"}, "age": {"kind": "numeric"}, "title": {"kind": "text"}},
        },
        "users": {"id": "u", "id_type": "integer", "features": {"age": {"kind": "numeric"}}},
    }
)


def test_default_ks():
    assert EvaluationSettings().ks == (10, 50, 100, 200, 500)


@pytest.mark.parametrize("ks", [(), (0, 10), (10, 10), (100, 10)])
def test_empty_unordered_or_non_positive_ks_are_refused(ks):
    with pytest.raises(ValidationError):
        EvaluationSettings(ks=ks)


def test_segments_are_built_in_or_columns_of_users_or_items():
    assert EvaluationSettings().segments == ("user_age", "history_length", "item_popularity")
    EvaluationSettings(segments=("user_age", "shop", "users.age")).check_segments(SCHEMA)
    assert find_segment_column("shop", SCHEMA) == find_segment_column("items.shop", SCHEMA) == ("items", "shop")
    assert find_segment_column("kind", SCHEMA) == ("items", "kind")
    assert find_segment_column("users.age", SCHEMA) == ("users", "age")
    with pytest.raises(ValidationError, match="names a segment twice"):
        EvaluationSettings(segments=("shop", "shop"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("age", r"both tables have 'age'; write 'users\.age' or 'items\.age'"),
        ("title", r"'title' is neither built in nor an attribute.*expected some of \['user_age', .*'items\.shop'"),
        ("users.shop", r"'users\.shop' is neither built in"),
    ],
)
def test_unknown_ambiguous_and_unsuitable_segments_are_refused(name, text):
    with pytest.raises(ValueError, match=f"evaluation.segments: {text}"):
        EvaluationSettings(segments=(name,)).check_segments(SCHEMA)
