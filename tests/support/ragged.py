"""Ragged arrays as plain lists."""

from vecall.data.ragged import RaggedArray


def to_lists(array: RaggedArray) -> list[list[int]]:
    """Return the lists of a ragged array."""
    return [array[index].tolist() for index in range(len(array))]
