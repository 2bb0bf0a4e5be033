import torch

from vecall.training.item_lists import deduplicate_rows, fill_padding_with_targets, mark_listed_items


def test_histories_are_padded_with_the_target():
    histories = torch.tensor([[1, 2, 0], [3, 3, 4], [0, 0, 0]])
    padded = fill_padding_with_targets(histories, torch.tensor([2, 3, 0]), torch.tensor([5, 4, 2]))
    assert padded.tolist() == [[1, 2, 5], [3, 3, 4], [2, 2, 2]]


def test_distinct_rows_stand_at_the_index_of_each_row():
    first, second = torch.tensor([[9, 4], [4, 7]]), torch.tensor([7, 2])
    distinct, (first_index, second_index) = deduplicate_rows(first, second)
    assert distinct.tolist() == [2, 4, 7, 9]
    assert torch.equal(distinct[first_index], first)
    assert torch.equal(distinct[second_index], second)


def test_marks_are_those_of_a_comparison_of_all_pairs():
    listed, candidates = torch.randint(30, (8, 5)), torch.randint(30, (40,))
    expected = (listed.unsqueeze(2) == candidates).any(1)
    assert expected.any()
    assert torch.equal(mark_listed_items(listed, candidates, 30), expected)
