import pytest
from pydantic import ValidationError

from vecall.schema import InteractionSchema, ItemSchema, Schema, TagsFeature, UserSchema, VectorFeature


def test_feature_kinds_and_defaults():
    items = ItemSchema.model_validate(
        {"id": "i", "id_type": "string", "features": {"g": {"kind": "tags"}, "v": {"kind": "vector", "size": 3}}}
    )
    assert items.features == {"g": TagsFeature(separator="|", max_tags=64), "v": VectorFeature(size=3, separator=" ")}
    assert InteractionSchema(user="u", item="i") == InteractionSchema(
        user="u", item="i", time=None, label=None, positive=0.0, impression=None
    )


def test_attribute_list_is_a_table_without_types():
    items = ItemSchema.model_validate({"id": "i", "id_type": "string", "attributes": ["b", "a"]})
    assert list(items.attributes.items()) == [("b", None), ("a", None)]


def test_schema_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        UserSchema(id="u", id_type="string").id = "v"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id_type": "int"}, "'string' or 'integer'"),
        ({"id_type": None}, "'string' or 'integer'"),
        ({"attributes": ("year", "year")}, "names a column twice"),
        ({"attributes": ("id", "score")}, r"\['id', 'score'\] clash"),
        ({"attributes": [5]}, "expected names of columns"),
        ({"attributes": [["year"]]}, "expected names of columns"),
        ({"attributes": "year"}, "valid dictionary"),
        ({"title": "rank"}, r"\['rank'\] clash"),
        ({"attributes": ("i",)}, "'i' is the id"),
        ({"title": "i"}, "'i' is the id"),
        ({"features": {"channels": {"kind": "text"}}}, r"\['channels'\] clash"),
        ({"features": {"i": {"kind": "text"}}}, "'i' is the id"),
        ({"features": {"x": {"kind": "words"}}}, "'numeric', 'category', 'tags', 'vector', 'text'"),
        ({"features": {"x": {}}}, "'kind'"),
        ({"features": {"x": {"kind": "vector"}}}, "required"),
        ({"features": {"x": {"kind": "vector", "size": 0}}}, "greater than or equal to 1"),
        ({"features": {"x": {"kind": "tags", "separator": ""}}}, "at least 1 character"),
        ({"features": {"x": {"kind": "text", "bucket": 3}}}, "Extra inputs"),
    ],
)
def test_invalid_item_schema_is_rejected(change, message):
    with pytest.raises(ValidationError, match=message):
        ItemSchema.model_validate({"id": "i", "id_type": "integer"} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"buy": 1}}, "name the column of the kinds in event"),
        (
            {"event": "e", "weights": {"buy": 1e308, "view": 1e-50}},
            r"weights of \['buy', 'view'\]: expected 0, or from",
        ),
        ({"negatives": ["skip"]}, "name the column of the kinds in event"),
        ({"targets": ["buy"]}, "name the column of the kinds in event"),
        ({"event": "kind", "weights": {"buy": -1}}, "greater than or equal to 0"),
        ({"event": "kind", "weights": {"buy": 0}}, "at least one kind must weigh more than 0"),
        ({"event": "kind", "weights": {}}, "at least one kind must weigh more than 0"),
        ({"event": "kind", "weights": {"buy": 1, "skip": 0}, "negatives": ["skip"]}, r"\['skip'\] are in both weights"),
        ({"event": "kind", "negatives": ["skip"], "targets": ["skip"]}, r"\['skip'\] are in both targets"),
        ({"event": "kind", "weights": {"buy": 1}, "targets": ["rent"]}, r"\['rent'\] of targets are not in weights"),
        ({"time_unit": "s"}, "name the column in time"),
        ({"time": "t", "time_unit": "minutes"}, "'s', 'ms', 'us'"),
    ],
)
def test_invalid_interaction_schema_is_rejected(change, message):
    with pytest.raises(ValidationError, match=message):
        InteractionSchema.model_validate({"user": "u", "item": "i"} | change)


def test_context_has_names_and_kinds_of_its_own():
    def parse(context, **users):
        ids = {"id_type": "string"}
        interactions = {"user": "u", "item": "i", "context": {"hour": {"kind": context}}}
        users = {"id": "u", "features": {"age": {"kind": "numeric"}}} | ids | users
        return Schema.model_validate({"interactions": interactions, "items": {"id": "i"} | ids, "users": users})

    assert list(parse("category").user_inputs) == ["age", "hour"]
    with pytest.raises(ValidationError, match=r"\['hour'\] are columns of the users table, too"):
        parse("category", features={"hour": {"kind": "numeric"}})
    with pytest.raises(ValidationError, match="'numeric', 'category'"):
        parse("text")


@pytest.mark.parametrize("column", ["u", "i", "rating", "shown"])
def test_context_does_not_name_what_is_to_be_predicted(column):
    columns = {"user": "u", "item": "i", "label": "rating", "impression": "shown"}
    with pytest.raises(ValidationError, match="are the columns of user, item, label or impression"):
        InteractionSchema.model_validate(columns | {"context": {column: {"kind": "category"}}})


def test_column_names_of_users_are_checked():
    with pytest.raises(ValidationError, match="'u' is the id"):
        UserSchema.model_validate({"id": "u", "id_type": "integer", "features": {"u": {"kind": "numeric"}}})


def test_missing_section_is_rejected():
    with pytest.raises(ValidationError, match="users"):
        Schema.model_validate({"interactions": {"user": "u", "item": "i"}, "items": {"id": "i", "id_type": "string"}})
