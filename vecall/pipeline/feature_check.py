"""Comparison of the features that a model reads with those of other tables."""

from collections.abc import Mapping
from typing import Any

from vecall.schema import Schema, VectorFeature


def describe_missing_features(
    item_features: Mapping[str, Any], user_features: Mapping[str, Any], schema: Schema, *, reads_context: bool
) -> str:
    """Name the features of a model that tables do not have in this kind; empty if they have all of them.

    Args:
        item_features: Features that the item tower reads, by name.
        user_features: Those of the user tower, of the context too.
        schema: Of the tables. Further features do no harm.
        reads_context: Whether the tables' context features are read, so that the model must know all of them.
    """
    problems = []
    for section, expected, existing in (
        ("items", item_features, schema.items.features),
        ("users", user_features, schema.user_inputs),
    ):
        for name, feature in expected.items():
            present = existing.get(name)
            if present is None:
                problems.append(f"{name!r} of {section} is missing")
            elif type(present) is not type(feature):
                problems.append(f"{name!r} of {section} is {present.kind!r} and not {feature.kind!r}")
            elif isinstance(present, VectorFeature) and present != feature:
                problems.append(f"{name!r} of {section} has {present.size} values, another number than in training")
    if reads_context:
        problems += [
            f"{name!r} of the context is new" for name in schema.interactions.context if name not in user_features
        ]
    return "; ".join(problems)
