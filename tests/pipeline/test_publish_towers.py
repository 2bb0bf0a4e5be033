"""One's own towers as a release: they recall as torch does, take upserts and filters, and mistakes are explained."""

import re

import numpy as np
import polars as pl
import pytest
import torch
from support import own_towers, server
from torch import nn
from torch.nn import functional as F

from vecall import (
    ConfigError,
    DataError,
    DenseTower,
    ExportError,
    IndexSettings,
    Query,
    StoreError,
    TableEncoder,
    fit_encoders,
    open_recaller,
    publish_towers,
)
from vecall.live.compaction import compact
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.schema import Schema

ITEMS, USERS, INTERACTIONS = own_towers.make_tables()
LENGTH = 5


def to_tensors(encoded):
    return {name: torch.from_numpy(array) for name, array in encoded.items()}


def rank_exactly(user_vector, item_vectors, item_ids, k, exclude=()):
    """Ids and scores of the k best items by inner product with the item vectors in half precision."""
    scores = user_vector @ item_vectors.astype(np.float16).astype(np.float32).T
    order = [row for row in np.argsort(-scores, kind="stable") if item_ids[row] not in set(exclude)][:k]
    return [item_ids[row] for row in order], scores[order]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A store with the release `first` of the dense class, trained for a few steps, the trained model, and vectors.

    Those of items are the stored ones: ONNX Runtime and torch differ in the last bits, and so does what these round to.
    """
    item_encoder, user_encoder = fit_encoders(own_towers.SCHEMA, ITEMS, USERS)
    item_x = torch.from_numpy(item_encoder.encode_dense(ITEMS))
    user_x = torch.from_numpy(user_encoder.encode_dense(USERS))
    torch.manual_seed(0)
    model = own_towers.DenseTwoTower(user_encoder.dense_dim, item_encoder.dense_dim)
    row_by_id = {item_id: row for row, item_id in enumerate(ITEMS["item_id"])}
    pairs = torch.tensor([[user, row_by_id[item]] for user, item, _ in INTERACTIONS.iter_rows()])
    own_towers.train_dense(model, user_x, item_x, pairs)
    store = tmp_path_factory.mktemp("dense") / "store"
    name = publish_towers(
        store,
        DenseTower(model.get_user_embedding),
        DenseTower(model.get_item_embedding),
        schema=own_towers.SCHEMA,
        items=ITEMS,
        users=USERS,
        interactions=INTERACTIONS,
        encoders=(item_encoder, user_encoder),
        name="first",
    )
    assert name == "first"
    assert model.training
    model.eval()
    with torch.no_grad():
        user_vectors, item_vectors = model.get_user_embedding(user_x).numpy(), model.get_item_embedding(item_x).numpy()
    with open_recaller(store) as recaller:
        snapshot = recaller.live_index.snapshot
        stored_vectors = snapshot.get_vectors(snapshot.to_rows(ITEMS["item_id"].to_list()))
    np.testing.assert_allclose(stored_vectors, item_vectors, rtol=2**-10, atol=1e-6)
    return store, model, (item_encoder, user_encoder), (user_vectors, stored_vectors)


def test_recall_of_a_dense_class_equals_torch_top_k(dense):
    store, _, _, (user_vectors, item_vectors) = dense
    item_ids = ITEMS["item_id"].to_list()
    with open_recaller(store) as recaller:
        for user in (0, 7, 59):
            seen = INTERACTIONS.filter(pl.col("user_id") == user)["item_id"].to_list()
            for exclude_seen in (True, False):
                ids, scores = rank_exactly(
                    user_vectors[user], item_vectors, item_ids, 50, exclude=seen if exclude_seen else ()
                )
                answer = recaller.recall(Query(user_id=user, k=50, exclude_seen=exclude_seen))
                assert answer.ids == ids
                np.testing.assert_allclose(answer.scores, scores, atol=1e-5)


def test_features_of_a_request_go_through_the_user_tower(dense):
    store, model, (_, user_encoder), (_, item_vectors) = dense
    fields = {"age": 33, "taste": [0.5, -1.0, 0.25, 2.0]}
    with torch.no_grad():
        vector = model.get_user_embedding(torch.from_numpy(user_encoder.encode_dense(pl.DataFrame([fields]))))[0]
    ids, scores = rank_exactly(vector.numpy(), item_vectors, ITEMS["item_id"].to_list(), 30)
    with open_recaller(store) as recaller:
        answer = recaller.recall(Query(user=fields, k=30))
    assert answer.ids == ids
    np.testing.assert_allclose(answer.scores, scores, atol=1e-5)


def test_the_release_is_tuned_and_verified_on_its_users(dense):
    release = open_release(Store.open(dense[0]))
    release.check_golden_queries()
    assert release.golden_queries is not None
    assert len(release.golden_queries.vectors) == own_towers.N_USERS
    assert release.manifest.ann["recall"] == 1.0


def test_upserted_items_are_encoded_by_the_item_tower(dense):
    store, model, (item_encoder, _), (user_vectors, _) = dense
    fields = {"year": 2024, "price": 3.5, "look": [1.0, 0.0, -2.0, 0.5], "title": "New"}
    with torch.no_grad():
        vector = model.get_item_embedding(torch.from_numpy(item_encoder.encode_dense(pl.DataFrame([fields]))))[0]
    with open_recaller(store, writable=True, auto_compact=False) as recaller:
        assert recaller.upsert([{"id": 5, "fields": fields}]) == 1
        answer = recaller.recall(Query(user_id=3, k=10, where=[{"field": "year", "op": "eq", "value": 2024}]))
        assert answer.ids == [5]
        np.testing.assert_allclose(answer.scores, [user_vectors[3] @ vector.numpy()], atol=2e-3)
        assert recaller.delete([5]) == 1


@pytest.mark.examples
def test_a_running_service_switches_to_the_next_release(dense):
    store, model, encoders, _ = dense
    with server.open_test_client(store) as client:
        assert client.post("/v1/recall", json={"user_id": 1, "k": 3}).json()["release"] == "first"
        publish_towers(
            store,
            DenseTower(model.get_user_embedding),
            DenseTower(model.get_item_embedding),
            schema=own_towers.SCHEMA,
            items=ITEMS.head(150),
            users=USERS,
            encoders=encoders,
            name="second",
        )
        server.wait_until(lambda: client.post("/v1/recall", json={"user_id": 1, "k": 3}).json()["release"] == "second")
        answer = client.post("/v1/recall", json={"user_id": 1, "k": 1000}).json()
        assert len(answer["ids"]) == 150
    assert not model.training


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A store of towers that read categories, tags and histories, and the towers."""
    torch.manual_seed(1)
    item_encoder, user_encoder = fit_encoders(own_towers.MIXED_SCHEMA, ITEMS, USERS)
    item_tower = own_towers.MixedItemTower(item_encoder.specs)
    user_tower = own_towers.HistoryUserTower(user_encoder.specs, LENGTH)
    folder = tmp_path_factory.mktemp("mixed")
    paths = {"items": folder / "items.parquet", "users": str(folder / "users.parquet")}
    ITEMS.write_parquet(paths["items"])
    USERS.write_parquet(paths["users"])
    publish_towers(
        folder / "store",
        user_tower,
        item_tower,
        schema=Schema.model_validate(own_towers.MIXED_SCHEMA),
        interactions=INTERACTIONS,
        history_length=LENGTH,
        index=IndexSettings(engine="exact"),
        **paths,
    )
    return folder / "store", user_tower.eval(), item_tower.eval(), (item_encoder, user_encoder)


