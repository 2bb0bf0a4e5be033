"""Towers as people write them outside vecall, and a small shop of integer ids to publish them for."""

import numpy as np
import polars as pl
import torch
from torch import nn
from torch.nn import functional as F

N_ITEMS, N_USERS = 200, 60

SCHEMA = {
    "interactions": {"user": "user_id", "item": "item_id", "time": "time"},
    "items": {
        "id": "item_id",
        "id_type": "integer",
        "title": "title",
        "attributes": ["year"],
        "features": {"year": {"kind": "numeric"}, "price": {"kind": "numeric"}, "look": {"kind": "vector", "size": 4}},
    },
    "users": {
        "id": "user_id",
        "id_type": "integer",
        "features": {"age": {"kind": "numeric"}, "taste": {"kind": "vector", "size": 4}},
    },
}
MIXED_SCHEMA = SCHEMA | {
    "items": SCHEMA["items"] | {"features": {"genre": {"kind": "category"}, "tags": {"kind": "tags"}}},
    "users": {"id": "user_id", "id_type": "integer", "features": {"country": {"kind": "category"}}},
}


def make_tables(seed=0):
    """Make items, users and interactions; the ids of items descend, and some values are missing."""
    rng = np.random.default_rng(seed)
    items = pl.DataFrame(
        {
            "item_id": np.arange(N_ITEMS)[::-1] + 1000,
            "title": [f"Item {row}" for row in range(N_ITEMS)],
            "year": [None if row % 17 == 0 else 1950 + int(rng.integers(70)) for row in range(N_ITEMS)],
            "price": rng.gamma(2.0, 10.0, N_ITEMS),
            "look": rng.standard_normal((N_ITEMS, 4)).astype(np.float32).tolist(),
            "genre": [None if row % 11 == 0 else f"genre {row % 5}" for row in range(N_ITEMS)],
            "tags": [[f"tag {tag}" for tag in range(row % 4)] for row in range(N_ITEMS)],
        }
    )
    users = pl.DataFrame(
        {
            "user_id": np.arange(N_USERS),
            "age": rng.integers(18, 80, N_USERS),
            "taste": rng.standard_normal((N_USERS, 4)).astype(np.float32).tolist(),
            "country": [None if row % 7 == 0 else ["cn", "de", "us"][row % 3] for row in range(N_USERS)],
        }
    )
    interactions = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(N_USERS), 6),
            "item_id": rng.integers(1000, 1000 + N_ITEMS, N_USERS * 6),
            "time": np.arange(N_USERS * 6),
        }
    )
    return items, users, interactions


class DenseTwoTower(nn.Module):
    """Two towers in one module, each reading one dense matrix, taken as it is."""

    def __init__(self, user_feat_dim, item_feat_dim, embedding_dim=128, hidden_dims=[256, 128]):  # noqa: B006
        super().__init__()
        self.user_tower = self._build(user_feat_dim, embedding_dim, hidden_dims)
        self.item_tower = self._build(item_feat_dim, embedding_dim, hidden_dims)

    @staticmethod
    def _build(in_dim, out_dim, hidden_dims):
        layers = []
        for hidden_dim in hidden_dims:
            layers += [nn.Linear(in_dim, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.ReLU(), nn.Dropout(0.3)]
            in_dim = hidden_dim
        return nn.Sequential(*layers, nn.Linear(in_dim, out_dim))

    def get_user_embedding(self, x):
        return F.normalize(self.user_tower(x), p=2, dim=1)

    def get_item_embedding(self, x):
        return F.normalize(self.item_tower(x), p=2, dim=1)

    def forward(self, user_x, item_x):
        return (self.get_user_embedding(user_x) * self.get_item_embedding(item_x)).sum(1)


def train_dense(model, user_x, item_x, pairs, steps=20):
    """Train on positive (user row, item row) pairs against random items."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(pairs), (64,))
        users, items = pairs[rows, 0], pairs[rows, 1]
        negatives = torch.randint(len(item_x), (64,))
        scores = model(user_x[users.repeat(2)], item_x[torch.cat([items, negatives])])
        labels = torch.cat([torch.ones(64), torch.zeros(64)])
        loss = F.binary_cross_entropy_with_logits(5 * scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


class MixedItemTower(nn.Module):
    """Reads a category and tags; its vectors are not normalized."""

    def __init__(self, specs, dim=12):
        super().__init__()
        self.genre = nn.Embedding(specs["genre"].size, dim)
        self.tags = nn.Embedding(specs["tags"].size, dim, padding_idx=0)
        self.out = nn.Linear(dim, dim)

    def forward(self, features):
        return 3 * self.out(self.genre(features["genre"]) + self.tags(features["tags"]).sum(1))


class HistoryUserTower(nn.Module):
    """Reads a category and the history: a GRU with learned positions, at the last item."""

    def __init__(self, specs, length, dim=12):
        super().__init__()
        self.country = nn.Embedding(specs["country"].size, dim)
        self.positions = nn.Parameter(torch.randn(length, dim))
        self.gru = nn.GRU(dim, dim, batch_first=True)

    def forward(self, features, history, lengths):
        states, _ = self.gru(history + self.positions)  # [B, L, D]
        last = states[torch.arange(len(states)), (lengths - 1).clamp(min=0)]
        return self.country(features["country"]) + torch.where((lengths > 0).unsqueeze(1), last, torch.zeros_like(last))
