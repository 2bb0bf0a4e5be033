"""Scores of all items, computed by the towers: for validation, and as the reference of exported towers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from vecall.data.ragged import EvalCases
from vecall.towers.two_tower import TwoTower
from vecall.training.data import TrainingData, take, to_tensors

Scorer = Callable[[EvalCases], NDArray[np.float32]]

_ITEM_BATCH_SIZE = 4096


class TowerScorer:
    """Callable that returns the [B, N] scores of all items for B cases; encodes the items once, on construction.

    Args:
        towers: Towers to encode with.
        data: Features of all items and users.

    Attributes:
        item_vectors: [N, D] vectors of all items.
    """

    def __init__(self, towers: TwoTower, data: TrainingData) -> None:
        self._towers = towers
        self._device = next(towers.parameters()).device
        self._user_features = to_tensors(data.user_features, self._device)
        self.item_vectors = encode_all_items(towers, data)

    def encode_users(self, cases: EvalCases) -> NDArray[np.float32]:
        """Encode the user of each of B cases from the case's history → [B, D]."""
        histories, lengths = cases.histories.truncate_to_last(self._towers.settings.history.length).to_padded(
            fill_value=0
        )
        features = take(self._user_features, torch.from_numpy(cases.users).to(self._device))
        with eval_mode(self._towers):
            vectors = self._towers.encode_users(
                self.item_vectors,
                torch.from_numpy(histories).to(self._device),
                torch.from_numpy(lengths).to(self._device),
                features,
            )
        return vectors.cpu().numpy()

    def __call__(self, cases: EvalCases) -> NDArray[np.float32]:
        """Return [B, N] scores of all items for B cases."""
        scores: NDArray[np.float32] = self.encode_users(cases) @ self.item_vectors.cpu().numpy().T
        return scores


def encode_all_items(towers: TwoTower, data: TrainingData) -> torch.Tensor:
    """Encode all items in batches → [N, D], on the device of the towers."""
    device = next(towers.parameters()).device
    features = to_tensors(data.item_features, device)
    batches = torch.split(torch.arange(data.n_items, device=device), _ITEM_BATCH_SIZE)
    with eval_mode(towers):
        return torch.cat([towers.encode_items(rows, take(features, rows)) for rows in batches])


@contextmanager
def eval_mode(towers: TwoTower) -> Iterator[None]:
    """Disable gradients and put the towers in evaluation mode; restore their mode on exit."""
    was_training = towers.training
    towers.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        towers.train(was_training)