def encode_mixed_user(mixed, history_ids, fields):
    """The user's vector by torch, from a history of item ids and raw features."""
    store, user_tower, _, (_, user_encoder) = mixed
    release = open_release(Store.open(store))
    rows = release.item_ids.to_rows(history_ids)
    history = torch.zeros(1, LENGTH, 12)
    history[0, : len(rows)] = torch.from_numpy(release.vectors.get_vectors(rows))
    frame = pl.DataFrame([fields], schema={"country": pl.String})
    with torch.no_grad():
        features = to_tensors(user_encoder.encode(frame))
        return user_tower(features, history=history, lengths=torch.tensor([len(rows)]))[0].numpy()


@pytest.mark.parametrize(
    ("query", "history", "fields"),
    [
        ({"user_id": 4}, "stored", {"country": "de"}),
        ({"history": [1001, 1199, 1002]}, [1001, 1199, 1002], {"country": None}),
        ({"history": list(range(1000, 1020)), "user": {"country": "cn"}}, list(range(1015, 1020)), {"country": "cn"}),
        ({"user": {"country": "us"}}, [], {"country": "us"}),
    ],
    ids=["stored user", "history", "history beyond L", "features without a history"],
)
def test_recall_of_a_history_tower_equals_torch_top_k(mixed, query, history, fields):
    store, _, item_tower, (item_encoder, _) = mixed
    if history == "stored":
        history = INTERACTIONS.filter(pl.col("user_id") == 4)["item_id"].to_list()[-LENGTH:]
    with torch.no_grad():
        item_vectors = item_tower(to_tensors(item_encoder.encode(ITEMS))).numpy()
    assert np.linalg.norm(item_vectors, axis=1).max() > 2  # what is not normalized stays so
    vector = encode_mixed_user(mixed, history, fields)
    _, scores = rank_exactly(vector, item_vectors, ITEMS["item_id"].to_list(), 40)
    with open_recaller(store) as recaller:
        answer = recaller.recall(Query(k=40, exclude_seen=False, **query))
    np.testing.assert_allclose(answer.scores, scores, rtol=1e-4, atol=1e-4)


