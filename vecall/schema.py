"""What users, items and interactions look like: the `[schema.*]` sections of vecall.toml."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from vecall.settings_base import SettingsModel

IdType = Literal["string", "integer"]
AttributeType = Literal["string", "integer", "number", "boolean", "datetime", "tags"]
DEFAULT_TAG_SEPARATOR = "|"


class NumericFeature(SettingsModel):
    """A number. Missing values are told apart from zero."""

    kind: Literal["numeric"] = "numeric"


class CategoryFeature(SettingsModel):
    """One of a set of values. Missing and never-seen values have a row of their own each."""

    kind: Literal["category"] = "category"


class TagsFeature(SettingsModel):
    """Any number of values: a list column, or text to be cut at `separator`."""

    kind: Literal["tags"] = "tags"
    separator: str = Field(DEFAULT_TAG_SEPARATOR, min_length=1)
    max_tags: int = Field(64, ge=1, le=4096, description="values read of one row; further ones are ignored")


class VectorFeature(SettingsModel):
    """A given embedding: a list column of `size` numbers, or text to be cut at `separator`."""

    kind: Literal["vector"] = "vector"
    size: int = Field(ge=1, le=16384)
    separator: str = Field(" ", min_length=1)


class TextFeature(SettingsModel):
    """Words: hashed into `buckets`, so nothing is unknown."""

    kind: Literal["text"] = "text"
    buckets: int = Field(16384, ge=16, le=2**24)
    max_tokens: int = Field(64, ge=1, le=4096, description="tokens read of one text; the rest is ignored")


Feature = Annotated[
    NumericFeature | CategoryFeature | TagsFeature | VectorFeature | TextFeature, Field(discriminator="kind")
]
Features = dict[str, Feature]

# Column names that `Recaller.candidates` gives a meaning of its own.
RESERVED_COLUMNS = frozenset({"id", "score", "rank", "channel"})


def _check_column_names(id_column: str, columns: set[str]) -> None:
    if id_column in columns:
        raise ValueError(f"{id_column!r} is the id: it can be neither an attribute nor a feature")
    if taken := sorted(columns & RESERVED_COLUMNS):
        raise ValueError(f"columns named {taken} clash with the answer's own names; rename them")


class InteractionSchema(SettingsModel):
    """Columns of the interactions table."""

    user: str
    item: str
    time: str | None = Field(None, description="without it the file's order is the order of time")
    label: str | None = None
    positive: float = Field(0.0, description="a label of at least this is a positive")
    impression: str | None = Field(None, description="boolean column: shown but not taken")


class ItemSchema(SettingsModel):
    """Columns of the items table, and the type that item ids come back as."""

    id: str
    id_type: IdType
    title: str | None = None
    attributes: dict[str, AttributeType | None] = Field(
        {}, description="what `where` may name, with its type; a plain list keeps the table's types (CSV: text)"
    )
    features: Features = {}

    @field_validator("attributes", mode="before")
    @classmethod
    def _normalize_attributes(cls, attributes: object) -> object:
        if not isinstance(attributes, Sequence) or isinstance(attributes, str):
            return attributes
        if len(set(attributes)) < len(attributes):
            raise ValueError(f"attributes names a column twice: {list(attributes)}")
        return dict.fromkeys(attributes)

    @model_validator(mode="after")
    def _validate_column_names(self) -> "ItemSchema":
        _check_column_names(self.id, {*self.attributes, *self.features, *([self.title] if self.title else [])})
        return self


class UserSchema(SettingsModel):
    """Columns of the users table, and the type of user ids."""

    id: str
    id_type: IdType
    features: Features = {}

    @model_validator(mode="after")
    def _validate_column_names(self) -> "UserSchema":
        _check_column_names(self.id, set(self.features))
        return self


class Schema(SettingsModel):
    """The three tables."""

    interactions: InteractionSchema
    items: ItemSchema
    users: UserSchema
