"""Kinds of interactions, such as view and buy: what each kind means by the schema."""

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Mask
from vecall.data.canonical import canonicalize_text
from vecall.data.casting import CastResult, column_to_text_or_null
from vecall.errors import ConfigError
from vecall.schema import InteractionSchema


def cast_kind(column: pl.Series) -> CastResult:
    """Cast kinds to String, in which 1 and 1.0 are the same; nothing is invalid."""
    kinds = canonicalize_text(column_to_text_or_null(column))
    return CastResult(kinds, kinds.is_not_null(), "the kind of the interaction, as text or a number")


def canonicalize_kinds(kinds: Iterable[str]) -> list[str]:
    """Return kinds of the settings as `cast_kind` spells them."""
    return canonicalize_text(pl.Series(list(kinds), dtype=pl.String)).to_list()


def list_kinds(schema: InteractionSchema) -> list[str] | None:
    """Return the kinds to read, those of positives first; None for all that the table has.

    Raises:
        ConfigError: The settings name a kind twice, as "1" and "1.0".
    """
    if schema.weights is None:
        return None
    spellings = [*schema.weights, *schema.negatives]
    kinds = canonicalize_kinds(spellings)
    if None in kinds:
        raise ConfigError("schema.interactions: '' in weights or negatives is no kind: rows without one are invalid")
    if same := [spelling for spelling, kind in zip(spellings, kinds, strict=True) if kinds.count(kind) > 1]:
        raise ConfigError(f"schema.interactions: {same} in weights and negatives are the same kind; keep one of them")
    return kinds


def compute_kind_weights(kinds: Sequence[str], schema: InteractionSchema) -> NDArray[np.float32]:
    """Return the weight in the loss of a positive of each kind, [kinds]."""
    if schema.weights is None:
        return np.ones(len(kinds), dtype=np.float32)
    weights = dict(zip(canonicalize_kinds(schema.weights), schema.weights.values(), strict=True))
    return np.array([weights.get(kind, 0.0) for kind in kinds], dtype=np.float32)


def mark_target_kinds(kinds: Sequence[str], schema: InteractionSchema) -> Mask:
    """Return a mask [kinds], true for the kinds that may be targets of the validation and the test."""
    if schema.targets:
        return np.isin(np.array(kinds, dtype=object), canonicalize_kinds(schema.targets))
    return compute_kind_weights(kinds, schema) > 0


def list_target_kinds(kinds: Sequence[str], schema: InteractionSchema) -> list[str]:
    """Return the kinds that may be targets of the validation and the test, sorted."""
    is_target = mark_target_kinds(kinds, schema)
    return sorted(kind for kind, target in zip(kinds, is_target, strict=True) if target)
