"""A feature names what is held out: a column that was computed from all interactions, the test included."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.data.canonical import column_to_text
from vecall.data.dataset import Dataset
from vecall.data.frames import get_unnamed_column
from vecall.data.ragged import EvalCases, count_rows
from vecall.data.split import TEST, Split
from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Message
from vecall.evaluation.evaluator import get_new_target_mask
from vecall.schema import CategoryFeature, NumericFeature, TagsFeature

_MAX_CASES = 2_000
_MIN_SHARE = 0.05  # of the targets that the feature names
_MIN_FACTOR = 3  # times the share of other users' targets that it names
_MIN_COUNTED_ITEMS = 20  # items whose count with the test differs from that without
_COUNT_SHARE = 0.9  # of them whose feature equals the count with the test

_NAMED = Message(
    "the {side} feature {name} names {share:.1%} of the held-out pairs of user and item, and {other:.1%} of pairs "
    "drawn at random: it was computed from interactions that the model is to predict, so metrics are too high and "
    "cannot be reached when serving. Take it out of {setting}, or compute it from earlier interactions alone.",
    "{side_zh}特征 {name} 直接给出了 {share:.1%} 的留出（用户，物品）对，而随机配对只有 {other:.1%}：它是用待预测的交"
    "互计算的，指标因此偏高，线上达不到。请从 {setting} 中去掉它，或只用更早的交互计算。",
)
_COUNTED = Message(
    "the item feature {name} equals the number of all interactions of an item, the held-out ones included, for "
    "{share:.0%} of {items:,} items: it tells the model what the test holds. Count the interactions before the test, "
    "or take it out of {setting}.",
    "物品特征 {name} 在 {items:,} 个物品中有 {share:.0%} 等于该物品的全部交互数（含留出部分）：它泄露了测试集。请只统"
    "计测试之前的交互，或从 {setting} 中去掉它。",
)


class _Side(NamedTuple):
    """Features that may name held-out items or users.

    Attributes:
        name: What they are features of.
        name_zh: The same in Chinese.
        section: Of the schema.
        features: By name.
        frame: Their values.
        rows: [P] Row of the frame of each held-out pair.
    """

    name: str
    name_zh: str
    section: str
    features: Mapping[str, object]
    frame: pl.DataFrame
    rows: Rows


def check(context: DoctorContext) -> list[Finding]:
    """Look for held-out items in features of users and of context, for users in those of items, and for counts."""
    dataset, split = context.dataset, context.split
    if dataset is None or split is None:
        return []
    cases = split.test.take(np.arange(len(split.test))[:: max(1, len(split.test) // _MAX_CASES)])
    return [*_find_named_targets(dataset, cases), *_find_counts(dataset, split)]


def _find_named_targets(dataset: Dataset, cases: EvalCases) -> Iterator[Finding]:
    catalogue, schema = dataset.catalogue, dataset.schema
    # A feature of the training part may name items of the user's own history, which are taken again.
    is_new = get_new_target_mask(cases, len(catalogue.items))
    users, items = cases.users[cases.targets.segment_ids][is_new], cases.targets.values[is_new]
    attributes, title = catalogue.item_attributes, schema.items.title
    titles = [get_unnamed_column(attributes, title)] if title in attributes.columns else []  # no title, or no table
    item_names = [catalogue.item_ids, *titles]
    sides: list[_Side] = [
        _Side("user", "用户", "users.features", schema.users.features, catalogue.user_features, users),
        _Side("item", "物品", "items.features", schema.items.features, catalogue.item_features, items),
    ]
    if cases.context is not None:
        rows = cases.targets.segment_ids[is_new]
        features = schema.interactions.context
        sides.append(_Side("context", "上下文", "interactions.context", features, cases.context, rows))
    for side in sides:
        other_rows, names = (users, [catalogue.user_ids]) if side.name == "item" else (items, item_names)
        for feature_name in _list_text_features(side.features, side.frame):
            cells = get_unnamed_column(side.frame, feature_name)
            share, other = max(_match_shares(cells, side.rows, other_rows, column) for column in names)
            if share >= _MIN_SHARE and share >= _MIN_FACTOR * other:
                setting = f"schema.{side.section}.{feature_name}"
                message = _NAMED.format(
                    side=side.name, side_zh=side.name_zh, name=feature_name, share=share, other=other, setting=setting
                )
                yield Finding("targets_in_features", "error", message, round(share, 4), setting)


def _list_text_features(features: Mapping[str, object], frame: pl.DataFrame) -> list[str]:
    return [
        name
        for name, feature in features.items()
        if isinstance(feature, CategoryFeature | TagsFeature) and name in frame.columns
    ]


def _match_shares(cells: pl.Series, own_rows: Rows, other_rows: Rows, names: pl.Series) -> tuple[float, float]:
    """Return the share of pairs in which the cell of the one holds the name of the other, and of pairs at random.

    Args:
        cells: Text, or lists of texts, by row.
        own_rows: [P] Rows of the cells.
        other_rows: [P] Rows of the names.
        names: Ids or titles by row.
    """
    values = column_to_text(cells.gather(own_rows)).to_list()
    texts = column_to_text(names.gather(other_rows)).to_list()
    shifted = [*texts[len(texts) // 2 :], *texts[: len(texts) // 2]]
    return _share_of_matches(values, texts), _share_of_matches(values, shifted)


def _share_of_matches(values: list[str | list[str] | None], texts: list[str | None]) -> float:
    matches = [
        value is not None and text is not None and (text in value if isinstance(value, list) else text == value)
        for value, text in zip(values, texts, strict=True)
    ]
    return sum(matches) / len(matches) if matches else 0.0


def _find_counts(dataset: Dataset, split: Split) -> Iterator[Finding]:
    n_items, frame = len(dataset.catalogue.items), dataset.catalogue.item_features
    held_out = dataset.interactions.positives.filter(split.positive_parts == TEST)
    for all_counts, held_out_items in (
        (dataset.popularity, held_out.counted_positives.items),
        (count_rows(dataset.interactions.items, n_items), held_out.items),
    ):
        is_different = count_rows(held_out_items, n_items) > 0  # from what a count before the test would be
        if is_different.sum() < _MIN_COUNTED_ITEMS:
            continue
        for name, feature in dataset.schema.items.features.items():
            if not isinstance(feature, NumericFeature) or name not in frame.columns:
                continue
            share = _share_of_equal(get_unnamed_column(frame, name), all_counts, is_different)
            if share >= _COUNT_SHARE:
                setting = f"schema.items.features.{name}"
                message = _COUNTED.format(name=name, share=share, items=int(is_different.sum()), setting=setting)
                yield Finding("targets_in_features", "error", message, round(share, 4), setting)
                return


def _share_of_equal(cells: pl.Series, counts: NDArray[np.generic], mask: NDArray[np.bool_]) -> float:
    values = cells.cast(pl.Float64).to_numpy()
    return float((values == counts)[mask].mean())
