"""The index was tuned on vectors of other users than the present ones, for whom its ANN recall is lower."""

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Message

_MAX_FALL = 0.03
_MIN_QUERIES = 50

_MESSAGE = Message(
    "ANN recall@{k} was {recorded:.3f} for the users that the index was tuned on, and is {recall:.3f} for the "
    "{queries:,} users of the tables: they are other users, or their histories have moved on. Publish again from "
    "present tables, or give publish_vectors a sample of real user vectors in `queries`.",
    "调参用户的 ANN recall@{k} 为 {recorded:.3f}，而表中 {queries:,} 个用户只有 {recall:.3f}：他们是不同的用户，或历史"
    "已经变化。请用当前的表重新发布，或在 publish_vectors 的 `queries` 中给出真实用户向量的样本。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Compare ANN recall on present users with that recorded at publishing."""
    facts = context.ann
    if facts is None or facts.recorded_recall is None or facts.query_count < _MIN_QUERIES:
        return []
    fall = facts.recorded_recall - facts.recall
    if fall < _MAX_FALL:
        return []
    message = _MESSAGE.format(k=facts.k, recorded=facts.recorded_recall, recall=facts.recall, queries=facts.query_count)
    return [Finding("index_tuned_elsewhere", "warning", message, round(fall, 4), "vecall publish")]
