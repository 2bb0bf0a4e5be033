"""Scores of all items, computed by the towers: for validation, and as the reference of exported towers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from vecall.data.ragged import EvalCases
from vecall.runtime.inner_products import compute_all_scores
from vecall.towers.two_tower import TwoTower
from vecall.training.data import TrainingData, to_tensors

BlockScorer = Callable[[int, int], NDArray[np.float32]]
"""Scores of the items `start` to `stop` - 1 for B cases: [B, stop - start]."""

Scorer = Callable[[EvalCases], BlockScorer]
"""Takes a batch of B cases and returns the scorer of blocks of items for them."""

_ITEM_BATCH_SIZE, _USER_BATCH_SIZE = 4096, 1024
# Larger arrays of item vectors are held in half precision, in which a release stores them too.
MAX_FULL_PRECISION_BYTES = 2**31


class TowerScorer:
    """Scores items, block by block, for batches of cases; encodes all items once, on construction.

    Beside the towers and the data it holds the item vectors alone; features and histories go to the device in batches.

    Args:
        towers: Towers to encode with.
        data: Features of all items and users.

    Attributes:
        item_vectors: [N, D] vectors of all items, float32, or float16 beyond 2 GiB.
    """

    def __init__(self, towers: TwoTower, data: TrainingData) -> None:
        self._towers, self._user_features, self._context_encoder = towers, data.user_features, data.context_encoder
        self.item_vectors = encode_all_items(towers, data)

    def encode_users(self, cases: EvalCases) -> NDArray[np.float32]:
        """Encode the user of each of B cases from the case's history → [B, D]."""
        vectors = np.empty((len(cases), self.item_vectors.shape[1]), dtype=np.float32)
        for start in range(0, len(cases), _USER_BATCH_SIZE):
            batch = np.arange(start, min(start + _USER_BATCH_SIZE, len(cases)))
            vectors[batch] = self._encode_batch(cases.take(batch)).cpu().numpy()
        return vectors

    def _encode_batch(self, cases: EvalCases) -> torch.Tensor:
        history_length = self._towers.settings.history.length
        encode_users: Callable[..., torch.Tensor] = self._towers.encode_users
        if self._towers.reads_sets:  # which may be long, and need no padding
            sets = cases.histories.drop_repeats().truncate_to_last(history_length)
            encode_users, rows, lengths = self._towers.encode_users_by_sets, sets.values, sets.lengths
        else:
            rows, lengths = cases.histories.truncate_to_last(history_length).to_padded(fill_value=0)
        device = self.item_vectors.device
        encoded = {name: values[cases.users] for name, values in self._user_features.items()}
        if self._context_encoder is not None and cases.context is not None:
            encoded |= self._context_encoder.encode(cases.context)
        features = to_tensors(encoded, device)
        items, index = np.unique(rows, return_inverse=True)
        with eval_mode(self._towers):
            return encode_users(
                self.item_vectors[torch.from_numpy(items).to(device)].float(),
                torch.from_numpy(index.reshape(rows.shape)).to(device),
                torch.from_numpy(lengths).to(device),
                features,
            )

    def __call__(self, cases: EvalCases) -> BlockScorer:
        """Encode the users of B cases and return the scorer of blocks of items for them."""
        user_vectors = self.encode_users(cases)
        if self.item_vectors.device.type == "cpu":
            # A view, or a copy of the block alone; numpy multiplies on all cores, however many torch uses.
            return lambda start, stop: compute_all_scores(user_vectors, self.item_vectors[start:stop].float().numpy())
        device_vectors = torch.from_numpy(user_vectors).to(self.item_vectors.device, torch.float64)
        return lambda start, stop: (device_vectors @ self.item_vectors[start:stop].double().T).float().cpu().numpy()


def encode_all_items(towers: TwoTower, data: TrainingData) -> torch.Tensor:
    """Encode all items in batches → [N, D] on the device of the towers, float32, or float16 beyond 2 GiB."""
    # Tables may stay on the CPU, also where the towers are on a GPU.
    device = next((part.device for part in towers.parameters() if part.device.type != "cpu"), torch.device("cpu"))
    is_large = 4 * data.n_items * towers.settings.dim > MAX_FULL_PRECISION_BYTES
    dtype = torch.float16 if is_large else torch.float32
    vectors = torch.empty((data.n_items, towers.settings.dim), device=device, dtype=dtype)
    with eval_mode(towers):
        for start in range(0, data.n_items, _ITEM_BATCH_SIZE):
            stop = min(start + _ITEM_BATCH_SIZE, data.n_items)
            features = to_tensors({name: values[start:stop] for name, values in data.item_features.items()}, device)
            vectors[start:stop] = towers.encode_items(torch.arange(start, stop, device=device), features)
    return vectors


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
