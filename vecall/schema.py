"""Columns of the users, items and interactions tables: the `[schema.*]` sections of vecall.toml."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from vecall.settings_base import SettingsModel

IdType = Literal["string", "integer"]
TimeUnit = Literal["s", "ms", "us", "ns"]
AttributeType = Literal["string", "integer", "number", "boolean", "datetime", "tags"]
DEFAULT_TAG_SEPARATOR = "|"


class NumericFeature(SettingsModel):
    """A number. A missing value is encoded differently from zero."""

    kind: Literal["numeric"] = Field(
        "numeric", description="a number, standardized; missing values have an input of their own"
    )


class CategoryFeature(SettingsModel):
    """A value out of a set. Missing values and values not seen in training have embedding rows of their own."""

    kind: Literal["category"] = Field("category", description="a value out of a set, with a learned embedding each")


class TagsFeature(SettingsModel):
    """Any number of values: a list column, or text that is split at `separator`."""

    kind: Literal["tags"] = Field("tags", description="any number of values: a list column, or delimited text")
    separator: str = Field(DEFAULT_TAG_SEPARATOR, min_length=1, description="between the values of a text cell")
    max_tags: int = Field(64, ge=1, le=4096, description="values read per row; further ones are ignored")


class VectorFeature(SettingsModel):
    """A precomputed embedding: a list column of `size` numbers, or text that is split at `separator`."""

    kind: Literal["vector"] = Field("vector", description="a precomputed embedding: a list column, or delimited text")
    size: int = Field(ge=1, le=16384, description="numbers of the vector")
    separator: str = Field(" ", min_length=1, description="between the numbers of a text cell")


class TextFeature(SettingsModel):
    """Free text. Its tokens are hashed into `buckets`, so there are no unknown tokens."""

    kind: Literal["text"] = Field("text", description="free text, as hashed tokens; CJK text as character n-grams")
    buckets: int = Field(16384, ge=16, le=2**24, description="rows of the embedding table that tokens are hashed into")
    max_tokens: int = Field(64, ge=1, le=4096, description="tokens read per text; further ones are ignored")


Feature = Annotated[
    NumericFeature | CategoryFeature | TagsFeature | VectorFeature | TextFeature, Field(discriminator="kind")
]
Features = dict[str, Feature]
ContextFeature = Annotated[NumericFeature | CategoryFeature, Field(discriminator="kind")]

# Columns that `Recaller.candidates` adds to the attributes, and what the names of its other columns start with.
RESERVED_COLUMNS = frozenset({"id", "score", "rank", "channels"})
_MIN_WEIGHT, _MAX_WEIGHT = 1e-6, 1e6  # of a kind of interactions: beyond them, a loss in 32 bits is 0 or infinite
_RESERVED_PREFIXES = ("user.", "item.", "history.", "vector.", "similar.", "popular.", "fresh.", "repeat.")


def list_reserved_columns(columns: Iterable[str]) -> list[str]:
    """Return those names that clash with columns of `Recaller.candidates`."""
    return sorted(name for name in columns if name in RESERVED_COLUMNS or name.startswith(_RESERVED_PREFIXES))


def _is_weight(weight: float) -> bool:
    return _MIN_WEIGHT <= weight <= _MAX_WEIGHT


def _check_column_names(id_column: str, columns: set[str]) -> None:
    if id_column in columns:
        raise ValueError(f"{id_column!r} is the id column: it can be neither an attribute nor a feature")
    if reserved := list_reserved_columns(columns):
        raise ValueError(f"columns named {reserved} clash with columns of the recall result; rename them")


class InteractionSchema(SettingsModel):
    """Columns of the interactions table."""

    user: str = Field(description="column of user ids")
    item: str = Field(description="column of item ids")
    time: str | None = Field(None, description="if unset, the rows of the file are in chronological order")
    time_unit: TimeUnit | Literal["none"] = Field(
        "none", description="of numeric times, since 1970; none: unknown, so that only their order counts"
    )
    label: str | None = Field(None, description="numeric column, such as a rating; if unset, every row is positive")
    positive: float = Field(0.0, description="labels of at least this value are positive")
    impression: str | None = Field(None, description="boolean column; true: the item was shown and not chosen")
    event: str | None = Field(None, description="column of the kind of an interaction, such as view or buy")
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        None,
        description="weight of a positive in the loss by kind; 0: only read as history; kinds that are listed neither "
        "here nor in negatives are dropped and counted; if unset, each kind weighs 1",
    )
    negatives: tuple[str, ...] = Field((), description="kinds that are hard negatives, as impressions are")
    targets: tuple[str, ...] = Field(
        (), description="kinds that are held out and evaluated; if empty, those of weight above 0"
    )
    context: dict[str, ContextFeature] = Field({})

    @model_validator(mode="after")
    def _validate_kinds(self) -> "InteractionSchema":
        weights, negatives, targets = self.weights or {}, set(self.negatives), set(self.targets)
        if self.event is None and (self.weights is not None or negatives or targets):
            raise ValueError("weights, negatives and targets go by kind: name the column of the kinds in event")
        if self.weights is not None and not any(weights.values()):
            raise ValueError("weights: at least one kind must weigh more than 0, or there is nothing to learn")
        if extreme := sorted(kind for kind, weight in weights.items() if weight and not _is_weight(weight)):
            raise ValueError(f"weights of {extreme}: expected 0, or from {_MIN_WEIGHT:g} to {_MAX_WEIGHT:g}")
        if both := sorted(negatives & weights.keys()):
            raise ValueError(f"kinds {both} are in both weights and negatives; leave them out of one")
        if negative_targets := sorted(targets & negatives):
            raise ValueError(f"kinds {negative_targets} are in both targets and negatives; only positives are held out")
        if self.weights is not None and (dropped := sorted(targets - weights.keys())):
            raise ValueError(f"kinds {dropped} of targets are not in weights, so they would be dropped; add them")
        return self

    @model_validator(mode="after")
    def _validate_context(self) -> "InteractionSchema":
        if known := sorted(self.context.keys() & {self.user, self.item, self.label, self.impression}):
            raise ValueError(
                f"context: {known} are the columns of user, item, label or impression; context is what else a request "
                "knows before the item is chosen, such as the hour or the device"
            )
        return self

    @model_validator(mode="after")
    def _validate_time_unit(self) -> "InteractionSchema":
        if self.time is None and self.time_unit != "none":
            raise ValueError("time_unit is that of the time column: name the column in time, or leave time_unit out")
        return self


class ItemSchema(SettingsModel):
    """Columns of the items table, and the type of item ids."""

    id: str = Field(description="column of item ids")
    id_type: IdType = Field(description="type of item ids; never guessed")
    title: str | None = Field(None, description="column of a name for people; it is an attribute, too")
    attributes: dict[str, AttributeType | None] = Field(
        {},
        description="columns that `where` may name, with their types; a list keeps the table's types (CSV: text, and "
        "tags where a feature of tags reads the column)",
    )
    created: str | None = Field(
        None,
        description="column of the time that an item came, a datetime, ISO 8601 text, or a number in the unit of "
        "schema.interactions.time_unit; it is an attribute, too, a datetime",
    )
    features: Features = Field({})

    @field_validator("attributes", mode="before")
    @classmethod
    def _normalize_attributes(cls, attributes: object) -> object:
        if not isinstance(attributes, Sequence) or isinstance(attributes, str):
            return attributes
        if not all(isinstance(name, str) for name in attributes):
            raise ValueError("expected names of columns, or a table of names and types")
        if len(set(attributes)) < len(attributes):
            raise ValueError(f"attributes names a column twice: {list(attributes)}")
        return dict.fromkeys(attributes)

    @model_validator(mode="after")
    def _validate_column_names(self) -> "ItemSchema":
        single_columns = {name for name in (self.title, self.created) if name is not None}
        _check_column_names(self.id, {*self.attributes, *self.features, *single_columns})
        return self

    @model_validator(mode="after")
    def _validate_created(self) -> "ItemSchema":
        if self.created is not None and self.created in (self.title, *self.features):
            raise ValueError(f"created: {self.created!r} is a feature or the title, too, which a time cannot be")
        declared_type = None if self.created is None else self.attributes.get(self.created)
        if declared_type not in (None, "datetime"):
            raise ValueError(
                f"created: attribute {self.created!r} is declared as {declared_type!r}; declare it as 'datetime', or "
                "leave it out of attributes: created makes it one"
            )
        return self


class UserSchema(SettingsModel):
    """Columns of the users table, and the type of user ids."""

    id: str = Field(description="column of user ids")
    id_type: IdType = Field(description="type of user ids; never guessed")
    features: Features = Field({})

    @model_validator(mode="after")
    def _validate_column_names(self) -> "UserSchema":
        _check_column_names(self.id, set(self.features))
        return self


class Schema(SettingsModel):
    """Columns of the three tables."""

    interactions: InteractionSchema
    items: ItemSchema
    users: UserSchema

    @model_validator(mode="after")
    def _validate_context_names(self) -> "Schema":
        if both := sorted(self.interactions.context.keys() & {self.users.id, *self.users.features}):
            raise ValueError(
                f"interactions.context: {both} are columns of the users table, too, and a request names both alike; "
                "rename them in one of the tables"
            )
        return self

    @property
    def user_inputs(self) -> Features:
        """Features that the user tower reads: those of users, and of the interaction that is to be predicted."""
        return {**self.users.features, **self.interactions.context}