def test_encoders_are_fitted_on_the_tables_if_none_are_given(mixed):
    state = open_release(Store.open(mixed[0])).encoder.state
    assert (state.items, state.users) == (mixed[3][0].state, mixed[3][1].state)


def test_a_compacted_release_keeps_the_towers(mixed, tmp_path):
    import shutil

    shutil.copytree(mixed[0], tmp_path / "store")
    with open_recaller(tmp_path / "store", writable=True, auto_compact=False) as recaller:
        before = recaller.recall(Query(user_id=4, k=5))
        recaller.upsert([{"id": 1, "fields": {"genre": "genre 1", "tags": ["tag 0"], "year": 1}}])
    name = compact(tmp_path / "store")
    with open_recaller(tmp_path / "store") as recaller:
        assert recaller.release == name
        after = recaller.recall(Query(user_id=4, k=5, where=[{"field": "year", "op": "gt", "value": 1}]))
    assert len(after.ids) == len(before.ids) == 5
    open_release(Store.open(tmp_path / "store")).check_golden_queries()


def publish_small(store, user_tower=None, item_tower=None, **changes):
    """Publish linear towers of one vector each; `changes` replace arguments."""
    arguments = {
        "schema": {
            "items": {"id": "item_id", "id_type": "integer", "features": {"look": {"kind": "vector", "size": 4}}},
            "users": {"id": "user_id", "id_type": "integer", "features": {"taste": {"kind": "vector", "size": 4}}},
        },
        "items": ITEMS,
        "users": USERS,
    }
    user_tower = DenseTower(nn.Linear(4, 6)) if user_tower is None else user_tower
    item_tower = DenseTower(nn.Linear(4, 6)) if item_tower is None else item_tower
    return publish_towers(store, user_tower, item_tower, **arguments | changes)


def test_users_without_interactions_tune_the_index_by_their_features(tmp_path):
    publish_small(tmp_path)
    release = open_release(Store.open(tmp_path))
    assert len(release.golden_queries.vectors) == own_towers.N_USERS
    assert release.popularity is None


def test_queries_take_the_place_of_users(tmp_path):
    queries = np.random.default_rng(0).standard_normal((40, 6))
    publish_small(tmp_path, queries=queries)
    golden = open_release(Store.open(tmp_path)).golden_queries
    assert golden.inputs is None
    np.testing.assert_allclose(golden.vectors, queries, rtol=1e-6)


class Tower(nn.Module):
    """A linear tower of `look` or `taste`, around which a function spoils something."""

    def __init__(self, spoil=lambda x, linear: linear(x)):
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.spoil = spoil

    def forward(self, features):
        return self.spoil(next(iter(features.values())), self.linear)


class HistoryTower(nn.Module):
    def forward(self, features, history, lengths):
        return history.sum(1) / lengths.unsqueeze(1)


class LengthsOnly(nn.Module):
    def forward(self, features, lengths):
        return features["taste"]


class MoreArguments(nn.Module):
    def forward(self, features, device_index):
        return features["look"]


class NoArguments(nn.Module):
    def forward(self):
        return None


def branch(x, linear):
    if x.abs().max() > 100:
        x = x / 100
    return linear(x)


