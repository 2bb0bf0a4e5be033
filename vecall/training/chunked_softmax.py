"""Cross-entropy over a whole catalogue without its [B, N] logits in memory.

Loss and gradient are computed in one pass over chunks of rows: the logits of a chunk become probabilities and are
multiplied back while they are in the cache. A step costs three matrix products and one exponential per logit. The
method is that of Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, ICLR 2025.
"""

from typing import Any

import torch
from torch import Tensor

_CHUNK_LOGITS_BY_DEVICE = {"cpu": 2**21}  # logits of a chunk; this many fit in the cache
_DEFAULT_CHUNK_LOGITS = 2**26


def chunked_cross_entropy(
    users: Tensor,
    items: Tensor,
    targets: Tensor,
    masked_items: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean over the rows of the cross-entropy of each row's target among all items, times its weight.

    Equals `losses.masked_cross_entropy` of the scores `users @ items.T` with -inf for the masked items.

    Args:
        users: [B, D] user vectors divided by the temperature.
        items: [N, D] item vectors.
        targets: [B] rows of the positives in `items`.
        masked_items: [B, L] rows of items to exclude from each row's softmax. Repetitions are allowed, and the target
            itself is never excluded, so that it may serve as padding.
        weights: [B] weights of the rows; None if all are 1.
        label_smoothing: Share of the target distribution that is spread evenly over all items not excluded.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(users, items, targets, masked_items, weights, label_smoothing)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - signature of torch
        users: Tensor,
        items: Tensor,
        targets: Tensor,
        masked_items: Tensor | None,
        weights: Tensor | None,
        label_smoothing: float,
    ) -> Tensor:
        """Return the loss, and save the gradients of users and items for `backward`."""
        grad_users, grad_items = torch.empty_like(users), torch.zeros_like(items)
        item_sum = items.sum(0)  # [D]
        weighted_users = users if weights is None else users * weights.unsqueeze(1)
        chunk_rows = max(1, _CHUNK_LOGITS_BY_DEVICE.get(users.device.type, _DEFAULT_CHUNK_LOGITS) // len(items))
        buffer = users.new_empty(min(chunk_rows, len(users)), len(items))  # reused: allocating memory anew is slow
        loss = users.new_zeros(())
        for start in range(0, len(users), chunk_rows):
            rows = slice(start, min(start + chunk_rows, len(users)))
            logits = torch.mm(users[rows], items.T, out=buffer[: rows.stop - start])  # [rows, N]
            chunk = _SoftmaxChunk(
                logits, targets[rows], None if masked_items is None else masked_items[rows], label_smoothing
            )
            chunk.compute(logit_sums=users[rows] @ item_sum)
            loss += chunk.losses.sum() if weights is None else chunk.losses @ weights[rows]
            # The gradient of the logits is unnormalized_grad / exp_sum - smoothing_per_item. The division is applied to
            # the products with [N, D] and [rows, D], which are smaller than [rows, N].
            smoothing = chunk.smoothing_per_item.expand_as(chunk.exp_sum)  # [rows, 1]
            torch.mm(chunk.unnormalized_grad, items, out=grad_users[rows])
            grad_users[rows].div_(chunk.exp_sum).addmm_(smoothing, item_sum.unsqueeze(0), alpha=-1)
            grad_items.addmm_(chunk.unnormalized_grad.T, weighted_users[rows] / chunk.exp_sum)
            grad_items -= (smoothing * weighted_users[rows]).sum(0)
        if weights is not None:
            grad_users.mul_(weights.unsqueeze(1))
        ctx.save_for_backward(grad_users.div_(len(users)), grad_items.div_(len(users)))
        return loss / len(users)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:  # noqa: ANN401 - signature of torch
        """Scale the gradients that `forward` saved."""
        grad_users, grad_items = ctx.saved_tensors
        return grad_outputs[0] * grad_users, grad_outputs[0] * grad_items, None, None, None, None


class _SoftmaxChunk:
    """Losses and gradients of some rows' logits.

    Args:
        logits: [rows, N]; overwritten.
        targets: [rows] columns of the positives.
        masked_items: [rows, L] columns to exclude, or None.
        label_smoothing: Share of the target distribution that is spread over all columns not excluded.

    Attributes:
        unnormalized_grad: [rows, N] `exp_sum` times the gradient of the logits, without the term of
            `smoothing_per_item`.
        exp_sum: [rows, 1] sum of exp(logit - highest logit) over the columns not excluded.
        smoothing_per_item: [rows, 1] or [1, 1] probability that smoothing assigns to a column. It is subtracted from
            every column; `unnormalized_grad` adds it again at excluded ones.
        losses: [rows].
    """

    unnormalized_grad: Tensor
    exp_sum: Tensor
    smoothing_per_item: Tensor
    losses: Tensor

    def __init__(self, logits: Tensor, targets: Tensor, masked_items: Tensor | None, label_smoothing: float) -> None:
        self._logits, self._label_smoothing = logits, label_smoothing
        self._targets = targets.unsqueeze(1)  # [rows, 1]
        self._masked_items = (
            self._targets if masked_items is None else _replace_duplicates(masked_items, self._targets)
        )  # [rows, L]

    def compute(self, logit_sums: Tensor) -> None:
        """Fill the attributes; `unnormalized_grad` takes the memory of the logits.

        Args:
            logit_sums: [rows] sum of all logits of a row.
        """
        logits, targets, masked = self._logits, self._targets, self._masked_items
        target_logits, masked_logits = logits.gather(1, targets), logits.gather(1, masked)
        logits.scatter_(1, masked, float("-inf")).scatter_(1, targets, target_logits)
        highest = logits.amax(1, keepdim=True)
        self.unnormalized_grad = logits.sub_(highest).exp_()
        self.exp_sum = self.unnormalized_grad.sum(1, keepdim=True)
        log_sum_exp = self.exp_sum.log() + highest
        self.losses = (log_sum_exp - target_logits).squeeze(1)
        if not self._label_smoothing:
            self.smoothing_per_item = self.exp_sum.new_zeros(1, 1)
            self._subtract_target()
            return
        is_masked = masked != targets  # [rows, L]; false for the target, which stands for padding
        n_valid = logits.shape[1] - is_masked.sum(1, keepdim=True)  # [rows, 1]
        self.smoothing_per_item = self._label_smoothing / n_valid
        valid_sum = logit_sums.unsqueeze(1) - (masked_logits * is_masked).sum(1, keepdim=True)
        self.losses += self._label_smoothing * (target_logits - valid_sum / n_valid).squeeze(1)
        # An excluded column has no gradient: what is subtracted from it is added here.
        self.unnormalized_grad.scatter_add_(1, masked, is_masked * (self.smoothing_per_item * self.exp_sum))
        self._subtract_target()

    def _subtract_target(self) -> None:
        self.unnormalized_grad.scatter_add_(1, self._targets, (self._label_smoothing - 1) * self.exp_sum)


def _replace_duplicates(masked_items: Tensor, targets: Tensor) -> Tensor:
    """Sort [rows, L] masked items and replace repetitions by the target [rows, 1], so that each is counted once."""
    ordered = masked_items.sort(1).values
    is_duplicate = torch.zeros_like(ordered, dtype=torch.bool)
    is_duplicate[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.where(is_duplicate, targets, ordered)
