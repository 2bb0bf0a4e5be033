"""Publish a two-tower model written by hand and trained by one's own loop, and recall with it; half a minute on a CPU.

python examples/own_towers.py [--store own_towers/store] [--epochs 3]
"""

import argparse
from pathlib import Path

import polars as pl
import torch
from torch import nn
from torch.nn import functional as F

from vecall import DenseTower, Query, fit_encoders, open_recaller, publish_towers

MOVIELENS = Path(__file__).parent / "movielens"


class TwoTower(nn.Module):
    """Any model will do that encodes users and items each by themselves; this one knows nothing of vecall."""

    def __init__(self, user_feat_dim, item_feat_dim, embedding_dim=128, hidden_dims=[256, 128]):  # noqa: B006
        super().__init__()
        self.user_tower = self._build_tower(user_feat_dim, embedding_dim, hidden_dims)
        self.item_tower = self._build_tower(item_feat_dim, embedding_dim, hidden_dims)

    def _build_tower(self, in_dim, out_dim, hidden_dims):
        layers = []
        for width in hidden_dims:
            layers += [nn.Linear(in_dim, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3)]
            in_dim = width
        return nn.Sequential(*layers, nn.Linear(in_dim, out_dim))

    def get_user_embedding(self, x):
        return F.normalize(self.user_tower(x), dim=1)

    def get_item_embedding(self, x):
        return F.normalize(self.item_tower(x), dim=1)


def read_movielens():
    """Make dense features with Polars: genres and year of a film, and of a user the genres of the films liked."""
    movies = pl.read_csv(MOVIELENS / "movies.csv")
    likes = pl.read_csv(MOVIELENS / "ratings.csv").filter(pl.col("rating") >= 4)
    names = sorted(set(movies["genres"].str.split("|").explode()))
    genres = pl.col("genres").str.split("|")
    items = movies.select(
        "item_id",
        "title",
        pl.col("title").str.extract(r"\((\d{4})\)\s*$").alias("year"),
        pl.concat_list(genres.list.contains(name).cast(pl.Float32) for name in names).alias("genres"),
    )
    shares = [pl.col("genres").list.get(column).mean() for column in range(len(names))]
    users = likes.join(items, on="item_id").group_by("user_id").agg(pl.concat_list(shares).alias("taste"))
    return items, users.sort("user_id"), likes, len(names)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", default="own_towers/store")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    items, users, likes, n_genres = read_movielens()

    vector = {"kind": "vector", "size": n_genres}
    schema = {
        "interactions": {"user": "user_id", "item": "item_id", "time": "timestamp"},
        "items": {
            "id": "item_id",
            "id_type": "integer",
            "title": "title",
            "features": {"year": {"kind": "numeric"}, "genres": vector},
        },
        "users": {"id": "user_id", "id_type": "integer", "features": {"taste": vector}},
    }
    item_encoder, user_encoder = fit_encoders(schema, items, users)
    item_x = torch.from_numpy(item_encoder.encode_dense(items))  # [N, F], in the order of the table
    user_x = torch.from_numpy(user_encoder.encode_dense(users))
    rows = likes.join(items.select("item_id").with_row_index("item_row"), on="item_id").join(
        users.select("user_id").with_row_index("user_row"), on="user_id"
    )
    pairs = torch.from_numpy(rows.select("user_row", "item_row").to_numpy().astype("int64"))

    torch.manual_seed(0)
    model = TwoTower(user_encoder.dense_dim, item_encoder.dense_dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(arguments.epochs):
        for batch in pairs[torch.randperm(len(pairs))].split(512):
            scores = model.get_user_embedding(user_x[batch[:, 0]]) @ model.get_item_embedding(item_x[batch[:, 1]]).T
            loss = F.cross_entropy(scores / 0.1, torch.arange(len(batch)))  # the other items of the batch are negatives
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    release = publish_towers(
        arguments.store,
        DenseTower(model.get_user_embedding),
        DenseTower(model.get_item_embedding),
        schema=schema,
        items=items,
        users=users,
        interactions=likes,
        encoders=(item_encoder, user_encoder),
    )
    with open_recaller(arguments.store) as recaller:
        print(f"release {release}; for user 1:")
        print(recaller.candidates(Query(user_id=1, k=10)).select("rank", "score", "title"))


if __name__ == "__main__":
    main()