@pytest.mark.parametrize(
    ("towers", "message"),
    [
        ({"item_tower": Tower(branch)}, r"item tower: cannot be exported .*test_publish_towers.py, line \d+: if x.abs"),
        ({"user_tower": Tower(lambda x, linear: linear(x) * np.nan)}, "user tower: gives NaN or infinity"),
        ({"user_tower": HistoryTower()}, "user tower: gives NaN .*a history may be empty"),
        ({"user_tower": DenseTower(nn.Linear(4, 5))}, "user tower: gives vectors of 5 dimensions, .* of 6"),
        ({"user_tower": DenseTower(nn.Linear(3, 6))}, r"user tower: forward fails.*shapes.*taste.*\[7, 4\]"),
        ({"item_tower": Tower(lambda x, linear: linear(x)[0])}, r"item tower: .*\[B, D\], got shape \[6\] for B = 7"),
        ({"item_tower": Tower(lambda x, linear: linear(x).sum(1))}, r"item tower: .*got shape \[7\]"),
        ({"item_tower": Tower(lambda x, linear: (linear(x), x))}, "item tower: .*got tuple"),
        ({"item_tower": Tower(lambda x, linear: linear(x).double())}, "item tower: .*float64.*float()"),
        ({"item_tower": Tower(lambda x, linear: linear(x - x.mean(0)))}, "item tower: .*depends on the other rows"),
        ({"item_tower": Tower(lambda x, linear: F.dropout(linear(x)))}, "item tower: .*training=self.training"),
        ({"item_tower": HistoryTower()}, "item tower: .*only the user tower reads histories"),
        ({"user_tower": LengthsOnly()}, "user tower: .*'lengths' alone"),
        ({"item_tower": MoreArguments()}, r"item tower: forward requires \['device_index'\]"),
        ({"item_tower": NoArguments()}, "item tower: forward must take the features"),
        ({"item_tower": F.normalize}, "item tower: expected a torch.nn.Module"),
    ],
)
def test_a_tower_that_cannot_serve_is_named(tmp_path, towers, message):
    with pytest.raises(ExportError, match=message):
        publish_small(tmp_path / "store", **towers)
    assert not list((tmp_path / "store" / "releases").glob("*"))


def test_an_embedding_that_is_too_small_is_found_before_the_catalogue_is_encoded(tmp_path):
    item_encoder, user_encoder = fit_encoders(own_towers.MIXED_SCHEMA, ITEMS, USERS)
    tower = own_towers.MixedItemTower(item_encoder.specs)
    tower.genre = nn.Embedding(item_encoder.specs["genre"].size - 1, 12)
    with pytest.raises(ExportError, match="item tower: forward fails for the smallest and the largest index"):
        publish_towers(
            tmp_path,
            own_towers.HistoryUserTower(user_encoder.specs, LENGTH),
            tower,
            schema=own_towers.MIXED_SCHEMA,
            items=ITEMS,
            users=USERS,
            interactions=INTERACTIONS,
            history_length=LENGTH,
        )


def test_a_tower_that_reads_padding_is_refused(tmp_path):
    class MeanOfPadding(own_towers.MixedItemTower):
        def forward(self, features):
            return self.genre(features["genre"]) + self.tags(features["tags"]).mean(1)

    item_encoder, user_encoder = fit_encoders(own_towers.MIXED_SCHEMA, ITEMS, USERS)
    with pytest.raises(ExportError, match=r"item tower: .*how many zeros pad"):
        publish_towers(
            tmp_path,
            own_towers.HistoryUserTower(user_encoder.specs, LENGTH),
            MeanOfPadding(item_encoder.specs),
            schema=own_towers.MIXED_SCHEMA,
            items=ITEMS,
            users=USERS,
        )


def test_item_vectors_of_real_items_must_be_finite(tmp_path):
    items = ITEMS.with_columns(look=pl.lit([3e19, 0.0, 0.0, 0.0]).cast(pl.List(pl.Float64)))
    with pytest.raises(ExportError, match=r"item tower: gives NaN or numbers beyond .65504 for 200 items, such as"):
        publish_small(tmp_path, item_tower=Tower(lambda x, linear: linear(x * x)), items=items)


def test_user_vectors_of_real_users_must_be_finite(tmp_path):
    users = USERS.with_columns(taste=pl.lit([3e19, 0.0, 0.0, 0.0]).cast(pl.List(pl.Float64)))
    with pytest.raises(ExportError, match="user tower: the vectors of 60 of 60 users are not finite"):
        publish_small(tmp_path, user_tower=Tower(lambda x, linear: linear(x * x)), users=users)


