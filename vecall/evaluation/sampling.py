"""The fixed sample of users that stands for all where a full evaluation would take hours."""

import dataclasses

import numpy as np

from vecall.data.ragged import EvalCases, RaggedArray

SAMPLE_SIZE = 10_000  # users; a recall has a standard error of at most .005
MAX_FULL_PAIRS = 10**10  # users x items up to which all users are evaluated
_SEED = 0


def sample_cases(cases: EvalCases, size: int | None = None) -> EvalCases:
    """Return a random sample of `size` cases in their order, or all if there are no more.

    The sample depends on the number of cases alone: it is the same in each epoch, after a resume and in each
    evaluation.

    Args:
        cases: All cases.
        size: At least 1; None for `SAMPLE_SIZE`.
    """
    size = size or SAMPLE_SIZE
    if len(cases) <= size:
        return cases
    drawn = np.random.default_rng(_SEED).choice(len(cases), size=size, replace=False)
    return cases.take(np.sort(drawn))


def shuffle_histories(cases: EvalCases) -> EvalCases:
    """Return the cases with the items of each history in random order, the same each time."""
    histories = cases.histories
    order = np.lexsort((np.random.default_rng(_SEED).random(len(histories.values)), histories.segment_ids))
    return dataclasses.replace(cases, histories=RaggedArray(histories.offsets, histories.values[order]))


def select_test_cases(cases: EvalCases, n_items: int, *, all_users: bool = False) -> EvalCases:
    """Return the cases that an evaluation over N items ranks.

    Args:
        cases: All test cases.
        n_items: N.
        all_users: Whether to take all cases, however many.

    Returns:
        All cases while cases x items are at most `MAX_FULL_PAIRS`, else the sample of `sample_cases`.
    """
    return cases if all_users or len(cases) * n_items <= MAX_FULL_PAIRS else sample_cases(cases)


def describe_users(n_evaluated: int, n_users: int) -> str:
    """Return "n users" or, of a sample, "n of N users, a fixed random sample,"."""
    if n_evaluated == n_users:
        return f"{n_users:,} users"
    return f"{n_evaluated:,} of {n_users:,} users, a fixed random sample,"
