"""Plain training loop of the DSSM baseline: a DataLoader of single samples, BCE, Adam."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset

from vecall.towers.two_tower import TwoTower
from vecall.training.batches import Samples
from vecall.training.data import TrainingData, to_tensors
from vecall.training.settings import TrainingSettings

_CPU = torch.device("cpu")

Features = dict[str, dict[str, Tensor]]


class PairDataset(Dataset[tuple[Features, Tensor]]):
    """Features of users and items with labels; negatives are drawn uniformly when a sample is read.

    Args:
        samples: positives.
        training_data: features of users and items.
        negatives: n, drawn for each positive.
        grouped: a sample is a positive with its n negatives; else a single pair, and there are 1 + n per positive.
    """

    def __init__(self, samples: Samples, training_data: TrainingData, negatives: int, *, grouped: bool) -> None:
        self._samples, self._negatives, self._n_items = samples, negatives, training_data.n_items
        self._grouped = grouped
        self._users, self._items = (
            to_tensors(features, _CPU) for features in (training_data.user_features, training_data.item_features)
        )

    def __len__(self) -> int:
        return len(self._samples) * (1 if self._grouped else 1 + self._negatives)

    def __getitem__(self, index: int) -> tuple[Features, Tensor]:
        position, pair = (index, 0) if self._grouped else divmod(index, 1 + self._negatives)
        user, item = int(self._samples.users[position]), int(self._samples.items[position])
        drawn = np.random.randint(self._n_items, size=self._negatives)  # noqa: NPY002 - as a plain loop does it
        items = torch.from_numpy(np.concatenate([[item], drawn]))  # [1 + n]
        labels = torch.zeros(len(items))
        labels[0] = 1
        if not self._grouped:
            items, labels = items[pair, None], labels[pair, None]  # [1]
        features = {
            "user": {name: values[user] for name, values in self._users.items()},
            "items": {name: values[items] for name, values in self._items.items()},
        }
        return features, labels


@dataclass
class DssmTrainingLoop:
    """Training of two towers, epoch by epoch.

    Attributes:
        towers: map user features and item features to unit vectors; without ids and histories.
        samples: positives.
        training_data: their features.
        settings: batch size, learning rate and number of negatives.
        grouped: see `PairDataset`; the baseline's own design is False.
    """

    towers: TwoTower
    samples: Samples
    training_data: TrainingData
    settings: TrainingSettings
    grouped: bool

    def train_epochs(self) -> Iterator[float]:
        """Train without end, and yield the seconds of each epoch."""
        dataset = PairDataset(self.samples, self.training_data, self.settings.negatives.uniform, grouped=self.grouped)
        loader = DataLoader(dataset, batch_size=self.settings.batch, shuffle=True)
        optimizer = torch.optim.Adam(self.towers.parameters(), lr=self.settings.lr)
        while True:
            start = time.perf_counter()
            self.towers.train()
            for features, labels in loader:
                optimizer.zero_grad()
                loss = binary_cross_entropy_with_logits(self._score(features), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            yield time.perf_counter() - start

    def _score(self, features: Features) -> Tensor:
        """Return the cosines [B, n] of B users with n items each."""
        users = self.towers.user_tower(None, None, features["user"])  # [B, D]
        batch_size, n_items = next(iter(features["items"].values())).shape[:2]
        flat_features = {name: values.flatten(0, 1) for name, values in features["items"].items()}
        items = self.towers.item_tower(None, flat_features).view(batch_size, n_items, -1)  # [B, n, D]
        scores: Tensor = (items @ users.unsqueeze(-1)).squeeze(-1)
        return scores
