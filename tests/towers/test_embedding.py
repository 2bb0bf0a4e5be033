import torch

from vecall.towers.embedding import RowEmbedding


def make_embedding_with_reader():
    """An embedding and the list of the rows that were read."""
    embedding, reads = RowEmbedding(10, 3), []

    def read(rows):
        reads.append(rows.tolist())
        return embedding.weight.detach()[rows].requires_grad_()

    embedding.row_reader = read
    return embedding, reads


def test_training_reads_each_distinct_row_once():
    embedding, reads = make_embedding_with_reader()
    rows = torch.tensor([[7, 2], [2, 7]])
    assert torch.equal(embedding(rows), embedding.weight[rows])
    assert reads == [[2, 7]]


def test_evaluation_reads_the_table():
    embedding, reads = make_embedding_with_reader()
    embedding.eval()
    rows = torch.tensor([7, 2])
    assert torch.equal(embedding(rows), embedding.weight[rows])
    assert reads == []


def test_table_that_stays_on_the_cpu_is_not_moved():
    embedding = RowEmbedding(10, 3)
    embedding.stays_on_cpu = True
    assert embedding.to("meta").weight.device.type == "cpu"
    embedding.stays_on_cpu = False
    assert embedding.to("meta").weight.device.type == "meta"
