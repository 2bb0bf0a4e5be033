"""The softmax over a whole catalogue without its logits in memory: loss and gradient in one walk over the rows.

The logits of some rows at a time are made, turned into probabilities and multiplied back while they lie in the cache.
A step so costs three matrix products and one exponential per logit, and [B, N] is never held (as Wijmans et al., Cut
Your Losses in Large-Vocabulary Language Models, ICLR 2025, do for language models).
"""

from typing import Any

import torch
from torch import Tensor

_LOGITS_AT_ONCE = {"cpu": 2**21}  # so many lie in the cache
_LOGITS_ELSEWHERE = 2**26


def catalogue_softmax(
    users: Tensor, items: Tensor, targets: Tensor, known: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of each row's target against all items, as `losses.full_softmax` of `users @ items.T`.

    Args:
        users: [B, D], divided by the temperature.
        items: [N, D].
        targets: [B] rows of the positives.
        known: [B, L] rows of items that are out of a row's race; an item may stand more than once. The target stays
            in the race even where it is among them, so it can be the padding.
        label_smoothing: share of the target that is spread over all items in the race.
    """
    loss: Tensor = _CatalogueSoftmax.apply(users, items, targets, known, label_smoothing)  # type: ignore[no-untyped-call]
    return loss


class _CatalogueSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's
        users: Tensor,
        items: Tensor,
        targets: Tensor,
        known: Tensor | None,
        smoothing: float,
    ) -> Tensor:
        """The loss; both gradients are kept for `backward`."""
        of_users, of_items = torch.empty_like(users), torch.zeros_like(items)
        sum_of_items = items.sum(0)
        at_once = max(1, _LOGITS_AT_ONCE.get(users.device.type, _LOGITS_ELSEWHERE) // len(items))
        buffer = users.new_empty(min(at_once, len(users)), len(items))  # memory that is asked for anew is slow
        loss = users.new_zeros(())
        for start in range(0, len(users), at_once):
            part = slice(start, min(start + at_once, len(users)))
            logits = torch.mm(users[part], items.T, out=buffer[: part.stop - start])  # [rows, N]
            race = _Race(logits, targets[part], None if known is None else known[part], smoothing)
            race.weigh(sums=users[part] @ sum_of_items)
            loss += race.losses.sum()
            # The gradient by the logits is `weights / total - share`; dividing what is narrow is less work.
            shares = race.share.expand_as(race.total)
            torch.mm(race.weights, items, out=of_users[part])
            of_users[part].div_(race.total).addmm_(shares, sum_of_items.unsqueeze(0), alpha=-1)
            of_items.addmm_(race.weights.T, users[part] / race.total)
            of_items -= (shares * users[part]).sum(0)
        ctx.save_for_backward(of_users.div_(len(users)), of_items.div_(len(users)))
        return loss / len(users)

    @staticmethod
    def backward(ctx: Any, *of_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # noqa: ANN401 - torch's
        """The gradients that `forward` left."""
        of_users, of_items = ctx.saved_tensors
        return of_loss[0] * of_users, of_loss[0] * of_items, None, None, None


class _Race:
    """Some rows' items against each other.

    Attributes:
        weights: [rows, N] `total` times what the gradient by the logits is, `share` left out.
        total: [rows, 1] sum of the exponentials of the logits in the race.
        share: [rows, 1] or [1, 1] of the target that smoothing gives to each item, of those out of the race too.
        losses: [rows].
    """

    weights: Tensor
    total: Tensor
    share: Tensor
    losses: Tensor

    def __init__(self, logits: Tensor, targets: Tensor, known: Tensor | None, smoothing: float) -> None:
        self._logits, self._target, self._smoothing = logits, targets.unsqueeze(1), smoothing  # [rows, N], [rows, 1]
        self._out = self._target if known is None else _distinct_but(known, self._target)  # [rows, L]

    def weigh(self, sums: Tensor) -> None:
        """Fill the attributes; the weights stand where the logits stood.

        Args:
            sums: [rows] of all logits.
        """
        logits, target, out = self._logits, self._target, self._out
        of_target, of_out = logits.gather(1, target), logits.gather(1, out)
        logits.scatter_(1, out, float("-inf")).scatter_(1, target, of_target)
        highest = logits.amax(1, keepdim=True)
        self.weights = logits.sub_(highest).exp_()
        self.total = self.weights.sum(1, keepdim=True)
        log_total = self.total.log() + highest
        self.losses = (log_total - of_target).squeeze(1)
        if not self._smoothing:
            self.share = self.total.new_zeros(1, 1)
            self._point_at_target()
            return
        is_out = out != target
        runners = logits.shape[1] - is_out.sum(1, keepdim=True)
        self.share = self._smoothing / runners
        of_race = sums.unsqueeze(1) - (of_out * is_out).sum(1, keepdim=True)
        self.losses += self._smoothing * (of_target - of_race / runners).squeeze(1)
        in_total = self.share * self.total
        self.weights.scatter_add_(1, out, is_out * in_total)  # what is out has no gradient; its share is taken off
        self._point_at_target()

    def _point_at_target(self) -> None:
        self.weights.scatter_add_(1, self._target, (self._smoothing - 1) * self.total)


def _distinct_but(known: Tensor, target: Tensor) -> Tensor:
    """[rows, L] known items, with the target [rows, 1] in the place of itself and of each repetition."""
    in_order = known.sort(1).values
    repeats = torch.zeros_like(in_order, dtype=torch.bool)
    repeats[:, 1:] = in_order[:, 1:] == in_order[:, :-1]
    return torch.where(repeats, target, in_order)
