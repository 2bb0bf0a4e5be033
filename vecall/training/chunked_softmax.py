"""The softmax over a whole catalogue without its logits in memory: loss and gradient in one walk over the rows.

The logits of some rows at a time are made, turned into probabilities and multiplied back while they lie in the cache.
A step so costs three matrix products and one exponential per logit, and [B, N] is never held (as Wijmans et al., Cut
Your Losses in Large-Vocabulary Language Models, ICLR 2025, do for language models).
"""

from typing import Any

import torch
from torch import Tensor

_CHUNK_LOGITS_BY_DEVICE = {"cpu": 2**21}  # so many lie in the cache
_DEFAULT_CHUNK_LOGITS = 2**26


def chunked_cross_entropy(
    users: Tensor, items: Tensor, targets: Tensor, masked_items: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of each row's target against all items, as `losses.masked_cross_entropy` of `users @ items.T`.

    Args:
        users: [B, D], divided by the temperature.
        items: [N, D].
        targets: [B] rows of the positives.
        masked_items: [B, L] rows of items that are out of a row's race; an item may stand more than once. The target stays
            in the race even where it is among them, so it can be the padding.
        label_smoothing: share of the target that is spread over all items in the race.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(users, items, targets, masked_items, label_smoothing)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's
        users: Tensor,
        items: Tensor,
        targets: Tensor,
        masked_items: Tensor | None,
        label_smoothing: float,
    ) -> Tensor:
        """The loss; both gradients are kept for `backward`."""
        of_users, of_items = torch.empty_like(users), torch.zeros_like(items)
        sum_of_items = items.sum(0)
        at_once = max(1, _CHUNK_LOGITS_BY_DEVICE.get(users.device.type, _DEFAULT_CHUNK_LOGITS) // len(items))
        buffer = users.new_empty(min(at_once, len(users)), len(items))  # memory that is asked for anew is slow
        loss = users.new_zeros(())
        for start in range(0, len(users), at_once):
            part = slice(start, min(start + at_once, len(users)))
            logits = torch.mm(users[part], items.T, out=buffer[: part.stop - start])  # [rows, N]
            race = _SoftmaxChunk(
                logits, targets[part], None if masked_items is None else masked_items[part], label_smoothing
            )
            race.compute(logit_sums=users[part] @ sum_of_items)
            loss += race.losses.sum()
            # The gradient by the logits is `weights / total - share`; dividing what is narrow is less work.
            shares = race.smoothing_per_item.expand_as(race.exp_sum)
            torch.mm(race.unnormalized_grad, items, out=of_users[part])
            of_users[part].div_(race.exp_sum).addmm_(shares, sum_of_items.unsqueeze(0), alpha=-1)
            of_items.addmm_(race.unnormalized_grad.T, users[part] / race.exp_sum)
            of_items -= (shares * users[part]).sum(0)
        ctx.save_for_backward(of_users.div_(len(users)), of_items.div_(len(users)))
        return loss / len(users)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # noqa: ANN401 - torch's
        """The gradients that `forward` left."""
        of_users, of_items = ctx.saved_tensors
        return grad_outputs[0] * of_users, grad_outputs[0] * of_items, None, None, None


class _SoftmaxChunk:
    """Some rows' items against each other.

    Attributes:
        unnormalized_grad: [rows, N] `total` times what the gradient by the logits is, `share` left out.
        exp_sum: [rows, 1] sum of the exponentials of the logits in the race.
        smoothing_per_item: [rows, 1] or [1, 1] of the target that smoothing gives to each item, of those out of the race too.
        losses: [rows].
    """

    unnormalized_grad: Tensor
    exp_sum: Tensor
    smoothing_per_item: Tensor
    losses: Tensor

    def __init__(self, logits: Tensor, targets: Tensor, masked_items: Tensor | None, label_smoothing: float) -> None:
        self._logits, self._targets, self._label_smoothing = (
            logits,
            targets.unsqueeze(1),
            label_smoothing,
        )  # [rows, N], [rows, 1]
        self._masked_items = (
            self._targets if masked_items is None else _replace_duplicates(masked_items, self._targets)
        )  # [rows, L]

    def compute(self, logit_sums: Tensor) -> None:
        """Fill the attributes; the weights stand where the logits stood.

        Args:
            logit_sums: [rows] of all logits.
        """
        logits, target, out = self._logits, self._targets, self._masked_items
        of_target, of_out = logits.gather(1, target), logits.gather(1, out)
        logits.scatter_(1, out, float("-inf")).scatter_(1, target, of_target)
        highest = logits.amax(1, keepdim=True)
        self.unnormalized_grad = logits.sub_(highest).exp_()
        self.exp_sum = self.unnormalized_grad.sum(1, keepdim=True)
        log_total = self.exp_sum.log() + highest
        self.losses = (log_total - of_target).squeeze(1)
        if not self._label_smoothing:
            self.smoothing_per_item = self.exp_sum.new_zeros(1, 1)
            self._subtract_target()
            return
        is_out = out != target
        runners = logits.shape[1] - is_out.sum(1, keepdim=True)
        self.smoothing_per_item = self._label_smoothing / runners
        of_race = logit_sums.unsqueeze(1) - (of_out * is_out).sum(1, keepdim=True)
        self.losses += self._label_smoothing * (of_target - of_race / runners).squeeze(1)
        in_total = self.smoothing_per_item * self.exp_sum
        self.unnormalized_grad.scatter_add_(
            1, out, is_out * in_total
        )  # what is out has no gradient; its share is taken off
        self._subtract_target()

    def _subtract_target(self) -> None:
        self.unnormalized_grad.scatter_add_(1, self._targets, (self._label_smoothing - 1) * self.exp_sum)


def _replace_duplicates(masked_items: Tensor, target: Tensor) -> Tensor:
    """[rows, L] known items, with the target [rows, 1] in the place of itself and of each repetition."""
    in_order = masked_items.sort(1).values
    repeats = torch.zeros_like(in_order, dtype=torch.bool)
    repeats[:, 1:] = in_order[:, 1:] == in_order[:, :-1]
    return torch.where(repeats, target, in_order)
