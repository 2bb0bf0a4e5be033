"""Factories of small releases, written as `publish` writes them, with an encoder whose vectors are computed by hand."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from vecall.channels.channel_tables import ChannelTables
from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.id_map import build_id_map
from vecall.data.ragged import RaggedArray
from vecall.data.request_features import to_feature_frame
from vecall.index.settings import IndexSettings
from vecall.live.live_index import LiveIndex
from vecall.recall.recaller import Recaller
from vecall.release.encoder import EncoderState, OnnxEncoder
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import ReleaseContents, write_release
from vecall.schema import CategoryFeature, NumericFeature, VectorFeature

NO_CHANNELS = ChannelTables()
USER_FEATURES = {"age": NumericFeature(), "town": CategoryFeature(), "taste": VectorFeature(size=4)}


class HandComputedEncoder:
    """Encoder of user vectors: the sum of the history's vectors and `taste`, with `age` added to the first number."""

    def __init__(self, dim, history_length, features, *, distinct_history=False):
        items = FeatureEncoder.fit({}, pl.DataFrame())
        users = FeatureEncoder.fit(features, to_feature_frame([{}], features))
        self.state = EncoderState(
            dim=dim,
            history_length=history_length,
            distinct_history=distinct_history,
            items=items.state,
            users=users.state,
        )
        self.dim, self.history_length = dim, history_length
        self.empty_user_features = to_feature_frame([{}], features)

    select_history = OnnxEncoder.select_history

    def encode_users(self, features, histories, lengths):
        assert histories.shape == (1, lengths[0], self.dim)
        assert lengths[0] <= self.history_length
        vectors = histories.sum(axis=1)
        if "taste" in self.state.users.features:
            row = features.row(0, named=True)
            vectors = vectors + np.array([row["taste"] or [0.0] * self.dim], dtype=np.float32)
            vectors[:, 0] += row["age"] or 0.0
        return vectors.astype(np.float32)


@pytest.fixture
def make_release(tmp_path):
    """Factory of releases of the given vectors; a user is (id, features, history of item rows)."""

    def make(
        vectors,
        *,
        ids=None,
        attributes=None,
        popularity=None,
        users=None,
        encoder=None,
        engine="exact",
        channels=NO_CHANNELS,
    ):
        n_items = len(vectors)
        ids = list(range(100, 100 + n_items)) if ids is None else ids
        item_ids = build_id_map(pl.Series(ids), "integer" if isinstance(ids[0], int) else "string")
        user_table = None
        if users is not None:
            names, features, histories = zip(*users, strict=True)
            user_ids = build_id_map(pl.Series(names), "integer" if isinstance(names[0], int) else "string")
            user_table = UserTable(
                user_ids, to_feature_frame(features, USER_FEATURES), RaggedArray.from_lists(histories)
            )
        contents = ReleaseContents(
            item_ids=item_ids,
            vectors=np.asarray(vectors, dtype=np.float32),
            attributes=pl.DataFrame(height=n_items) if attributes is None else pl.DataFrame(attributes),
            popularity=None if popularity is None else np.asarray(popularity, dtype=np.float32),
            users=user_table,
            channels=channels,
        )
        with Store.open_or_create(tmp_path / "store").create_draft() as draft:
            name = draft.commit(write_release(draft.directory, contents, IndexSettings(engine=engine)), activate=True)
        return replace(open_release(Store.open(tmp_path / "store"), name), encoder=encoder)

    return make


@pytest.fixture
def make_recaller(make_release):
    return lambda *args, **kwargs: Recaller(LiveIndex.from_release(make_release(*args, **kwargs)))


@pytest.fixture
def make_encoder():
    return lambda length=3, features=USER_FEATURES, **keywords: HandComputedEncoder(4, length, features, **keywords)
