"""The model recalls no more than popularity, or less than EASE or co-occurrence: it has learned less than it could."""

from collections.abc import Mapping

from vecall.doctor.context import DoctorContext, RankingFacts, RecallGap
from vecall.doctor.finding import Finding, Message

_MIN_USERS = 50  # below, being level with popularity is chance
_FAR_BELOW = 0.8  # share of a baseline's recall
_MAX_LEVEL = 1.1  # share of popularity's recall; a model with more is not level, though few users may not prove it

_MESSAGE = Message(
    "{key} of the model is {recall:.3f}, {relations} ({users:,} test users). {meaning} Set model.preset to another of "
    "auto, set, pooled and sequence, and see the other findings first: most causes are among them.",
    "模型的 {key} 为 {recall:.3f}，{relations_zh}（{users:,} 个测试用户）。{meaning_zh}请先看其他发现（多数原因在其中）"
    "，再把 model.preset 换成 auto、set、pooled、sequence 中的另一个。",
)
_BELOW = (
    "A closed form of the same histories finds more, so the model misses what is in the data.",
    "同样的历史用闭式解就能召回更多，说明模型没有学到数据中已有的信息。",
)
_LEVEL = (
    "It finds no more than a list that is the same for everybody, so it has learned little of what each user wants.",
    "它并不比对所有用户都相同的热门榜召回更多，说明几乎没有学到每个用户的兴趣。",
)
_SKIPPED = Message(
    "{name} was not compared with: {reason}",
    "没有与 {name} 比较：{reason}",
)


def check(context: DoctorContext) -> list[Finding]:
    """Compare the model with each baseline."""
    facts = context.ranking
    if facts is None:
        return []
    skipped = [
        Finding("below_baselines", "info", _SKIPPED.format(name=name, reason=reason))
        for name, reason in facts.skipped_baselines.items()
    ]
    return _compare(facts) + skipped


def is_level_with(gap: RecallGap) -> bool:
    """Whether the model is not above another one: neither beyond chance, nor by a tenth."""
    return not gap.is_above and gap.recall <= _MAX_LEVEL * gap.other_recall


def _list_relations(gaps: Mapping[str, RecallGap], below: str, level: str) -> str:
    return ", ".join(f"{below if gap.is_below else level} {name} {gap.other_recall:.3f}" for name, gap in gaps.items())


def _compare(facts: RankingFacts) -> list[Finding]:
    gaps = facts.baseline_gaps
    above = {name: gap for name, gap in gaps.items() if gap.is_below}
    popularity = gaps.get("popularity")
    is_level = popularity is not None and is_level_with(popularity) and facts.user_count >= _MIN_USERS
    if is_level and popularity is not None:
        above["popularity"] = popularity
    if not above:
        return []
    best = max(above.values(), key=lambda gap: gap.other_recall)
    is_serious = is_level or best.recall < _FAR_BELOW * best.other_recall
    meaning, meaning_zh = _BELOW if any(gap.is_below for gap in above.values()) else _LEVEL
    message = _MESSAGE.format(
        key=facts.recall_key,
        recall=best.recall,
        relations=_list_relations(above, "below", "level with"),
        relations_zh=_list_relations(above, "低于", "与之相当："),
        users=facts.user_count,
        meaning=meaning,
        meaning_zh=meaning_zh,
    )
    ratio = best.recall / best.other_recall if best.other_recall else 1.0
    return [Finding("below_baselines", "error" if is_serious else "warning", message, round(ratio, 4), "model.preset")]
