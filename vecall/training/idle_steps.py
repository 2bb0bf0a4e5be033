"""Effect of AdamW on rows that have no gradient, in closed form, so that such rows are updated only when they are read.

A step without a gradient still changes a row: weight decay shrinks it, and the momentum of earlier gradients moves it
on. With idle steps s + 1 ... t after step s, AdamW (Loshchilov & Hutter, ICLR 2019) gives

    m_t = beta1^(t-s) m_s,    v_t = beta2^(t-s) v_s,    w_t = shrink w_s - tail m_s / (sqrt(v_s) + eps'),

where `shrink` is the product of (1 - lr_i weight_decay), and `tail` the sum of the steps' learning rates and bias
corrections, each times (beta1 / sqrt(beta2))^(i-s) and the decay after it. Both depend on s and t alone, not on the
row; so does eps', which is AdamW's epsilon times the bias correction of step s + 1 (of each step, to be exact). The
moving average of the weights is linear in them, so it has the same form.
"""

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # the defaults of AdamW
_RATIO = BETA1 / BETA2**0.5
_TAIL_STEPS = 256  # after so many steps the momentum has shrunk below 1e-11
_INITIAL_CAPACITY = 1024


def bias_corrections(step: int) -> tuple[float, float]:
    """Return the bias corrections 1 - beta1^step and sqrt(1 - beta2^step); steps count from 1."""
    return 1 - BETA1**step, float((1 - BETA2**step) ** 0.5)


class IdleSteps:
    """Coefficients of the rows that were last updated 0, 1, ... steps after the last `reset`, as of the present step.

    Args:
        device: Device of the coefficients.

    Attributes:
        count: n, number of steps since the reset.
        moment_decays: [2, more than n] powers 0, 1, ... of both betas.
    """

    def __init__(self, device: torch.device) -> None:
        self._table = torch.zeros(6, _INITIAL_CAPACITY, dtype=torch.float64, device=device)
        self.moment_decays = _compute_moment_decays(_INITIAL_CAPACITY).to(device)
        self._ratio_powers = _RATIO ** torch.arange(_TAIL_STEPS, 0, -1, dtype=torch.float64, device=device)
        self.reset(0)

    def reset(self, step: int) -> None:
        """Start again after a step: all rows are up to date."""
        self.count = 0
        self._start_entry(step)

    def _start_entry(self, step: int) -> None:
        """Fill the entry of the rows that are up to date after a step."""
        eps = EPS * bias_corrections(step + 1)[1]
        self._table[:, self.count] = self._table.new_tensor([1.0, 0.0, 1.0, 0.0, 0.0, eps])

    def append(self, lr: float, weight_decay: float, step: int, ema_decay: float) -> None:
        """Add a step: idle for all rows but those that are updated in it.

        Args:
            lr: Learning rate of the step.
            weight_decay: Weight decay.
            step: Number of the step since the start of training, from 1.
            ema_decay: Decay of the moving average in this step.
        """
        if self.count + 2 > self._table.shape[1]:
            self._table = torch.cat([self._table, torch.zeros_like(self._table)], dim=1)
            self.moment_decays = _compute_moment_decays(self._table.shape[1]).to(self._table.device)
        shrink, tail, kept, weight_share, tail_share, _ = self._table[:, : self.count + 1]
        correction1, root_correction2 = bias_corrections(step)
        self._table[:2, : self.count + 1] *= 1 - lr * weight_decay
        recent = tail[-_TAIL_STEPS:]
        recent += lr * root_correction2 / correction1 * self._ratio_powers[_TAIL_STEPS - len(recent) :]
        kept *= ema_decay
        weight_share.mul_(ema_decay).add_(shrink, alpha=1 - ema_decay)
        tail_share.mul_(ema_decay).add_(tail, alpha=1 - ema_decay)
        self.count += 1
        self._start_entry(step)

    @property
    def coefficients(self) -> Tensor:
        """[6, more than n] float64 coefficients, in the order of `look_up`."""
        return self._table

    def look_up(self, last_steps: Tensor) -> Tensor:
        """Return the coefficients of [M] rows by the step of their last update since the reset → float32 [6, M, 1].

        In order: `shrink` and `tail` of the weights; what the average keeps of itself, and its shares of the weights
        and of the tail; `eps'`.
        """
        return self._table.index_select(1, last_steps).to(torch.float32).unsqueeze(-1)

    def decay_moments(self, last_steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return beta1 and beta2 to the number of idle steps of [M] rows → float32 [M, 1] each; tiny ones are 0."""
        beta1_powers, beta2_powers = self.moment_decays.index_select(1, self.count - last_steps).unsqueeze(-1)
        return beta1_powers, beta2_powers


def _compute_moment_decays(count: int) -> Tensor:
    """Return the powers 0 to count - 1 of both betas → float32 [2, count]; 0 below 1e-30, as tiny factors are slow."""
    betas = torch.tensor([[BETA1], [BETA2]], dtype=torch.float64)
    powers = betas ** torch.arange(count, dtype=torch.float64)
    return torch.where(powers < 1e-30, 0.0, powers).to(torch.float32)
