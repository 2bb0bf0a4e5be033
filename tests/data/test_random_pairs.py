"""Random draws for a split: shares by user, pairs that stay together, equal draws in every process."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data.random_pairs import draw_held_out, draw_validation

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 14), st.booleans()), min_size=1, max_size=80)


def to_arrays(rows):
    users, items, is_target = (np.array(column) for column in zip(*rows, strict=True))
    return users, items, is_target


@pytest.mark.parametrize(("n_items", "n_held_out"), [(4, 0), (5, 1), (14, 1), (15, 2), (24, 2), (25, 3), (100, 10)])
def test_held_out_items_are_a_rounded_tenth_of_each_user_with_at_least_five(n_items, n_held_out):
    users = np.repeat([0, 2], n_items)
    is_valid, is_test = draw_held_out(users, np.tile(np.arange(n_items), 2), None, 3, seed=0)
    for mask in (is_valid, is_test):
        assert np.bincount(users[mask], minlength=3).tolist() == [n_held_out, 0, n_held_out]


@given(PAIRS, st.integers(0, 3))
def test_interactions_of_a_pair_lie_in_one_part_and_only_target_items_count(rows, seed):
    users, items, is_target = to_arrays(rows)
    is_valid, is_test = draw_held_out(users, items, is_target, 4, seed)
    assert not (is_valid & is_test).any()
    parts = is_valid + 2 * is_test
    part_by_pair = dict(zip(zip(users, items, strict=True), parts, strict=True))
    assert [part_by_pair[pair] for pair in zip(users, items, strict=True)] == parts.tolist()
    for user in range(4):
        targets = {item for u, item, target in rows if u == user and target}
        expected = 0 if len(targets) < 5 else max(1, (len(targets) + 5) // 10)
        for part in (1, 2):
            held_out = {item for (u, item), number in part_by_pair.items() if u == user and number == part}
            assert len(held_out) == expected
            assert held_out <= targets


def test_every_item_is_held_out_equally_often_over_seeds():
    users, items = np.zeros(20, dtype=int), np.arange(20)
    counts = sum(draw_held_out(users, items, None, 1, seed)[1].astype(int) for seed in range(600))
    assert counts.sum() == 2 * 600
    assert abs(counts - 60).max() < 5 * np.sqrt(60)


DRAW = """
import json
import numpy as np
from vecall.data.random_pairs import draw_held_out
users, items = np.repeat(np.arange(3), 7), np.tile(np.arange(7), 3)
print(json.dumps([np.flatnonzero(mask).tolist() for mask in draw_held_out(users, items, None, 3, seed=0)]))
"""


def test_draw_is_that_of_the_seed_in_every_process_and_order():
    """The positions are those of `default_rng(0).random(21)`: the smallest of each seven, and the second smallest."""
    draws = np.random.default_rng(0).random(21).reshape(3, 7).argsort(axis=1) + 7 * np.arange(3)[:, None]
    printed = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == [draws[:, 1].tolist(), draws[:, 0].tolist()]
    users, items = np.repeat(np.arange(3), 7), np.tile(np.arange(7), 3)
    order = np.random.default_rng(1).permutation(21)
    _, is_test = draw_held_out(users[order], items[order], None, 3, seed=0)
    assert sorted(order[is_test]) == draws[:, 0].tolist()


@given(PAIRS)
def test_validation_is_a_tenth_of_the_pairs_and_leaves_each_user_some(rows):
    users, items, _ = to_arrays(rows)
    is_drawn = draw_validation(users, items, None, 4)
    pairs = {(user, item): drawn for user, item, drawn in zip(users, items, is_drawn, strict=True)}
    assert [pairs[pair] for pair in zip(users, items, strict=True)] == is_drawn.tolist()
    assert {user for (user, _), drawn in pairs.items() if not drawn} == set(users.tolist())
    assert sum(pairs.values()) == min(round(0.1 * len(pairs)), len(pairs) - len(set(users.tolist())))


def test_validation_is_a_tenth_of_the_pairs_that_may_be_drawn():
    users, items = np.repeat(np.arange(100), 40), np.tile(np.arange(40), 100)
    is_drawn = draw_validation(users, items, items < 3, 100)
    assert is_drawn.sum() == 30
    assert (items[is_drawn] < 3).all()
