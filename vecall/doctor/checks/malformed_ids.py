"""Ids that went through a number: text with ".0" at its end, or without the zeros that it began with."""

from collections.abc import Iterator

import polars as pl

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Message

_MIN_SHARE = 0.01
_MIN_PADDED_LENGTH = 8  # digits from which ids are codes of a fixed length, such as EAN or ISBN
_MAIN_LENGTH_SHARE, _SHORT_SHARE = 0.8, 0.02

_FLOATS = Message(
    '{share:.0%} of the {side} ids end in ".0", such as {examples}: a table was written from a column of floats. The '
    'same id without ".0" in another table, or in a request, is another {side}. Set schema.{section}.id_type = '
    '"integer", or write the ids as text.',
    '{share:.0%} 的{side_zh} id 以 ".0" 结尾，例如 {examples}：表是从浮点列写出的。在别的表或请求里不带 ".0" 的同一 '
    'id 会成为另一个{side_zh}。请设 schema.{section}.id_type = "integer"，或把 id 写成文本。',
)
_ZEROS = Message(
    "{count:,} {side} ids differ from another one in leading zeros alone, such as {examples}: one of two tables or "
    "files has lost them, so their interactions are split over two {side}s. Read the id column as text, or pad it, "
    "before writing the table.",
    "{count:,} 个{side_zh} id 与另一个只差前导零，例如 {examples}：某个表或文件丢了零，交互被分到两个{side_zh}上。写表"
    "之前请把 id 列按文本读取，或补齐零。",
)
_SHORT = Message(
    "{main:.0%} of the {side} ids have {length} digits, {short:.0%} fewer, and none of the long ones begins with 0: "
    "leading zeros may have been lost. If other systems pad these ids, requests with them find nothing.",
    "{main:.0%} 的{side_zh} id 有 {length} 位数字，{short:.0%} 更短，且没有一个长 id 以 0 开头：前导零可能丢失了。若其"
    "他系统会补零，用补零 id 的请求将找不到任何东西。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Look at the text of item and user ids."""
    if context.dataset is None:
        return []
    catalogue = context.dataset.catalogue
    sides = (("item", "物品", catalogue.item_ids), ("user", "用户", catalogue.user_ids))
    return [finding for side, side_zh, ids in sides for finding in _examine(side, side_zh, ids)]


def _examine(side: str, side_zh: str, ids: pl.Series) -> Iterator[Finding]:
    if ids.dtype != pl.String or not len(ids):
        return
    setting, names = f"schema.{side}s.id_type", {"side": side, "side_zh": side_zh, "section": f"{side}s"}
    is_float = ids.str.contains(r"^-?\d+\.0+$")
    if (share := int(is_float.sum()) / len(ids)) >= _MIN_SHARE:
        message = _FLOATS.format(share=share, examples=_join(ids.filter(is_float)), **names)
        yield Finding("malformed_ids", "warning", message, round(share, 4), setting)
    digits = ids.filter(ids.str.contains(r"^\d+$"))
    stripped = digits.str.strip_chars_start("0")
    is_double = stripped.is_duplicated()
    if is_double.any():
        examples = digits.filter(is_double).gather(stripped.filter(is_double).arg_sort())
        message = _ZEROS.format(count=int(is_double.sum()), examples=_join(examples), **names)
        yield Finding("malformed_ids", "warning", message, float(is_double.sum()), setting)
        return
    lengths = digits.str.len_bytes()
    if len(digits) < 0.9 * len(ids) or lengths.max() is None:
        return
    longest = int(lengths.max())  # type: ignore[arg-type]  # of integers
    main = int((lengths == longest).sum()) / len(lengths)
    if longest < _MIN_PADDED_LENGTH or main < _MAIN_LENGTH_SHARE or 1 - main < _SHORT_SHARE:
        return
    if not digits.filter(lengths == longest).str.starts_with("0").any():
        message = _SHORT.format(main=main, length=longest, short=1 - main, **names)
        yield Finding("malformed_ids", "info", message, round(1 - main, 4), setting)


def _join(ids: pl.Series) -> str:
    return ", ".join(map(repr, ids.head(3).to_list()))
