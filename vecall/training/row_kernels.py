"""Numba kernels of row-wise AdamW on a CPU: each reads and writes the state of a row once, while it is in the cache.

They compute what `RowTable` computes by tensor operations, which pass over the rows some thirty times. Rows are divided
between threads; they are distinct, so the result does not depend on the division.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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


@_jit
def merge_share(
    rows: NDArray[np.int64],
    counts: NDArray[np.int64],
    gradients: NDArray[np.float32],
    rank: int,
    block_rows: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Average the gradients of P processes, for the rows of one of them: each P-th block of the table.

    Args:
        rows: [P, R] distinct rows of each process, ascending.
        counts: [P] number of rows of each process.
        gradients: [P, R, D] gradients of the rows.
        rank: Process whose rows are averaged.
        block_rows: Rows of a block.

    Returns:
        [K] distinct rows, ascending, and [K, D] the sum of their gradients, in the order of the processes, divided by P.
    """
    n_processes, dim = len(counts), gradients.shape[2]
    own_counts = np.zeros(n_processes, dtype=np.int64)
    own_positions = np.empty((n_processes, counts.max()), dtype=np.int64)  # of the own rows, in each list
    for process in range(n_processes):
        for position in range(counts[process]):
            if rows[process, position] // block_rows % n_processes == rank:
                own_positions[process, own_counts[process]] = position
                own_counts[process] += 1
    heads = np.zeros(n_processes, dtype=np.int64)
    merged_rows = np.empty(own_counts.sum(), dtype=np.int64)
    merged = np.empty((own_counts.sum(), dim), dtype=np.float32)
    count = 0
    while True:
        row = np.int64(-1)
        for process in range(n_processes):
            if heads[process] < own_counts[process]:
                candidate = rows[process, own_positions[process, heads[process]]]
                row = candidate if row < 0 else min(row, candidate)
        if row < 0:
            return merged_rows[:count], merged[:count]
        merged_rows[count] = row
        merged[count] = 0.0
        for process in range(n_processes):
            if heads[process] < own_counts[process]:
                position = own_positions[process, heads[process]]
                if rows[process, position] == row:
                    for column in range(dim):
                        merged[count, column] += gradients[process, position, column]
                    heads[process] += 1
        for column in range(dim):
            merged[count, column] /= np.float32(n_processes)
        count += 1


def run_by_rows(kernel: Callable[..., None], row_arrays: tuple[NDArray[Any], ...], *arguments: Any) -> None:  # noqa: ANN401
    """Call a kernel with equal parts of the arrays [M, ...] of rows, on as many threads as torch uses.

    Args:
        kernel: Kernel.
        row_arrays: Its first arguments.
        arguments: Its further arguments.
    """
    n_threads = torch.get_num_threads()
    parts = list(zip(*(np.array_split(array, n_threads) for array in row_arrays), strict=True))
    futures = [_get_executor(n_threads).submit(kernel, *part, *arguments) for part in parts[1:]]
    kernel(*parts[0], *arguments)
    for future in futures:
        future.result()


@cache
def _get_executor(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="row-kernels")
