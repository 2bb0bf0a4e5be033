"""Numba kernels of row-wise AdamW on a CPU: each reads and writes the state of a row once, while it is in the cache.

They compute what `RowTable` computes by tensor operations, which pass over the rows some thirty times. Rows are divided
between threads; they are distinct, so the result does not depend on the division.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vecall.runtime.kernel_threads import run_on_threads
from vecall.runtime.numba_cache import compile_cached

# Of numba: without it, a check for divisions by 0 keeps the loops from using vector instructions.
_jit = compile_cached(error_model="numpy")


@_jit
def read_rows(
    rows: NDArray[np.int64],
    vectors: NDArray[np.float32],
    weight: NDArray[np.float32],
    exp_avg: NDArray[np.float32],
    exp_avg_sq: NDArray[np.float32],
    last_steps: NDArray[np.int32],
    coefficients: NDArray[np.float64],
) -> None:
    """Write the up-to-date weights of rows to `vectors`.

    Args:
        rows: [M] distinct rows.
        vectors: [M, D] overwritten.
        weight: [R, D] weights as of each row's last update.
        exp_avg: [R, D] first moments; [0, D] without moments.
        exp_avg_sq: [R, D] second moments; not read without moments.
        last_steps: [R] index of each row in the coefficients.
        coefficients: [6, n] as of `IdleSteps`.
    """
    has_moments = exp_avg.shape[0] > 0
    dim = weight.shape[1]
    for index in range(len(rows)):
        row = rows[index]
        last = last_steps[row]
        shrink, tail = np.float32(coefficients[0, last]), np.float32(coefficients[1, last])
        eps = np.float32(coefficients[5, last])
        if has_moments and tail != 0.0:
            for column in range(dim):
                direction = exp_avg[row, column] / (np.sqrt(exp_avg_sq[row, column]) + eps)
                vectors[index, column] = shrink * weight[row, column] - tail * direction
        else:
            for column in range(dim):
                vectors[index, column] = shrink * weight[row, column]


@_jit
def update_rows(
    rows: NDArray[np.int64],
    gradients: NDArray[np.float32],
    weight: NDArray[np.float32],
    exp_avg: NDArray[np.float32],
    exp_avg_sq: NDArray[np.float32],
    average: NDArray[np.float32],
    last_steps: NDArray[np.int32],
    coefficients: NDArray[np.float64],
    moment_decays: NDArray[np.float32],
    count: int,
    step: NDArray[np.float32],
) -> None:
    """Bring rows up to date, then update them by their gradients, in place; with both moments.

    Args:
        rows: [M] distinct rows.
        gradients: [M, D].
        weight: [R, D] weights.
        exp_avg: [R, D] first moments.
        exp_avg_sq: [R, D] second moments.
        average: [R, D] moving average of the weights; [0, D] without one.
        last_steps: [R] index of each row in the coefficients.
        coefficients: [6, n] as of `IdleSteps`.
        moment_decays: [2, n] powers of both betas.
        count: Index in the coefficients of rows that are up to date.
        step: [8] 1 - beta1, beta2, 1 - beta2, 1 - learning rate x weight decay, learning rate / first bias correction,
            1 / root of the second bias correction, epsilon, 1 - decay of the average.
    """
    has_average = average.shape[0] > 0
    rate1, beta2, rate2, decay, size, root_scale, adam_eps, average_rate = step
    for index in range(len(rows)):
        row = rows[index]
        last = last_steps[row]
        shrink, tail = np.float32(coefficients[0, last]), np.float32(coefficients[1, last])
        eps = np.float32(coefficients[5, last])
        beta1_power, beta2_power = moment_decays[0, count - last], moment_decays[1, count - last]
        if has_average:
            kept, weight_share = np.float32(coefficients[2, last]), np.float32(coefficients[3, last])
            tail_share = np.float32(coefficients[4, last])
            for column in range(weight.shape[1]):
                direction = exp_avg[row, column] / (np.sqrt(exp_avg_sq[row, column]) + eps)
                average[row, column] = (
                    kept * average[row, column] + weight_share * weight[row, column] - tail_share * direction
                )
        if tail != 0.0:
            for column in range(weight.shape[1]):
                direction = exp_avg[row, column] / (np.sqrt(exp_avg_sq[row, column]) + eps)
                weight[row, column] = shrink * weight[row, column] - tail * direction
        for column in range(weight.shape[1]):
            gradient = gradients[index, column]
            first = beta1_power * exp_avg[row, column]
            first += rate1 * (gradient - first)
            second = beta2 * beta2_power * exp_avg_sq[row, column] + rate2 * gradient * gradient
            exp_avg[row, column] = first
            exp_avg_sq[row, column] = second
            weight[row, column] = decay * weight[row, column] - size * first / (np.sqrt(second) * root_scale + adam_eps)
        if has_average:
            for column in range(weight.shape[1]):
                average[row, column] += average_rate * (weight[row, column] - average[row, column])


def run_by_rows(kernel: Callable[..., None], row_arrays: tuple[NDArray[Any], ...], *arguments: Any) -> None:  # noqa: ANN401
    """Call a kernel with equal parts of the arrays [M, ...] of rows, on as many threads as torch uses.

    Args:
        kernel: Kernel.
        row_arrays: Its first arguments.
        arguments: Its further arguments.
    """
    parts = zip(*(np.array_split(array, torch.get_num_threads()) for array in row_arrays), strict=True)
    run_on_threads(kernel, [(*part, *arguments) for part in parts])
