"""Losses as functions of scores alone. Larger scores are better; each returns the mean over its rows."""

import torch
from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy on (user, item, label): [n] scores (as logits) and [n] labels in 0 .. 1."""
    return F.binary_cross_entropy_with_logits(scores, labels)


def masked_cross_entropy(scores: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the whole catalogue.

    Args:
        scores: [B, N]; -inf for an item that is out of the race.
        targets: [B] rows of the positives.
        label_smoothing: share of the target that is spread over all items in the race.
    """
    if label_smoothing == 0:
        return F.cross_entropy(scores, targets)
    return _smoothed_cross_entropy(scores, targets, label_smoothing)


def sampled_softmax_loss(
    positive_scores: Tensor,
    candidate_scores: Tensor,
    log_q: Tensor,
    ignore_mask: Tensor,
    *,
    positive_log_q: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of the positive against sampled candidates, corrected for how they were sampled.

    log Q is subtracted from a candidate's score: what is drawn often must not be punished for it (Bengio &
    Senécal 2008; Yi et al., RecSys 2019). The positive stands in the list with certainty, not with its Q, so by
    default it is not corrected (Khrylchenko et al., RecSys 2025, arXiv 2507.09331).

    Args:
        positive_scores: [B] scores of the positives.
        candidate_scores: [B, C] scores of the sampled items.
        log_q: [C] log of how often each was expected in the list.
        ignore_mask: [B, C] true where a candidate is no negative of the row, its own positive by accident: left out.
        positive_log_q: [B] log Q of the positives, for the usual form that corrects them too.
        label_smoothing: share of the target that is spread over all.
    """
    corrected = (candidate_scores - log_q).masked_fill(ignore_mask, float("-inf"))
    first = positive_scores if positive_log_q is None else positive_scores - positive_log_q
    logits = torch.cat([first.unsqueeze(1), corrected], dim=1)  # [B, 1 + C]
    return masked_cross_entropy(
        logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device), label_smoothing=label_smoothing
    )


def _smoothed_cross_entropy(scores: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """As `F.cross_entropy` with label smoothing, but over the finite scores of each row."""
    losses = torch.log_softmax(scores, dim=1)
    counted = torch.isfinite(scores)
    spread = losses.masked_fill(~counted, 0.0).sum(1) / counted.sum(1)
    return -(
        (1 - label_smoothing) * losses.gather(1, targets.unsqueeze(1)).squeeze(1) + label_smoothing * spread
    ).mean()
