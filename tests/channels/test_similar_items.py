import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.channel_oracles import make_similar_items

from vecall.channels import similar_items
from vecall.channels.channel_tables import ChannelTables
from vecall.channels.similar_items import SIMILARITY_SCALE

N = 6
LISTS = st.lists(
    st.lists(st.integers(0, N - 1), unique=True, max_size=N).flatmap(
        lambda rows: st.tuples(*(st.tuples(st.just(row), st.integers(1, 9)) for row in rows))
    ),
    min_size=N,
    max_size=N,
).map(lambda lists: [sorted(pairs, key=lambda pair: (-pair[1], pair[0])) for pairs in lists])


def to_lists(similar):
    found = [similar.get_neighbors(row) for row in range(len(similar))]
    return [
        list(zip(rows.tolist(), (similarities * SIMILARITY_SCALE).tolist(), strict=True))
        for rows, similarities in found
    ]


@given(lists=LISTS, base_rows=st.permutations(range(N)), kept=st.integers(1, N), new=st.sets(st.integers(0, 2 * N)))
def test_remapped_lists_are_those_of_the_kept_items_without_the_deleted(lists, base_rows, kept, new):
    """Kept items keep their order, as rows ascend with the ids; new items come anywhere between them."""
    items = sorted(base_rows[:kept])
    for position in sorted(new):
        items.insert(position, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similar_items, "_REMAPPED_LISTS", 2)
        tables = ChannelTables(similar=make_similar_items(lists, [1.0])).remap(np.array(items), N)
    expected = [
        [] if item < 0 else [(items.index(row), score) for row, score in lists[item] if row in items] for item in items
    ]
    assert to_lists(tables.similar) == expected
    assert tables.similar.seed_weights.tolist() == [1.0]


@given(lists=LISTS)
def test_mean_similarities_by_rank_count_missing_ranks_as_0(lists):
    similar = make_similar_items(lists, [1.0])
    owners = [pairs for pairs in lists if pairs]
    longest = max(map(len, owners), default=0)
    expected = [
        sum(pairs[rank][1] for pairs in owners if rank < len(pairs)) / len(owners) / SIMILARITY_SCALE
        for rank in range(longest)
    ]
    assert similar.mean_similarities.tolist() == pytest.approx(expected)
    assert (np.diff(similar.mean_similarities) <= 0).all()


def test_mean_similarities_of_many_items_are_those_of_a_sample(monkeypatch):
    monkeypatch.setattr(similar_items, "_MAX_MEASURED_LISTS", 2)
    lists = [[], [(0, 64)], [(0, 1000)], [], [(0, 32), (1, 32)]]
    assert make_similar_items(lists, [1.0]).mean_similarities.tolist() == [0.75, 0.25]
