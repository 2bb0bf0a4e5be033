"""Small releases, made as `publish` makes them, and towers simple enough to compute by hand."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from vecall.data.feature_encoder import Encoders
from vecall.data.id_map import build_vocabulary
from vecall.data.ragged import Sequences
from vecall.data.request_features import frame_of
from vecall.index.settings import IndexSettings
from vecall.live.live_index import LiveIndex
from vecall.recall.recaller import Recaller
from vecall.release.encoder import TowersState
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.release.users import Users
from vecall.release.writer import Contents, write_contents
from vecall.schema import Category, Numeric, Vector

USER_FEATURES = {"age": Numeric(), "town": Category(), "taste": Vector(size=4)}


class HandMadeTowers:
    """The user vector is the sum of the history's vectors, and `taste`; `age` is added to its first number."""

    def __init__(self, dim, length, features):
        nothing = Encoders.fit({}, pl.DataFrame())
        users = Encoders.fit(features, frame_of([{}], features))
        self.state = TowersState(dim=dim, history_length=length, items=nothing.state, users=users.state)
        self.dim, self.history_length = dim, length
        self.no_user_fields = frame_of([{}], features)

    def encode_users(self, fields, histories, lengths):
        assert histories.shape == (1, lengths[0], self.dim)
        assert lengths[0] <= self.history_length
        vectors = histories.sum(axis=1)
        if "taste" in self.state.users.features:
            row = fields.row(0, named=True)
            vectors = vectors + np.array([row["taste"] or [0.0] * self.dim], dtype=np.float32)
            vectors[:, 0] += row["age"] or 0.0
        return vectors.astype(np.float32)


@pytest.fixture
def release_of(tmp_path):
    """A release of these vectors; user rows are (id, fields, history of item rows)."""

    def make(vectors, *, ids=None, attributes=None, popularity=None, users=None, towers=None, engine="exact"):
        n = len(vectors)
        ids = list(range(100, 100 + n)) if ids is None else ids
        items = build_vocabulary(pl.Series(ids), "integer" if isinstance(ids[0], int) else "string")
        known = None
        if users is not None:
            names, fields, histories = zip(*users, strict=True)
            user_ids = build_vocabulary(pl.Series(names), "integer" if isinstance(names[0], int) else "string")
            known = Users(user_ids, frame_of(fields, USER_FEATURES), Sequences.of(histories))
        contents = Contents(
            items=items,
            vectors=np.asarray(vectors, dtype=np.float32),
            attributes=pl.DataFrame(height=n) if attributes is None else pl.DataFrame(attributes),
            popularity=None if popularity is None else np.asarray(popularity, dtype=np.float32),
            users=known,
        )
        with Store.create(tmp_path / "store").draft() as draft:
            name = draft.commit(write_contents(draft.folder, contents, IndexSettings(engine=engine)), activate=True)
        return replace(open_release(Store.open(tmp_path / "store"), name), encoder=towers)

    return make


@pytest.fixture
def recaller_of(release_of):
    return lambda *args, **kwargs: Recaller(LiveIndex.from_release(release_of(*args, **kwargs)))


@pytest.fixture
def towers():
    return lambda length=3, features=USER_FEATURES: HandMadeTowers(4, length, features)
