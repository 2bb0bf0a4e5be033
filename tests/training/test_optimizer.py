import copy

import pytest
import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vecall.towers.embedding import RowEmbedding
from vecall.towers.features import SqrtNEmbeddingBag
from vecall.training.lr_schedule import build_cosine_schedule
from vecall.training.optimizer import RowwiseAdamW
from vecall.training.row_table import RowTable

ROWS, DIM, LR, WEIGHT_DECAY = 300, 16, 4e-3, 0.05


class Regression:
    """Embeddings that are fitted to random targets, with rare and frequent rows; every call draws the same steps."""

    def __init__(self):
        self.random = torch.Generator().manual_seed(0)
        self.targets = torch.randn(ROWS, DIM, generator=self.random)
        self.probabilities = torch.arange(1, ROWS + 1).float() ** -1.2

    def draw_rows(self):
        return torch.multinomial(self.probabilities, 20, replacement=True, generator=self.random)

    def loss(self, embedding, rows):
        return ((torch.tanh(embedding(rows)) - self.targets[rows]) ** 2).mean()


def make_embedding(**options):
    torch.manual_seed(0)
    embedding = RowEmbedding(ROWS, DIM, **options)
    torch.nn.init.normal_(embedding.weight, std=0.1)
    return embedding


def make_optimizer(embedding, steps=600, **options):
    table = RowTable(embedding, **{"has_moments": True} | options)
    optimizer = RowwiseAdamW([], [table], lr=LR, weight_decay=WEIGHT_DECAY)
    return table, optimizer, LambdaLR(optimizer, build_cosine_schedule(steps))


def take_step(loss, optimizer, schedule):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


@pytest.fixture(params=[True, False], ids=["kernels", "tensor operations"])
def _with_and_without_kernels(request, monkeypatch):
    monkeypatch.setattr(RowTable, "_uses_kernels", request.param)


