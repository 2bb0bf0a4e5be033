"""Training by several processes: the collectives that keep their models equal.

Each process computes the gradients of its part of a batch. They are averaged here, so that all processes make the same
update. Gloo connects the processes on CPUs, NCCL on GPUs; Lightning knows nothing of it. Processes of one machine hold
tables in memory that they have in common.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed
from torch.nn.functional import pad

from vecall.errors import TrainingError
from vecall.runtime.process_rank import ProcessRank
from vecall.runtime.shared_memory import create_shared_file
from vecall.towers.distinct_rows import find_distinct_rows

# Longest wait for a process that is alive but busy, such as the first one with baselines, channels and a ranker. The
# end of a process is noticed at once: its connections break, and the launcher ends the others.
_TIMEOUT = timedelta(hours=6)

_Value = TypeVar("_Value")


class LostProcessError(TrainingError):
    """Another process of the training has ended or does not answer."""


class ProcessGroup:
    """Processes that train one model together. Each method is called by all of them, in the same order.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes.
        is_local: Whether all of them are on this machine.

    Attributes:
        shares_memory: Whether `allocate_shared` can be used: on CPUs of one machine, where the system allows it.
    """

    def __init__(self, rank: int, size: int, *, is_local: bool = False) -> None:
        self.rank, self.size = rank, size
        self.shares_memory = is_local and not torch.cuda.is_available() and self._try_sharing()

    def _try_sharing(self) -> bool:
        try:
            self.allocate_shared((1,), torch.int64)
        except TrainingError:
            return False
        return True

    def allocate_shared(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Allocate zeros in memory that all processes of the group read and write.

        They are freed when no process has them any more. Only pages that are written to take memory.

        Args:
            shape: Shape, without dimensions of length 0.
            dtype: Type of the numbers.

        Raises:
            TrainingError: Some process cannot have the memory; then none has.
        """
        buffer, problem = None, ""
        with ExitStack() as stack:
            file = None
            if self.rank == 0:
                try:
                    file = stack.enter_context(create_shared_file(dtype.itemsize * math.prod(shape)))
                except OSError as error:
                    problem = str(error)
            file = self.broadcast_object(file)
            if file is not None:
                try:
                    buffer = file.map()
                except OSError as error:
                    problem = str(error)
            problems = list(filter(None, self.gather_objects(problem)))  # also a barrier: all have opened the file
        if buffer is None or problems:
            raise TrainingError(
                f"the processes of this training cannot share memory ({'; '.join(problems)}); start them as the same "
                "user in one container"
            )
        return torch.frombuffer(buffer, dtype=dtype).view(shape)

    def merge_rows(self, rows: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Average the gradients of rows of an embedding table over the processes.

        The result has the same bits on all processes: each adds the gradients up in the order of the ranks.

        Args:
            rows: [M] distinct int64 rows; M may differ between processes and may be 0.
            gradients: [M, D] gradient of each row.

        Returns:
            [K] distinct rows of all processes, ascending, and [K, D] the sum of their gradients divided by `size`.
        """
        counts = [int(count) for count in self._all_gather(rows.new_tensor([len(rows)]))]
        padding = max(counts) - len(rows)
        rows_by_rank = self._all_gather(pad(rows, (0, padding)))
        gradients_by_rank = self._all_gather(pad(gradients, (0, 0, 0, padding)))
        gathered = torch.cat([part[:count] for part, count in zip(rows_by_rank, counts, strict=True)])
        distinct, index = find_distinct_rows(gathered)
        total = gradients.new_zeros(len(distinct), gradients.shape[1])
        for index_part, gradient_part in zip(torch.split(index, counts), gradients_by_rank, strict=True):
            total.index_add_(0, index_part, gradient_part[: len(index_part)])
        return distinct, total.div_(self.size)

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace the gradients of parameters by their mean over the processes, in one message; also a barrier.

        A missing gradient counts as 0; it stays None where no process has one, so that the optimizer skips it.

        Args:
            parameters: The same parameters in the same order on all processes, of one type and device.
        """
        if not parameters:
            self.barrier()
            return
        gradients = [
            parameter.new_zeros(parameter.shape) if parameter.grad is None else parameter.grad
            for parameter in parameters
        ]
        has_gradient = gradients[0].new_tensor([parameter.grad is not None for parameter in parameters])
        bucket = torch.cat([has_gradient, *(gradient.flatten() for gradient in gradients)])
        self._all_reduce(bucket)
        bucket /= self.size
        sizes = [len(parameters), *(parameter.numel() for parameter in parameters)]
        has_gradient, *means = torch.split(bucket, sizes)
        for parameter, mean, share in zip(parameters, means, has_gradient.tolist(), strict=True):
            parameter.grad = mean.view_as(parameter) if share > 0 else None

    @torch.no_grad()
    def broadcast_weights(self, module: torch.nn.Module) -> None:
        """Replace the parameters and buffers of a module by those of rank 0."""
        with _translate_errors():
            for tensor in (*module.parameters(), *module.buffers()):
                distributed.broadcast(tensor, src=0)

    @torch.no_grad()
    def average_batch_norm(self, module: torch.nn.Module) -> None:
        """Replace the running statistics of batch norm in a module by their means over the processes."""
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm1d):
                for statistic in (layer.running_mean, layer.running_var):
                    if statistic is not None:
                        statistic.copy_(self.mean(statistic))

    def mean(self, values: Tensor) -> Tensor:
        """Return the elementwise mean over the processes."""
        total = values.clone()
        self._all_reduce(total)
        return total / self.size

    def broadcast_object(self, value: _Value) -> _Value:
        """Return the value of rank 0; those of other ranks are ignored."""
        values = [value]
        with _translate_errors():
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def gather_objects(self, value: _Value) -> list[_Value]:
        """Return the values of all processes in the order of their ranks."""
        values: list[_Value | None] = [None] * self.size
        with _translate_errors():
            distributed.all_gather_object(values, value)
        return cast("list[_Value]", values)

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        self._all_reduce(torch.zeros(1))  # on the CPU: `distributed.barrier` would take the GPU where there is one

    def _all_gather(self, values: Tensor) -> list[Tensor]:
        """Return the values of all processes, of equal shapes, in the order of their ranks."""
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        with _translate_errors():
            distributed.all_gather(gathered, values.contiguous())
        return gathered

    def _all_reduce(self, values: Tensor) -> None:
        with _translate_errors():
            distributed.all_reduce(values)


