"""No skew: the features that a ranker is trained on are, bit by bit, those of a request."""

from dataclasses import replace

import numpy as np
import pytest
from support import synthetic

from vecall.channels.merge_plan import VECTORS_ALONE
from vecall.channels.settings import ChannelsSettings
from vecall.data.frames import is_empty_row
from vecall.data.ragged import count_rows
from vecall.data.split import TRAIN
from vecall.evaluation.compare import ServedModel
from vecall.index.settings import IndexSettings
from vecall.live.live_index import LiveIndex
from vecall.pipeline.channel_building import build_channel_tables
from vecall.pipeline.channel_recall import ChannelRecaller
from vecall.pipeline.ranker_candidates import RecalledLists
from vecall.ranking.features import select_features
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import ReleaseContents, write_release

DEPTH = 20


@pytest.fixture
def data(tmp_path):
    """Data set and split, and the release of the training part."""
    synthetic.write_tables(tmp_path)
    config = synthetic.make_config(tmp_path)
    dataset = synthetic.load_dataset(config)
    split, catalogue = dataset.split(config.data), dataset.catalogue
    vectors = np.random.default_rng(0).standard_normal((len(catalogue.items), 4)).astype(np.float32)
    positives = dataset.interactions.positives.filter(split.positive_parts == TRAIN)
    contents = ReleaseContents(
        item_ids=catalogue.items,
        vectors=vectors,
        attributes=catalogue.item_attributes,
        popularity=count_rows(split.train.values, len(vectors)).astype(np.float32),
        users=UserTable(catalogue.users, catalogue.user_features, split.train),
        channels=build_channel_tables(ChannelsSettings(), dataset, positives),
    )
    with Store.open_or_create(tmp_path / "store").create_draft("training") as draft:
        draft.commit(write_release(draft.directory, contents, IndexSettings(engine="exact")), activate=True)
    return dataset, split, open_release(Store.open(tmp_path / "store"))


def test_features_in_training_equal_those_of_a_request_bit_by_bit(data, make_encoder):
    dataset, split, release = data
    encoder = make_encoder(3, dict(dataset.schema.users.features))
    recaller = Recaller(LiveIndex.from_release(replace(release, encoder=encoder)))
    user_features = dataset.catalogue.user_features

    def encode_users(cases):
        histories = cases.histories.truncate_to_last(encoder.history_length)
        return np.concatenate(
            [
                encoder.encode_users(user_features[[user]], release.vectors.get_vectors(rows)[None], [len(rows)])
                for user, rows in zip(cases.users.tolist(), map(histories.__getitem__, range(len(cases))), strict=True)
            ]
        )

    served_model = ServedModel(
        encode_users=encode_users,
        index=release.index,
        search_param_curve=None,
        engine="exact",
        cost_model=release.cost_model,
        has_features_by_user=~is_empty_row(user_features),
        reads_history=True,
    )
    offline = ChannelRecaller.build(ChannelsSettings(), dataset, split, served_model)
    queries = offline.build_queries(split.valid, exclude_seen=True)
    lists = RecalledLists(offline.snapshot, queries, split.valid.targets, VECTORS_ALONE, DEPTH)
    tables = [lists[case].columns.to_frame() for case in range(len(lists))]
    features = select_features(tables[0], ("vector",), dataset.catalogue.item_attributes, user_features)
    assert {
        "vector.score:gap",
        "user.type:category",
        "history.share.type",
        "history.cosine_max",
        "history.similar_sum",
        "history.next_last",
        "item.recent_popularity:log",
        "item.recent_share",
        "year",
    } <= set(features.names)
    user_ids = dataset.catalogue.users.to_ids(split.valid.users)
    for case, user_id in enumerate(user_ids):
        table = recaller.candidates(Query(user_id=user_id, k=DEPTH, channels=["vector"]))
        assert table.columns == tables[case].columns
        trained, served = features.build_matrix(tables[case]), features.build_matrix(table)
        assert trained.tobytes() == served.tobytes(), user_id
        assert (
            lists[case].is_target.tolist()
            == np.isin(table["id"], dataset.catalogue.items.to_ids(split.valid.targets[case])).tolist()
        )
