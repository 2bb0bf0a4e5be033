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
        at_once = max(1, _LOGITS_AT_ONCE.get(users.device.type, _LOGITS_ELSEWHERE) // len(items))
        buffer = users.new_empty(min(at_once, len(users)), len(items))  # memory that is asked for anew is slow
        loss = users.new_zeros(())
        for start in range(0, len(users), at_once):
            part = slice(start, min(start + at_once, len(users)))
            logits = torch.mm(users[part], items.T, out=buffer[: part.stop - start])  # [rows, N]
            race = _Race(logits, targets[part], None if known is None else known[part])
            loss += race.loss_then_gradient(smoothing)
            torch.mm(logits, items, out=of_users[part])
            of_items.addmm_(logits.T, users[part])
        ctx.save_for_backward(of_users.div_(len(users)), of_items.div_(len(users)))
        return loss / len(users)

    @staticmethod
    def backward(ctx: Any, *of_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # noqa: ANN401 - torch's
        """The gradients that `forward` left."""
        of_users, of_items = ctx.saved_tensors
        return of_loss[0] * of_users, of_loss[0] * of_items, None, None, None


class _Race:
    """[rows, N] logits that are overwritten step by step: log-probabilities, probabilities, the gradient."""

    def __init__(self, logits: Tensor, targets: Tensor, known: Tensor | None) -> None:
        self._values, self._target, self._known = logits, targets.unsqueeze(1), known  # [rows, N], [rows, 1]

    def loss_then_gradient(self, smoothing: float) -> Tensor:
        """The loss, summed over rows; its gradient by the logits stands in their place afterwards."""
        values, target = self._values, self._target
        self._set_known(float("-inf"))
        torch.log_softmax(values, 1, out=values)
        loss = (smoothing - 1) * values.gather(1, target).sum()
        share = smoothing / self._runners() if smoothing else None
        if share is not None:
            self._set_known(0.0)
            loss -= (values.sum(1, keepdim=True) * share).sum()
            self._set_known(float("-inf"))
        values.exp_()
        if share is not None:
            values -= share
            self._set_known(0.0)
        values.scatter_add_(1, target, torch.full_like(target, smoothing - 1, dtype=values.dtype))
        return loss

    def _set_known(self, value: float) -> None:
        """Of known items that are not the target."""
        if self._known is not None:
            of_target = self._values.gather(1, self._target)
            self._values.scatter_(1, self._known, value).scatter_(1, self._target, of_target)

    def _runners(self) -> Tensor:
        """[rows, 1] how many items are in the race."""
        n_items = self._values.shape[1]
        if self._known is None:
            return torch.full_like(self._target, n_items, dtype=self._values.dtype)
        in_order = torch.cat([self._known, self._target], dim=1).sort(1).values
        repeats = (in_order[:, 1:] == in_order[:, :-1]).sum(1, keepdim=True)
        return (n_items - (self._known.shape[1] - repeats)).to(self._values.dtype)
