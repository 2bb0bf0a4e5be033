"""Losses as functions of scores. Larger scores are better.

Each loss is the mean over its rows, of weight times loss where rows have weights.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vecall.errors import TrainingError


def binary_cross_entropy(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy of labeled (user, item) pairs.

    Args:
        scores: [n] logits.
        labels: [n] labels in [0, 1].
        weights: [n] weights of the pairs; None if all are 1.
    """
    return F.binary_cross_entropy_with_logits(scores, labels, weights)


def masked_cross_entropy(
    scores: Tensor, targets: Tensor, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropy of each row's target among the items with finite scores.

    Args:
        scores: [B, N]; -inf for an excluded item.
        targets: [B] columns of the positives.
        weights: [B] weights of the rows; None if all are 1.
        label_smoothing: Share of the target distribution that is spread evenly over all items not excluded.
    """
    if label_smoothing == 0 and weights is None:
        return F.cross_entropy(scores, targets)
    losses = (
        _smoothed_cross_entropy(scores, targets, label_smoothing)
        if label_smoothing
        else F.cross_entropy(scores, targets, reduction="none")
    )
    return (losses if weights is None else losses * weights).mean()


def sampled_softmax_loss(
    positive_scores: Tensor,
    candidate_scores: Tensor,
    log_expected_counts: Tensor,
    ignore_mask: Tensor,
    weights: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the cross-entropy of each positive among sampled candidates, with the logQ correction.

    log Q is subtracted from a candidate's score, or frequently sampled items would be penalized for being sampled
    (Bengio & Senécal 2008; Yi et al., RecSys 2019). The positive is in the list with certainty, not with probability Q,
    so it is not corrected (Khrylchenko et al., RecSys 2025, arXiv 2507.09331).

    Args:
        positive_scores: [B] scores of the positives.
        candidate_scores: [B, C] scores of the candidates.
        log_expected_counts: [C] log of the expected number Q of times that each candidate is in the list.
        ignore_mask: [B, C] bool, true where a candidate is no negative of the row, such as the row's own positive.
        weights: [B] weights of the positives; None if all are 1.
        label_smoothing: Share of the target distribution that is spread evenly over all items not ignored.
    """
    corrected_scores = (candidate_scores - log_expected_counts).masked_fill(ignore_mask, float("-inf"))
    logits = torch.cat([positive_scores.unsqueeze(1), corrected_scores], dim=1)  # [B, 1 + C]
    targets = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return masked_cross_entropy(logits, targets, weights, label_smoothing=label_smoothing)


def multi_target_cross_entropy(
    scores: Tensor, own_scores: Tensor, owners: Tensor, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean over P targets of weight times cross-entropy, where B users have a softmax each.

    The softmax of a user is over the user's row of scores and over the user's own targets.

    Args:
        scores: [B, C] scores of other items; -inf for an excluded item, such as a target of the user.
        own_scores: [P] scores of the targets.
        owners: [P] user in 0 .. B - 1 of each target, ascending.
        weights: [P] weights of the targets; None if all are 1.
        label_smoothing: Share of the target distribution that is spread evenly over all items not excluded.
    """
    highest = scores.detach().amax(1).scatter_reduce(0, owners, own_scores.detach(), "amax")  # [B]
    exp_sum = (scores - highest.unsqueeze(1)).exp().sum(1)
    exp_sum = exp_sum.index_add(0, owners, (own_scores - highest[owners]).exp())
    log_sum_exp = exp_sum.log() + highest  # [B]
    losses = log_sum_exp[owners] - (1 - label_smoothing) * own_scores  # [P]
    if label_smoothing:
        is_valid = torch.isfinite(scores)
        counts = is_valid.sum(1).index_add(0, owners, torch.ones_like(owners))
        sums = scores.masked_fill(~is_valid, 0.0).sum(1).index_add(0, owners, own_scores)
        losses = losses - label_smoothing * (sums / counts)[owners]
    return (losses if weights is None else losses * weights).mean()


def _smoothed_cross_entropy(scores: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Return the [B] losses of `F.cross_entropy` with label smoothing over the finite scores of each row only."""
    log_probs = torch.log_softmax(scores, dim=1)
    is_valid = torch.isfinite(scores)
    mean_log_probs = log_probs.masked_fill(~is_valid, 0.0).sum(1) / is_valid.sum(1)  # [B]
    target_log_probs = log_probs.gather(1, targets.unsqueeze(1)).squeeze(1)  # [B]
    return -((1 - label_smoothing) * target_log_probs + label_smoothing * mean_log_probs)


def check_finite(loss: float, epoch: int) -> None:
    """Stop a training whose loss has overflowed; `epoch` counts from 0, the error text from 1.

    Raises:
        TrainingError: The loss is infinite or not a number.
    """
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} in epoch {epoch + 1}; lower training.lr or raise training.temperature"
        )
