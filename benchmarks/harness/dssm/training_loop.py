"""The founding design's training loop as one writes it in an afternoon: a DataLoader of single rows, BCE, Adam."""

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

Row = dict[str, dict[str, Tensor]]


class PairDataset(Dataset[tuple[Row, Tensor]]):
    """Labelled pairs one by one, or each positive with its drawn negatives: features of a user and of items, labels."""

    def __init__(self, samples: Samples, training_data: TrainingData, negatives: int, *, grouped: bool) -> None:
        self._samples, self._negatives, self._n_items = samples, negatives, training_data.n_items
        self._grouped = grouped
        self._users, self._items = (
            to_tensors(x, _CPU) for x in (training_data.user_features, training_data.item_features)
        )

    def __len__(self) -> int:
        return len(self._samples) * (1 if self._grouped else 1 + self._negatives)

    def __getitem__(self, index: int) -> tuple[Row, Tensor]:
        index, number = (index, 0) if self._grouped else divmod(index, 1 + self._negatives)
        user, item = int(self._samples.users[index]), int(self._samples.items[index])
        drawn = np.random.randint(self._n_items, size=self._negatives)  # noqa: NPY002 - as one writes it
        items = torch.from_numpy(np.concatenate([[item], drawn]))
        labels = torch.zeros(len(items))
        labels[0] = 1
        if not self._grouped:
            items, labels = items[number, None], labels[number, None]
        row = {
            "user": {name: values[user] for name, values in self._users.items()},
            "items": {name: values[items] for name, values in self._items.items()},
        }
        return row, labels


@dataclass
class DssmTrainingLoop:
    """Training of towers, epoch by epoch.

    Attributes:
        towers: user features and item features to vectors of length 1; without ids and histories.
        samples: positives.
        training_data: their features.
        settings: batch, learning rate, negatives of each positive.
        grouped: a row is a positive with its negatives; else a labelled pair, as the design says.
    """

    towers: TwoTower
    samples: Samples
    training_data: TrainingData
    settings: TrainingSettings
    grouped: bool

    def train_epochs(self) -> Iterator[float]:
        """Train for ever; after each epoch its seconds."""
        rows = PairDataset(self.samples, self.training_data, self.settings.negatives.uniform, grouped=self.grouped)
        loader = DataLoader(rows, batch_size=self.settings.batch, shuffle=True)
        optimizer = torch.optim.Adam(self.towers.parameters(), lr=self.settings.lr)
        while True:
            began = time.perf_counter()
            self.towers.train()
            for row, labels in loader:
                optimizer.zero_grad()
                binary_cross_entropy_with_logits(self._score(row), labels).backward()
                optimizer.step()
            yield time.perf_counter() - began

    def _score(self, row: Row) -> Tensor:
        """[B, 1 + n] cosines."""
        users = self.towers.user_tower(None, None, row["user"])  # [B, D]
        shape = next(iter(row["items"].values())).shape[:2]
        items = self.towers.item_tower(
            None, {name: x.flatten(0, 1) for name, x in row["items"].items()}
        )  # [B (1 + n), D]
        scores: Tensor = (items.view(*shape, -1) @ users.unsqueeze(-1)).squeeze(-1)
        return scores
