"""Values of features that training has not seen, and users without any feature, by part of the split."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from vecall.arrays import Rows
from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.frames import is_empty_row, select_columns
from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message
from vecall.index.sampling import evenly_spaced_rows

_MAX_ROWS = 20_000
_INFO_SHARE, _WARNING_SHARE = 0.02, 0.1
_MISSING_SHARE = 0.2  # of the test users without any feature, above that of training users

_UNSEEN = Message(
    "{test:.1%} of the values of the {side} feature {name} in the test part are unknown to training (validation: "
    "{valid:.1%}): they all share one embedding, so the feature says nothing for them. The values may be spelled "
    'otherwise in newer rows, be ids in disguise, or be new. Clean the column, or use kind = "text".',
    "测试部分 {side_zh}特征 {name} 的值有 {test:.1%} 在训练中未出现（验证部分 {valid:.1%}）：它们共用一个向量，这个特"
    '征对它们没有作用。可能是新行里写法不同、其实是 id，或确实是新值。请清洗该列，或改用 kind = "text"。',
)
_MISSING = Message(
    "{test:.1%} of the test users have no feature at all, of the training users {train:.1%}: the users table lacks "
    "them, or its ids are written otherwise.",
    "{test:.1%} 的测试用户没有任何特征，训练用户为 {train:.1%}：用户表里没有他们，或 id 的写法不同。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Count unseen values of the items and users of the validation and test parts."""
    dataset, split, encoders = context.dataset, context.split, context.encoders
    if dataset is None or split is None or encoders is None:
        return []
    catalogue = dataset.catalogue
    train_users = np.flatnonzero(split.train.lengths)
    # The context of an interaction is a feature of its user to the model, and is stored for nobody.
    stored = [name for name in dataset.schema.users.features if name in catalogue.user_features.columns]
    return [
        *_find_unseen(
            "item", "物品", encoders[0], catalogue.item_features, split.valid.targets.values, split.test.targets.values
        ),
        *_find_unseen("user", "用户", encoders[1], catalogue.user_features, split.valid.users, split.test.users),
        *_find_missing(select_columns(catalogue.user_features, stored), train_users, split.test.users),
    ]


def _find_unseen(
    side: str, side_zh: str, encoder: FeatureEncoder, frame: pl.DataFrame, valid_rows: Rows, test_rows: Rows
) -> Iterator[Finding]:
    for name in encoder.state.categorical:
        if name not in frame.columns:
            continue
        column = select_columns(frame, [name])
        valid, test = (_unseen_share(encoder, column, rows) for rows in (valid_rows, test_rows))
        if test >= _INFO_SHARE:
            message = _UNSEEN.format(side=side, side_zh=side_zh, name=name, test=test, valid=valid)
            level: Level = "warning" if test >= _WARNING_SHARE else "info"
            yield Finding("unknown_values", level, message, round(test, 4), f"schema.{side}s.features.{name}")


def _unseen_share(encoder: FeatureEncoder, column: pl.DataFrame, rows: Rows) -> float:
    count = encoder.count_unseen_values(column[rows[evenly_spaced_rows(len(rows), _MAX_ROWS)]])
    return count.unseen / count.total if count.total else 0.0


def _find_missing(features: pl.DataFrame, train_users: Rows, test_users: Rows) -> Iterator[Finding]:
    if not features.columns:
        return
    is_empty = is_empty_row(features)
    train, test = float(is_empty[train_users].mean()), float(is_empty[test_users].mean())
    if test >= _MISSING_SHARE:
        level: Level = "warning" if test >= train + _MISSING_SHARE or test > 0.5 else "info"
        yield Finding("unknown_values", level, _MISSING.format(test=test, train=train), round(test, 4), "data.users")
