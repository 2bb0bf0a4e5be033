"""The evaluation as a formula: all scores of all users in memory. The oracle of the evaluation by blocks."""

import math

import numpy as np

from vecall.data.ragged import RaggedArray
from vecall.errors import DataError, TrainingError
from vecall.evaluation.evaluator import RANDOM_ITEMS_PER_USER, SAMPLE_TOP_K, TOP_LIST_K
from vecall.evaluation.metrics import coverage_at_k, ndcg_at_k, recall_at_k


def to_blocks(score):
    """Turn a function of cases that returns [B, N] scores into a scorer of blocks of items."""

    def score_blocks(cases):
        scores = score(cases)
        return lambda start, stop: scores[:, start:stop]

    return score_blocks


def to_dense(scorer, cases, n_items):
    """Return the [B, N] scores of a scorer of blocks."""
    return scorer(cases)(0, n_items)


def rank_targets(scores, targets, seen):
    """[targets] number of other unseen items that score at least as high; `seen` None ranks all."""
    if np.isnan(scores).any():
        raise TrainingError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN")
    ranked = mask_seen(scores, seen)
    owners = targets.segment_ids
    target_scores = ranked[owners, targets.values]
    if np.isnan(target_scores).any():
        raise DataError("a target is seen")
    counts = (np.count_nonzero(ranked[user] >= score) for user, score in zip(owners, target_scores, strict=True))
    return np.fromiter(counts, dtype=np.int64, count=len(target_scores)) - 1


def mask_seen(scores, seen):
    """The scores with NaN, which compares as false, at the items that each user has seen."""
    if seen is None:
        return scores
    ranked = scores.copy()
    ranked[seen.segment_ids, seen.values] = np.nan
    return ranked


def select_top_rows(scores, seen, k):
    """[B, k] best unseen rows: score descending, then row ascending; -1 after the last."""
    negated = -mask_seen(scores, seen)
    top_rows = np.full((len(negated), k), -1, dtype=np.int64)
    for user, values in enumerate(negated):
        best = np.argsort(values, kind="stable")[:k]
        best = best[~np.isnan(values[best])]
        top_rows[user, : len(best)] = best
    return top_rows


def evaluate_densely(score, cases, n_items, ks, *, max_sample_users=500, seed=0):
    """Metrics with seen items excluded and included, and the sample of users, as `evaluate_scorer` returns them."""
    scores, seen = score(cases), cases.histories
    pairs = seen.segment_ids * n_items + seen.values
    owners = cases.targets.segment_ids
    is_new = ~np.isin(owners * n_items + cases.targets.values, pairs)
    new_targets = RaggedArray.from_sorted_pairs(owners[is_new], cases.targets.values[is_new], len(cases))
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.choice(len(cases), size=min(max_sample_users, len(cases)), replace=False))
    users = np.repeat(sampled, RANDOM_ITEMS_PER_USER)
    drawn = rng.integers(n_items, size=len(users))
    known = np.concatenate([pairs, owners * n_items + cases.targets.values])
    is_negative = ~np.isin(users * n_items + drawn, known)
    is_sampled = np.isin(new_targets.segment_ids, sampled)
    sample = (
        sampled,
        select_top_rows(scores[sampled], seen.take(sampled), SAMPLE_TOP_K),
        scores[new_targets.segment_ids[is_sampled], new_targets.values[is_sampled]],
        scores[users[is_negative], drawn[is_negative]],
    )
    return (
        _compute_metrics(scores, new_targets, seen, ks),
        _compute_metrics(scores, cases.targets, None, ks),
        sample,
    )


def _compute_metrics(scores, targets, seen, ks):
    ranks = rank_targets(scores, targets, seen)
    metrics = {f"recall@{k}": recall_at_k(ranks, targets.offsets, k) if len(ranks) else math.nan for k in ks}
    metrics[f"ndcg@{TOP_LIST_K}"] = ndcg_at_k(ranks, targets.offsets, TOP_LIST_K) if len(ranks) else math.nan
    top_rows = select_top_rows(scores, seen, TOP_LIST_K)
    metrics[f"coverage@{TOP_LIST_K}"] = coverage_at_k(top_rows, scores.shape[1], TOP_LIST_K)
    return metrics
