"""Peer: `SASRecModel` of RecTools at the width and length of the SASRec paper; the best epoch by validation.

Runs in the peers' own environment.
"""

import logging
import warnings

import numpy as np
import pandas as pd
from pytorch_lightning import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

from harness.accuracy.peers.cases import ItemLists, PeerCases, Rows, TimedSearch
from harness.accuracy.peers.command import run_peer

# The library's defaults, 256 factors, 100 items and 128 users a batch, are meant for a GPU: on two busy cores 180 s are
# two epochs of MovieLens, below popularity.
_FACTORS, _HISTORY_LENGTH, _BATCH = 64, 50, 32


def search(cases: PeerCases, timed_search: TimedSearch, seed: int) -> None:
    """Train epoch by epoch until the time is over."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seed_everything(seed)
    model = SASRecModel(n_factors=_FACTORS, session_max_len=_HISTORY_LENGTH, batch_size=_BATCH)
    dataset = _build_dataset(cases.train, np.arange(len(cases.train)))

    def recommend(histories: ItemLists, users: Rows, k: int) -> Rows:
        table = model.recommend(
            users, _build_dataset(histories, users), k=k, filter_viewed=True, on_unsupported_targets="ignore"
        )
        positions = pd.Series(np.arange(len(users)), index=users)
        rows = np.full((len(users), k), -1, dtype=np.int64)
        rows[positions[table[Columns.User]], table[Columns.Rank] - 1] = table[Columns.Item]
        return rows

    epoch = 0
    while timed_search.has_time():
        epoch += 1
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        timed_search.consider(f"epoch {epoch}", recommend)


def _build_dataset(histories: ItemLists, users: Rows) -> Dataset:
    """Return the interactions of users, one second after the other."""
    positions = np.arange(len(histories.values))
    return Dataset.construct(
        pd.DataFrame(
            {
                Columns.User: users[histories.owners],
                Columns.Item: histories.values,
                Columns.Weight: 1.0,
                Columns.Datetime: pd.Timestamp("2020-01-01") + pd.to_timedelta(positions, unit="s"),
            }
        )
    )


if __name__ == "__main__":
    run_peer(search)
