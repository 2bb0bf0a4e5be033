"""Peer: the two towers `DSSM` of torch-rechub, as in its MovieLens example; the best epoch by validation.

The user tower reads the user id and the mean of the last 50 items, the item tower the item id. Each position of a
history is a positive with the items before it, and three random items are its negatives. Runs in the peers' own
environment.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.matching import DSSM
from torch_rechub.trainers import MatchTrainer
from torch_rechub.utils.data import MatchDataGenerator

from harness.accuracy.peers.cases import ItemLists, PeerCases, Rows, TimedSearch, pad_left, rank_unseen
from harness.accuracy.peers.command import run_peer

_HISTORY_LENGTH = 50
_NEGATIVES = 3
_BATCH = 1024
_EMBED_DIM = 16
_TOWER = {"dims": [256, 128, 64], "activation": "prelu"}
_ENCODED_USERS = 1024  # at once


def search(cases: PeerCases, timed_search: TimedSearch, seed: int) -> None:
    """Train epoch by epoch until the time is over."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = _build_model(len(cases.train), cases.n_items)
    trainer = MatchTrainer(model, mode=0, optimizer_params={"lr": 1e-3, "weight_decay": 1e-6})

    def recommend(histories: ItemLists, users: Rows, k: int) -> Rows:
        return _recommend(model, cases.n_items, histories, users, k)

    epoch = 0
    while timed_search.has_time():
        epoch += 1
        inputs, labels = _build_samples(cases, rng)
        loader, *_ = MatchDataGenerator(inputs, labels).generate_dataloader(
            {"user": labels[:1]}, {"item": labels[:1]}, batch_size=_BATCH, num_workers=0
        )
        trainer.train_one_epoch(loader)
        timed_search.consider(f"epoch {epoch}", recommend)


def _build_model(n_users: int, n_items: int) -> DSSM:
    user_features = [
        SparseFeature("user", vocab_size=n_users, embed_dim=_EMBED_DIM),
        SequenceFeature(
            "history",
            vocab_size=n_items + 1,
            embed_dim=_EMBED_DIM,
            pooling="mean",
            shared_with="item",
            padding_idx=0,
        ),
    ]
    item_features = [SparseFeature("item", vocab_size=n_items + 1, embed_dim=_EMBED_DIM, padding_idx=0)]
    return DSSM(user_features, item_features, user_params=_TOWER, item_params=_TOWER)


def _build_samples(cases: PeerCases, rng: np.random.Generator) -> tuple[dict[str, Rows], NDArray[np.int64]]:
    """Return the inputs of the positives and of their random negatives, and the labels."""
    train = cases.train
    padded = np.zeros(len(train.values) + _HISTORY_LENGTH, dtype=np.int32)
    padded[_HISTORY_LENGTH:] = train.values + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, _HISTORY_LENGTH)[: len(train.values)]
    depths = np.arange(len(train.values)) - train.offsets[train.owners]  # items of the user before each position
    is_own = np.arange(_HISTORY_LENGTH) >= _HISTORY_LENGTH - depths[:, None]
    positions = np.flatnonzero(depths)
    histories = np.where(is_own, windows, 0)[positions]
    positives = train.values[positions] + 1
    negatives = rng.integers(1, cases.n_items + 1, size=_NEGATIVES * len(positions))
    inputs = {
        "user": np.tile(train.owners[positions], 1 + _NEGATIVES),
        "history": np.tile(histories, (1 + _NEGATIVES, 1)),
        "item": np.concatenate([positives, negatives]),
    }
    labels = np.zeros(len(inputs["item"]), dtype=np.int64)
    labels[: len(positions)] = 1
    return inputs, labels


@torch.no_grad()
def _recommend(model: DSSM, n_items: int, histories: ItemLists, users: Rows, k: int) -> Rows:
    model.eval()
    item_vectors = model.item_tower({"item": torch.arange(1, n_items + 1)})
    padded = pad_left(histories, _HISTORY_LENGTH)
    rows = []
    for start in range(0, len(users), _ENCODED_USERS):
        stop = min(start + _ENCODED_USERS, len(users))
        inputs = {"user": torch.from_numpy(users[start:stop]), "history": torch.from_numpy(padded[start:stop])}
        scores = (model.user_tower(inputs) @ item_vectors.T).numpy()
        offsets = histories.offsets[start : stop + 1]
        batch = ItemLists(histories.values[offsets[0] : offsets[-1]], offsets - offsets[0])
        rows.append(rank_unseen(scores, batch, k))
    return np.concatenate(rows)


if __name__ == "__main__":
    run_peer(search)