SECTION = {"id": "item_id", "id_type": "integer"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"schema": {"items": SECTION}}, ConfigError, "schema.items.features: is empty"),
        ({"schema": {"items": SECTION | {"colour": 1}}}, ConfigError, "schema.items.colour: unknown key"),
        ({"schema": {}}, ConfigError, "schema.items: is required"),
        ({"schema": "schema.toml"}, ConfigError, "schema: expected a .*Schema or a mapping"),
        ({"users": None}, ConfigError, r"schema.users.features: names \['taste'\], but there is no users table"),
        ({"users": USERS.drop("taste")}, DataError, "users: no column 'taste'"),
        ({"items": [1, 2]}, DataError, "items: expected the path of .*got list"),
        ({"items": "missing.csv"}, DataError, "missing.csv: no such file"),
        (
            {"items": ITEMS.vstack(ITEMS[:1])},
            DataError,
            "items: column 'item_id': expected a unique id.* before the call",
        ),
        ({"queries": np.zeros((3, 5))}, DataError, r"queries must be \[Q, 6\]"),
        ({"queries": np.full((3, 6), np.nan)}, DataError, "queries must be finite"),
        ({"index": "hnsw"}, ConfigError, "index: expected IndexSettings"),
        ({"history_length": 0}, ConfigError, "history_length: expected an integer in 1 .. 1000"),
        ({"encoders": 3}, ConfigError, "encoders: expected the pair"),
        ({"encoders": fit_encoders(own_towers.SCHEMA, ITEMS, USERS)}, ConfigError, "encoder of items was fitted for"),
        ({"journal_seq": 7}, StoreError, "no journal|ends at 0"),
    ],
)
def test_arguments_that_do_not_match_are_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        publish_small(tmp_path / "store", **changes)


def test_a_user_tower_of_nothing_is_refused(tmp_path):
    schema = {
        "items": {"id": "item_id", "id_type": "integer", "features": {"look": {"kind": "vector", "size": 4}}},
    }
    with pytest.raises(ConfigError, match="nothing tells users apart"):
        publish_small(tmp_path, schema=schema, users=None)


def test_towers_keep_the_mode_of_each_module(tmp_path):
    tower = DenseTower(nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5)))
    tower.module[1].eval()  # frozen by its owner
    publish_small(tmp_path, item_tower=tower)
    assert tower.training
    assert tower.module[0].training
    assert not tower.module[1].training


def test_encoders_survive_json():
    for encoder in fit_encoders(own_towers.MIXED_SCHEMA, ITEMS, USERS):
        copy = TableEncoder.from_json(encoder.to_json())
        assert copy.state == encoder.state
    with pytest.raises(ConfigError, match="not the JSON of a TableEncoder"):
        TableEncoder.from_json("{}")


def test_dense_tower_concatenates_in_the_order_of_the_schema():
    features = {"b": torch.ones(2, 2), "a": torch.full((2, 1), 5.0)}
    assert DenseTower(nn.Identity())(features).tolist() == [[1, 1, 5], [1, 1, 5]]
    assert DenseTower(nn.Identity(), features=["a", "b"])(features).tolist() == [[5, 1, 1], [5, 1, 1]]


def test_dense_tower_trains_the_module_behind_a_method():
    model = own_towers.DenseTwoTower(2, 3, 4, [5])
    tower = DenseTower(model.get_item_embedding)
    assert {id(p) for p in tower.parameters()} == {id(p) for p in model.parameters()}
    tower.eval()
    assert not model.training


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: DenseTower(F.normalize), "expected a torch.nn.Module or a bound method"),
        (lambda: DenseTower("model"), "expected a torch.nn.Module or a bound method"),
        (lambda: DenseTower(nn.Identity(), features=["c"])({"a": torch.ones(1, 1)}), r"no features named \['c'\]"),
        (lambda: DenseTower(nn.Identity())({"a": torch.ones(1, 1).long()}), r"features \['a'\] are not dense"),
    ],
)
def test_dense_tower_explains_a_mistake(use, message):
    with pytest.raises(ConfigError, match=message):
        use()


def test_encode_dense_needs_a_dense_feature():
    encoder, _ = fit_encoders(own_towers.MIXED_SCHEMA, ITEMS, USERS)
    assert encoder.dense_dim == 0
    with pytest.raises(DataError, match=re.escape("the schema names ['genre', 'tags']")):
        encoder.encode_dense(ITEMS)
