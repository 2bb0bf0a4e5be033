"""The vectors that are served are not those that the tables and towers give now, for the same users or items."""

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message
from vecall.release.golden import MAX_VECTOR_DIFFERENCE

_WARNING_SHARE, _INFO_SHARE = 0.1, 0.01

_GOLDEN = Message(
    "the golden queries of the release are encoded to other vectors than at publishing: a component differs by "
    "{difference:.2g} (allowed: {allowed:g}). The towers, the item vectors or ONNX Runtime have changed: publish "
    "again.",
    "发布时记录的黄金查询现在编码得到不同的向量：分量相差 {difference:.2g}（允许 {allowed:g}）。塔、物品向量或 ONNX "
    "Runtime 变了：请重新发布。",
)
_USERS = Message(
    "{share:.1%} of {count:,} users get another vector from the tables than from the release: histories or features "
    "have changed since it was published. Publish again, or send `recent` with each request.",
    "{count:,} 个用户中有 {share:.1%} 用当前的表与用发布版本得到的向量不同：历史或特征在发布后变了。请重新发布，或在每"
    "次请求中给出 `recent`。",
)
_ITEMS = Message(
    "{share:.1%} of {count:,} items get another vector from the tables than from the release: their features have "
    "changed, or are written otherwise. Publish again, or upsert the items.",
    "{count:,} 个物品中有 {share:.1%} 用当前的表与用发布版本得到的向量不同：特征变了，或写法不同。请重新发布，或更新这"
    "些物品。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Compare golden queries, users and items."""
    facts, findings = context.served, []
    if facts is None:
        return []
    difference = facts.golden_difference
    if difference is not None and not difference <= MAX_VECTOR_DIFFERENCE:  # NaN is a difference too
        message = _GOLDEN.format(difference=difference, allowed=MAX_VECTOR_DIFFERENCE)
        findings.append(Finding("served_vectors_differ", "error", message, difference, "vecall publish"))
    sides = (
        (_USERS, facts.user_count, facts.differing_user_share),
        (_ITEMS, facts.item_count, facts.differing_item_share),
    )
    for template, count, share in sides:
        if count and share >= _INFO_SHARE:
            level: Level = "warning" if share >= _WARNING_SHARE else "info"
            message = template.format(count=count, share=share)
            findings.append(Finding("served_vectors_differ", level, message, round(share, 4), "vecall publish"))
    return findings