def is_main(group: ProcessGroup | None) -> bool:
    """Return whether this is the process that writes files and reports progress; None stands for a single process."""
    return group is None or group.rank == 0


def run_on_main(group: ProcessGroup | None, function: Callable[[], _Value]) -> _Value:
    """Call a function in the main process and return its result in all of them."""
    value = function() if is_main(group) else None
    return cast("_Value", value if group is None else group.broadcast_object(value))


@contextmanager
def join_process_group() -> Iterator[ProcessGroup | None]:
    """Join the processes that the environment names, and leave them on exit; None if this process trains alone.

    Raises:
        TrainingError: The environment is incomplete, there are fewer GPUs than processes on this machine, or the other
            processes cannot be reached.
    """
    process_rank = ProcessRank.from_environment()
    if process_rank is None:
        yield None
        return
    if torch.cuda.is_available():
        _select_gpu(process_rank)
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise TrainingError(f"RANK is set, but not {' and '.join(missing)}: start the processes by torchrun")
    with _translate_errors():
        # Small objects, such as metrics, go through gloo on machines with GPUs too.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    is_local = process_rank.local_size == process_rank.size
    yield ProcessGroup(process_rank.rank, process_rank.size, is_local=is_local)
    # Not after an error: the other processes may wait in an operation that this one will not take part in.
    distributed.destroy_process_group()


def _select_gpu(process_rank: ProcessRank) -> None:
    if torch.cuda.device_count() < process_rank.local_size:
        raise TrainingError(
            f"{process_rank.local_size} training processes need a GPU each, and this machine has "
            f"{torch.cuda.device_count()}: lower training.devices, or hide the GPUs by CUDA_VISIBLE_DEVICES= to train "
            "on CPUs"
        )
    torch.cuda.set_device(process_rank.local_rank)


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(
            f"another process of this training has ended or does not answer ({error!s:.200}); its own error tells "
            "why, and the same command resumes the training"
        ) from error
