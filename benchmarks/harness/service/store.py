"""A store with towers over a made-up pool: user towers that were not trained give vectors near a history's items.

    python benchmarks/service_store.py STORE --items 1_000_000 --dim 128 --encoder mean|causal

The mean of a history is what the pooled tower begins from. In the sequence tower the map of the mean is made to
outweigh its blocks, which work as hard as trained ones do.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
import torch
from harness.clustered_vectors import ClusteredVectors
from harness.service.users import K, draw_histories

from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.id_map import build_id_map
from vecall.data.ragged import RaggedArray
from vecall.index.settings import IndexSettings
from vecall.pipeline.onnx_export import export_towers
from vecall.release.encoder import EncoderState, OnnxEncoder
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import ReleaseContents, write_release
from vecall.schema import VectorFeature
from vecall.towers.settings import HistorySettings, ModelSettings
from vecall.towers.two_tower import TwoTower

N_USERS = 2_000
_HISTORY_LENGTH = 50  # of a history that is read
_MEAN_SKIP_SCALE = 30.0  # the blocks' output has a length of about sqrt(dim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--encoder", choices=("mean", "causal"), default="mean")
    options = parser.parse_args()
    publish_store(options.store, ClusteredVectors(options.items, options.dim), options.encoder)


def publish_store(store: Path, pool: ClusteredVectors, encoder: str, name: str | None = None) -> None:
    """Publish a release; the store's vectors are written beside it once."""
    vectors = store.with_name(f"pool-{pool.n_items}-{pool.dim}.npy")
    pool.write_npy(vectors)
    items = np.load(vectors, mmap_mode="r")
    with Store.create(store).create_draft(name) as draft:
        towers, digest = _export_encoder(draft.directory, pool.dim, encoder)
        contents = ReleaseContents(
            item_ids=build_id_map(pl.Series(np.arange(pool.n_items)), "integer"),
            vectors=items,
            attributes=pl.DataFrame(
                {"shop": np.arange(pool.n_items) % 10, "title": [f"title {i}" for i in range(pool.n_items)]}
            ),
            popularity=np.ones(pool.n_items, dtype=np.float32),
            users=_build_user_table(pool, items),
        )
        settings = IndexSettings(ks=(100, K), target_recall=0.98)
        draft.commit(write_release(draft.directory, contents, settings, encoder=(towers, digest)), activate=True)


def _export_encoder(directory: Path, dim: int, encoder: str) -> tuple[OnnxEncoder, str]:
    torch.manual_seed(0)
    features = {"look": VectorFeature(size=dim)}
    looks = pl.DataFrame({"look": [[0.0] * dim, [1.0] * dim]}, schema={"look": pl.List(pl.Float32)})
    items = FeatureEncoder.fit(features, looks)
    users = FeatureEncoder.fit({}, pl.DataFrame())
    history = HistorySettings(encoder=encoder, length=_HISTORY_LENGTH)  # type: ignore[arg-type]
    settings = ModelSettings(dim=dim, item_id=False, history=history)
    towers = TwoTower(settings, items.specs, users.specs, 0).eval()
    for name, weight in towers.named_parameters():
        if name.endswith("mean_skip.weight"):
            weight.data.copy_(_MEAN_SKIP_SCALE * torch.eye(dim))
    state = EncoderState(dim=dim, history_length=_HISTORY_LENGTH, items=items.state, users=users.state)
    digest = export_towers(towers, state, (items.specs, users.specs), np.empty(0, np.int64), directory)
    return OnnxEncoder(directory), digest


def _build_user_table(pool: ClusteredVectors, items: np.ndarray) -> UserTable:
    """Users who took items around one place each, among the first 100,000 items."""
    some = items[:100_000].astype(np.float32)
    histories = draw_histories(pool.make_queries(N_USERS, stream="users"), some, np.random.default_rng(0))
    ids = build_id_map(pl.Series(np.arange(N_USERS)), "integer")
    return UserTable(ids, pl.DataFrame(height=N_USERS), RaggedArray.from_lists(histories))


if __name__ == "__main__":
    main()
