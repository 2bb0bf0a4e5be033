"""Exclusions or filters leave less than was asked for: nearly all is seen, or most items have no value to filter by."""

import numpy as np

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message

_USER_SHARE = 0.01
_NULL_INFO, _NULL_WARNING = 0.2, 0.9

_SEEN = Message(
    "{share:.1%} of the users have seen so many of the {items:,} items that fewer than k = {k} are left: their "
    "answers are short, and whatever is left is in them. Ask for a smaller k (index.ks), or send exclude_seen = false.",
    "{share:.1%} 的用户在 {items:,} 个物品中看过太多，剩下的不足 k = {k}：答案会变短，且剩什么就返回什么。请用更小的 "
    "k（index.ks），或在请求中设 exclude_seen = false。",
)
_NULL = Message(
    "{share:.0%} of the items have no value for the attribute {name}: a null satisfies no filter, `ne` and `not_in` "
    "included, so a `where` on it removes them. Fill the column before publishing.",
    "{share:.0%} 的物品没有属性 {name} 的值：空值不满足任何过滤条件（包括 `ne` 和 `not_in`），用它过滤会去掉这些物品。"
    "请在发布前补全该列。",
)
_BLANK = Message(
    "values of the attribute {name} differ only in case or in blanks at the ends: `eq` compares them exactly, so a "
    "filter finds one spelling only. Clean the column before publishing.",
    "属性 {name} 的某些值只差大小写或首尾空格：`eq` 是精确比较，一个过滤条件只能匹配其中一种写法。请在发布前清洗该列。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Count the users with too little left, and the attributes without values."""
    facts, findings = context.answers, []
    if facts is None:
        return []
    left = facts.n_items - facts.seen_counts
    share = float(np.mean(left < facts.k)) if len(left) and facts.k < facts.n_items else 0.0
    if share >= _USER_SHARE:
        message = _SEEN.format(share=share, items=facts.n_items, k=facts.k)
        findings.append(Finding("answers_eaten", "warning", message, round(share, 4), "index.ks"))
    for name, null_share in facts.null_shares.items():
        if null_share >= _NULL_INFO:
            level: Level = "warning" if null_share >= _NULL_WARNING else "info"
            message = _NULL.format(share=null_share, name=name)
            findings.append(Finding("answers_eaten", level, message, round(null_share, 4), "schema.items.attributes"))
    findings += [
        Finding("answers_eaten", "info", _BLANK.format(name=name), None, "schema.items.attributes")
        for name in facts.blank_attributes
    ]
    return findings