@pytest.mark.usefixtures("_with_and_without_kernels")
@pytest.mark.parametrize("frozen_row", [None, 1])
def test_rows_and_their_average_equal_dense_adamw_after_600_steps_with_a_schedule(frozen_row):
    dense = torch.nn.Embedding.from_pretrained(
        make_embedding().weight.detach().clone(), freeze=False, padding_idx=frozen_row
    )
    expected_average = AveragedModel(dense, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    dense_optimizer = torch.optim.AdamW(dense.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    dense_schedule = LambdaLR(dense_optimizer, build_cosine_schedule(600))
    embedding = make_embedding(padding_idx=frozen_row)
    initial = embedding.weight.detach().clone()
    average = torch.nn.Parameter(initial.clone())
    table, optimizer, schedule = make_optimizer(embedding, average=average, ema_decay=0.99)
    problem = Regression()
    for _ in range(600):
        rows = problem.draw_rows()
        take_step(problem.loss(dense, rows), dense_optimizer, dense_schedule)
        expected_average.update_parameters(dense)
        take_step(problem.loss(embedding, rows), optimizer, schedule)
    table.flush()
    assert (dense.weight - initial).abs().max() > 0.5
    assert (embedding.weight - dense.weight).abs().max() < 2e-4
    assert (average - expected_average.module.weight).abs().max() < 2e-4


def test_without_moments_the_loss_falls_likewise():
    losses = {}
    for has_moments in (True, False):
        problem, embedding = Regression(), make_embedding()
        table, optimizer, schedule = make_optimizer(embedding, has_moments=has_moments)
        for _ in range(600):
            take_step(problem.loss(embedding, problem.draw_rows()), optimizer, schedule)
        table.flush()
        losses[has_moments] = problem.loss(embedding, problem.draw_rows()).item()
    assert losses[False] < 1.1 * losses[True] < 0.8
    assert table.exp_avg is None
    assert table.exp_avg_sq.shape == (ROWS, 1)


@pytest.mark.usefixtures("_with_and_without_kernels")
@pytest.mark.parametrize("has_moments", [True, False])
def test_resumed_training_is_bit_equal(has_moments):
    def train(steps, embedding, optimizer, schedule, problem):
        for _ in range(steps):
            take_step(problem.loss(embedding, problem.draw_rows()), optimizer, schedule)
        return copy.deepcopy(optimizer.state_dict())

    problem, embedding = Regression(), make_embedding()
    _, optimizer, schedule = make_optimizer(embedding, has_moments=has_moments)
    state = train(50, embedding, optimizer, schedule, problem)
    weights, schedule_state, random_state = (
        embedding.weight.detach().clone(), schedule.state_dict(), problem.random.get_state()
    )  # fmt: skip
    expected = train(50, embedding, optimizer, schedule, problem)

    resumed = RowEmbedding.from_pretrained(weights, freeze=False)
    _, resumed_optimizer, resumed_schedule = make_optimizer(resumed, has_moments=has_moments)
    resumed_optimizer.load_state_dict(state)
    resumed_schedule.load_state_dict(schedule_state)
    problem.random.set_state(random_state)
    actual = train(50, resumed, resumed_optimizer, resumed_schedule, problem)
    assert torch.equal(resumed.weight, embedding.weight)
    assert all(torch.equal(actual["state"][0][name], value) for name, value in expected["state"][0].items())


def test_reads_of_equal_rows_in_a_step_add_up():
    embedding, reference = make_embedding(), make_embedding()
    table, optimizer, schedule = make_optimizer(embedding)
    dense = torch.optim.AdamW(reference.parameters(), lr=schedule.get_last_lr()[0], weight_decay=WEIGHT_DECAY)
    problem = Regression()
    first, second = problem.draw_rows(), problem.draw_rows()
    for model, its_optimizer in ((embedding, optimizer), (reference, dense)):
        (problem.loss(model, first) + problem.loss(model, second)).backward()
        its_optimizer.step()
    table.flush()
    torch.testing.assert_close(embedding.weight, reference.weight)


def test_discarded_reads_leave_weight_decay_alone():
    embedding = make_embedding()
    initial = embedding.weight.detach().clone()
    table, optimizer, schedule = make_optimizer(embedding)
    embedding(torch.tensor([1, 2])).sum().backward()
    table.discard_reads()
    first_lr = schedule.get_last_lr()[0]
    optimizer.step()
    table.flush()
    torch.testing.assert_close(embedding.weight, initial * (1 - first_lr * WEIGHT_DECAY))


def test_list_of_values_is_read_as_from_the_whole_table():
    bag = SqrtNEmbeddingBag(ROWS, DIM, 0.1)
    rows = torch.tensor([[5, 9, 0], [0, 0, 0], [9, 9, 7]])
    bag.eval()
    expected = bag(rows)
    bag.train()
    RowTable(bag.table, has_moments=True)
    torch.testing.assert_close(bag(rows), expected)
    bag(rows).sum().backward()
    assert bag.table.weight.grad is None


def test_weights_do_not_depend_on_the_number_of_threads():
    weights = []
    n_threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        embedding, problem = make_embedding(), Regression()
        table, optimizer, schedule = make_optimizer(embedding)
        for _ in range(30):
            take_step(problem.loss(embedding, problem.draw_rows()), optimizer, schedule)
        table.flush()
        weights.append(embedding.weight.detach().clone())
    torch.set_num_threads(n_threads)
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.usefixtures("_with_and_without_kernels")
def test_rows_are_read_up_to_date_between_steps():
    embedding, problem = make_embedding(), Regression()
    table, optimizer, schedule = make_optimizer(embedding)
    for _ in range(30):
        take_step(problem.loss(embedding, problem.draw_rows()), optimizer, schedule)
    rows = torch.arange(ROWS)
    read = embedding(rows).detach()
    table.flush()
    torch.testing.assert_close(read, F.embedding(rows, embedding.weight))
