"""Publish a store with towers over synthetic vectors, whose untrained user tower yields vectors near a history's items.

    python -m harness.service.store STORE --items 1_000_000 --dim 128 --encoder mean|causal [--channels]
    python -m harness.service.store STORE --items 1_000_000 --dim 128 --string-ids --name NAME --seed 0

The mean of the history is what the pooled tower computes before training. In the causal tower the projection of the
mean is scaled up to outweigh the transformer blocks, which cost as much as trained ones.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from harness.clustered_vectors import ClusteredVectors
from harness.service.channel_release import ALL_CHANNELS, build_channel_tables, make_creation_times, train_ranker
from harness.service.users import K, draw_histories, locate_vectors, to_string_id
from vecall.arrays import HalfVectors
from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.id_map import IdMap, build_id_map
from vecall.data.ragged import RaggedArray
from vecall.index.settings import IndexSettings
from vecall.pipeline.onnx_export import export_towers
from vecall.ranking.lightgbm_ranker import LIGHTGBM, RankerSpec
from vecall.ranking.ranker_info import RankerInfo
from vecall.release.encoder import EncoderState, OnnxEncoder
from vecall.release.ranker_io import save_ranker
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import ReleaseContents, write_release
from vecall.schema import Feature, VectorFeature
from vecall.towers.settings import HistorySettings, ModelSettings
from vecall.towers.two_tower import TwoTower

N_USERS = 2_000
_SMALL_ITEMS = 20_000  # of the store whose candidates a ranker is trained on
_MAX_HISTORY_LENGTH = 50  # newest items of a history that the tower reads
_MEAN_SKIP_SCALE = 30.0  # the output of the blocks has a norm of about sqrt(dim)


def main() -> None:
    """Publish the store that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--encoder", choices=("mean", "causal"), default="mean")
    parser.add_argument("--channels", action="store_true", help="with tables of all channels and a ranker")
    parser.add_argument("--string-ids", action="store_true", help="string ids, and no titles")
    parser.add_argument("--name", help="of the release")
    parser.add_argument("--seed", type=int, default=0, help="of the vectors")
    options = parser.parse_args()
    pool = ClusteredVectors(options.items, options.dim, options.seed)
    if not options.channels:
        publish_store(options.store, pool, options.encoder, options.name, string_ids=options.string_ids)
        return
    with tempfile.TemporaryDirectory(prefix="ranker-") as directory:
        small_store = Path(directory) / "store"
        small_pool = ClusteredVectors(min(_SMALL_ITEMS, options.items), options.dim)
        publish_store(small_store, small_pool, options.encoder, channels=True)
        publish_store(options.store, pool, options.encoder, channels=True, ranker=train_ranker(small_store))


def publish_store(
    store: Path,
    pool: ClusteredVectors,
    encoder: str,
    name: str | None = None,
    *,
    channels: bool = False,
    ranker: tuple[RankerSpec, str] | None = None,
    string_ids: bool = False,
) -> None:
    """Publish and activate a release; the vectors are written beside the store, unless they exist there.

    Args:
        store: directory of the store, created if missing.
        pool: item vectors.
        encoder: history encoder of the user tower, "mean" or "causal".
        name: of the release; None chooses one.
        channels: whether the release has tables of all channels, and requests ask all of them.
        ranker: what the release's ranker reads, and its model in LightGBM's text format; None without one.
        string_ids: whether ids are those of `to_string_id` and items have no titles; else ids are rows.
    """
    vectors_path = locate_vectors(store, pool)
    pool.write_npy(vectors_path)
    items = np.load(vectors_path, mmap_mode="r")
    with Store.open_or_create(store).create_draft(name) as draft:
        onnx_encoder, encoder_hash = _export_encoder(draft.directory, pool.dim, encoder)
        attributes = pl.DataFrame({"shop": np.arange(pool.n_items) % 10})
        if not string_ids:
            attributes = attributes.with_columns(title=pl.Series([f"title {i}" for i in range(pool.n_items)]))
        contents = ReleaseContents(
            item_ids=_build_item_ids(pool.n_items, string_ids=string_ids),
            vectors=items,
            attributes=attributes,
            popularity=np.ones(pool.n_items, dtype=np.float32),
            users=_build_user_table(pool, items),
        )
        if channels:
            contents = replace(
                contents,
                attributes=attributes.with_columns(make_creation_times(pool.n_items)),
                channels=build_channel_tables(attributes["shop"], np.random.default_rng(0)),
                merge=ALL_CHANNELS,
            )
        if ranker is not None:
            save_ranker(*ranker, draft.directory)
            contents = replace(contents, ranker=RankerInfo(name=LIGHTGBM, reason="trained on random targets"))
        settings = IndexSettings(ks=(100, K), target_recall=0.98)
        metadata = write_release(draft.directory, contents, settings, encoder=(onnx_encoder, encoder_hash))
        draft.commit(metadata, activate=True)


def _build_item_ids(n: int, *, string_ids: bool) -> IdMap:
    if string_ids:
        return build_id_map(pl.Series([to_string_id(row) for row in range(n)]), "string")
    return build_id_map(pl.Series(np.arange(n)), "integer")


def _export_encoder(directory: Path, dim: int, encoder: str) -> tuple[OnnxEncoder, str]:
    """Write the towers as ONNX, and return their encoder and its hash."""
    torch.manual_seed(0)
    features: dict[str, Feature] = {"look": VectorFeature(size=dim)}
    looks = pl.DataFrame({"look": [[0.0] * dim, [1.0] * dim]}, schema={"look": pl.List(pl.Float32)})
    items = FeatureEncoder.fit(features, looks)
    users = FeatureEncoder.fit({}, pl.DataFrame())
    history = HistorySettings.model_validate({"encoder": encoder, "length": _MAX_HISTORY_LENGTH})
    settings = ModelSettings(dim=dim, item_id=False, history=history)
    towers = TwoTower(settings, items.specs, users.specs, 0).eval()
    for name, weight in towers.named_parameters():
        if name.endswith("mean_skip.weight"):
            weight.data.copy_(_MEAN_SKIP_SCALE * torch.eye(dim))
    state = EncoderState(dim=dim, history_length=_MAX_HISTORY_LENGTH, items=items.state, users=users.state)
    encoder_hash = export_towers(towers, state, (items.specs, users.specs), np.empty(0, np.int64), directory)
    return OnnxEncoder(directory), encoder_hash


def _build_user_table(pool: ClusteredVectors, items: HalfVectors) -> UserTable:
    """Create users with histories among the first 100,000 items."""
    first_items = items[:100_000].astype(np.float32)
    histories = draw_histories(pool.make_queries(N_USERS, stream="users"), first_items, np.random.default_rng(0))
    ids = build_id_map(pl.Series(np.arange(N_USERS)), "integer")
    return UserTable(ids, pl.DataFrame(height=N_USERS), RaggedArray.from_lists(histories))


if __name__ == "__main__":
    main()
