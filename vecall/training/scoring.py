"""Scores of all items for users, straight from the towers: for judging while training, and the oracle of an export."""

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
    """Encodes all items once; then each call answers [B, N] cosines for B cases."""

    def __init__(self, towers: TwoTower, data: TrainingData) -> None:
        self._towers = towers
        self._device = next(towers.parameters()).device
        self._user_features = to_tensors(data.user_features, self._device)
        self.item_vectors = encode_all_items(towers, data)

    def encode_users(self, cases: EvalCases) -> NDArray[np.float32]:
        """[B, D] for each case's user, from its history."""
        histories, lengths = cases.histories.take_last(self._towers.settings.history.length).to_padded(fill_value=0)
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
        """[B, N] scores."""
        scores: NDArray[np.float32] = self.encode_users(cases) @ self.item_vectors.cpu().numpy().T
        return scores


def encode_all_items(towers: TwoTower, data: TrainingData) -> torch.Tensor:
    """[N, D] vectors of all items, on the towers' device."""
    device = next(towers.parameters()).device
    features = to_tensors(data.item_features, device)
    batches = torch.split(torch.arange(data.n_items, device=device), _ITEM_BATCH_SIZE)
    with eval_mode(towers):
        return torch.cat([towers.encode_items(rows, take(features, rows)) for rows in batches])


@contextmanager
def eval_mode(towers: TwoTower) -> Iterator[None]:
    """No gradients, and the towers in evaluation mode; back to what they were afterwards."""
    was_training = towers.training
    towers.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        towers.train(was_training)
