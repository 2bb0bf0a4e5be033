"""Tables in memory that processes have in common; threads stand for the processes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vecall.towers.embedding import RowEmbedding
from vecall.training.optimizer import RowwiseAdamW
from vecall.training.row_table import RowTable
from vecall.training.shared_rows import SharedRows

ROWS, DIM, PROCESSES, STEPS = 300, 8, 3, 12


class Memory:
    """What the members of a group have in common."""

    def __init__(self):
        self.barrier, self.lock, self.tensors = threading.Barrier(PROCESSES, timeout=20), threading.Lock(), {}


class Member:
    """Member of a `ProcessGroup` of threads, without dense parameters."""

    shares_memory, size = True, PROCESSES

    def __init__(self, rank, memory):
        self.rank, self.memory, self.n_allocated = rank, memory, 0

    def allocate_shared(self, shape, dtype):
        self.n_allocated += 1
        with self.memory.lock:
            return self.memory.tensors.setdefault(self.n_allocated, torch.zeros(shape, dtype=dtype))

    def barrier(self):
        self.memory.barrier.wait()

    def average_gradients(self, parameters):
        assert not parameters
        self.barrier()


def run_members(function):
    """Results of a function of a member, by rank."""
    memory = Memory()
    with ThreadPoolExecutor(PROCESSES) as executor:
        futures = [executor.submit(function, Member(rank, memory)) for rank in range(PROCESSES)]
        return [future.result() for future in futures]


def draw(rank, step):
    """Distinct rows, ascending, and their gradients; none of the last process in every third step."""
    random = torch.Generator().manual_seed(1000 * step + rank)
    count = 0 if rank == PROCESSES - 1 and step % 3 == 0 else 40 + 20 * rank
    rows = torch.randperm(ROWS, generator=random)[:count].sort().values
    return rows, torch.randn(count, DIM, generator=random)


def merge(step):
    """Exact oracle: rows of all processes, and the mean of their gradients in the order of the ranks."""
    total, is_read = torch.zeros(ROWS, DIM), torch.zeros(ROWS, dtype=torch.bool)
    for rows, gradients in (draw(rank, step) for rank in range(PROCESSES)):
        total[rows] += gradients
        is_read[rows] = True
    return is_read.nonzero().squeeze(1), (total / PROCESSES)[is_read]


def test_shares_of_all_processes_are_disjoint_and_together_the_mean_gradients():
    def run(member):
        shared = SharedRows(member, ROWS, DIM)
        shared.publish(*draw(member.rank, 1))
        shared.barrier()
        return shared.merge_share()

    shares = run_members(run)
    rows, gradients = (torch.cat(parts) for parts in zip(*shares, strict=True))
    order = rows.argsort()
    expected_rows, expected_gradients = merge(1)
    assert torch.equal(rows[order], expected_rows)
    assert torch.equal(gradients[order], expected_gradients)
    assert all(len(own) > 20 for own, _ in shares)


def make_table(group=None, *, has_moments=True):
    embedding = RowEmbedding(ROWS, DIM)
    random = torch.Generator().manual_seed(0 if group is None else group.rank)  # the table is that of the first process
    embedding.weight.data = torch.randn(ROWS, DIM, generator=random)
    average = torch.nn.Parameter(torch.zeros(ROWS, DIM)) if has_moments else None
    table = RowTable(embedding, has_moments=has_moments, average=average, ema_decay=0.9, group=group)
    return table, average, RowwiseAdamW([], [table], lr=0.01, weight_decay=0.05, group=group)


def take_steps(table, optimizer, gradients_by_step):
    for rows, gradients in gradients_by_step:
        (table.read(rows) * gradients).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("has_moments", [True, False])
def test_shared_table_has_the_bits_of_a_single_process_with_the_mean_gradients(has_moments):
    def run(member):
        table, average, optimizer = make_table(member, has_moments=has_moments)
        take_steps(table, optimizer, [draw(member.rank, step) for step in range(STEPS)])
        table.flush()
        return [table.weight, *optimizer.state_dict()["state"][0].values(), *([average] if has_moments else [])]

    table, average, optimizer = make_table(has_moments=has_moments)
    take_steps(table, optimizer, [merge(step) for step in range(STEPS)])
    expected = [*optimizer.state_dict()["state"][0].values(), *([average] if has_moments else [])]
    for result in run_members(run):
        assert result[0].data_ptr() != table.weight.data_ptr()
        for own, other in zip(result, [table.weight, *expected], strict=True):
            assert torch.equal(own, other)


def test_resumed_shared_table_equals_an_uninterrupted_one():
    def run(member):
        table, _, optimizer = make_table(member)
        take_steps(table, optimizer, [draw(member.rank, step) for step in range(4)])
        table.flush()
        member.barrier()  # the state is that of one moment
        weight, state = table.weight.detach().clone(), optimizer.state_dict()
        state = {**state, "state": {0: {name: value.clone() for name, value in state["state"][0].items()}}}
        member.barrier()
        rest = [draw(member.rank, step) for step in range(4, STEPS)]
        take_steps(table, optimizer, rest)
        table.flush()

        resumed, _, resumed_optimizer = make_table(member)
        resumed.weight.data.copy_(weight)
        resumed_optimizer.load_state_dict(state)
        take_steps(resumed, resumed_optimizer, rest)
        resumed.flush()
        return table, resumed

    results = run_members(run)
    for table, resumed in results:
        assert torch.equal(table.weight, resumed.weight)
        assert torch.equal(table.exp_avg, results[0][1].exp_avg)
        assert resumed.exp_avg.data_ptr() == results[0][1].exp_avg.data_ptr()
