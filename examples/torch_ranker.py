"""A ranker of one's own in PyTorch: trained on what recall returns, then used to order it. Run `make quickstart` first.

python examples/torch_ranker.py [--store quickstart/store] [--interactions FILE.csv] [--users 300] [--epochs 20]

The towers of the quickstart's release were trained without the last item of each user (leave-one-out): for the history
before that item, the channel `vector` returns lists that do not know the answer, and the network learns from these. The
other channels and `item.popularity` are counted from all interactions, the answers included, so they are left out here.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn
from torch.nn import functional as F

from vecall import Query, open_recaller
from vecall.ranking.ranker import rank
from vecall.recall.recaller import Recaller

COLUMNS = ("score", "history.cosine_last", "history.cosine_max", "history.share.genres")
CHANNELS = ["vector"]
RATINGS_PATH = Path(__file__).parent / "movielens" / "ratings.csv"


class TorchRanker:
    """Scores candidates by a small network over some of their columns. Serves from any number of threads."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self.network = nn.Sequential(nn.Linear(len(columns) + 1, 16), nn.ReLU(), nn.Linear(16, 1))

    def to_inputs(self, candidates: pl.DataFrame) -> torch.Tensor:
        """Features [C, F]: each column as its z-score within the list, and the logarithm of recall's rank."""
        features = [np.log(candidates["rank"].to_numpy())]
        for name in self.columns:
            column = candidates[name].cast(pl.Float32).fill_null(0).to_numpy()
            features.append((column - column.mean()) / (column.std() + 1e-6))
        return torch.tensor(np.stack(features, axis=1), dtype=torch.float32)

    def __call__(self, candidates: pl.DataFrame) -> np.ndarray:
        with torch.inference_mode():
            return self.network(self.to_inputs(candidates)).squeeze(1).numpy()


def make_lists(recaller: Recaller, ranker: TorchRanker, histories: list[list[int]]) -> list[tuple[torch.Tensor, int]]:
    """Recall 200 candidates for all but the last item of each history; keep the lists that have this item."""
    lists = []
    for *history, target in histories:
        candidates = recaller.candidates(Query(history=history, k=200, channels=CHANNELS))
        position = candidates["id"].index_of(target)
        if position is not None:
            lists.append((ranker.to_inputs(candidates), position))
    return lists


def train(ranker: TorchRanker, lists: list[tuple[torch.Tensor, int]], epochs: int) -> None:
    """Train by cross-entropy over each list."""
    optimizer = torch.optim.Adam(ranker.network.parameters(), lr=1e-2)
    for epoch in range(epochs):
        losses = [F.cross_entropy(ranker.network(x).squeeze(1)[None], torch.tensor([y])) for x, y in lists]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {loss:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", default="quickstart/store")
    parser.add_argument("--interactions", type=Path, default=RATINGS_PATH)
    parser.add_argument("--columns", nargs="+", default=COLUMNS)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    table = pl.read_csv(arguments.interactions).sort("timestamp")
    histories = table.group_by("user_id", maintain_order=True).agg("item_id").head(arguments.users)["item_id"].to_list()
    ranker = TorchRanker(tuple(arguments.columns))
    with open_recaller(arguments.store) as recaller:
        lists = make_lists(recaller, ranker, histories)
        print(f"{len(histories)} users, {len(lists)} lists with the item that was taken")
        train(ranker, lists, arguments.epochs)
        candidates = recaller.candidates(Query(history=histories[0], k=200, channels=CHANNELS))
    print(rank(candidates, ranker, k=10).select("id", "rank", "ranking_score"))


if __name__ == "__main__":
    main()
