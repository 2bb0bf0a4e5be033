import numpy as np
import pytest
from support import synthetic

from vecall.channels.settings import ChannelsSettings
from vecall.channels.similar_builder import build_similar_items
from vecall.config import parse_config
from vecall.errors import StoreError
from vecall.pipeline import channel_building
from vecall.pipeline.channel_building import build_channel_tables
from vecall.pipeline.run import Run
from vecall.release.release import open_release
from vecall.release.store import Store


@pytest.fixture(scope="module")
def dataset(published):
    return synthetic.load_dataset(synthetic.make_config(published))


def test_similar_items_are_those_that_the_same_users_took(dataset):
    similar = build_channel_tables(ChannelsSettings(), dataset, dataset.interactions.positives).similar
    groups = np.array([999 - int(item_id.split("-")[1]) for item_id in dataset.catalogue.item_ids]) % synthetic.GROUPS
    for row in range(synthetic.ITEMS):
        rows, similarities = similar.get_neighbors(row)
        assert set(rows.tolist()) == set(np.flatnonzero(groups == groups[row]).tolist()) - {row}
        assert (np.diff(similarities) <= 0).all()


def test_published_release_has_the_channels_of_all_positives(published, dataset):
    run, release = Run.open(published / "run"), open_release(Store.open(published / "store"))
    built = build_channel_tables(run.channels, dataset, dataset.interactions.positives).similar
    assert release.channels.facts.second_order == run.summary.similar.second_order
    assert run.summary.similar.reason
    for name in ("offsets", "rows", "scores", "later_shares"):
        np.testing.assert_array_equal(getattr(release.channels.similar, name), getattr(built, name))


def test_neighbors_of_neighbors_count_as_the_settings_say(dataset):
    positives = dataset.interactions.positives

    def build(second_order):
        return build_channel_tables(ChannelsSettings(similar={"second_order": second_order}), dataset, positives)

    tables, plain = build(0.5), build("auto")
    assert (tables.facts.second_order, plain.facts.second_order) == (0.5, 0)
    np.testing.assert_array_equal(plain.similar.scores, build(0).similar.scores)
    expected = build_similar_items(dataset.histories, synthetic.ITEMS, second_order=0.5)
    np.testing.assert_array_equal(tables.similar.rows, expected.rows)
    np.testing.assert_array_equal(tables.similar.scores, expected.scores)
    assert tables.similar.scores.sum() > plain.similar.scores.sum()


def test_found_weight_replaces_auto_alone():
    channels = ChannelsSettings(similar={"second_order": 0.25})
    assert ChannelsSettings().resolve_second_order(1.0).similar.second_order == 1
    assert channels.resolve_second_order(1.0) == channels
    assert ChannelsSettings(similar=False).resolve_second_order(1.0).similar is False


def test_channel_that_is_turned_off_or_has_nothing_to_build_from_is_left_out(dataset):
    positives = dataset.interactions.positives
    off = build_channel_tables(ChannelsSettings(similar=False, popular=False, repeat=False), dataset, positives)
    assert (off.similar, off.popular, off.facts.popular, off.facts.repeat) == (None, None, False, False)
    nothing = positives.filter(np.zeros(len(positives.items), dtype=bool))
    tables = build_channel_tables(ChannelsSettings(), dataset, nothing)
    assert tables.similar is None
    assert not tables.popular.counts.any()


def test_channel_is_left_out_with_a_warning_where_memory_is_too_small(dataset, monkeypatch, caplog):
    monkeypatch.setattr(channel_building, "available_memory_bytes", lambda: 2**20)
    assert build_channel_tables(ChannelsSettings(), dataset, dataset.interactions.positives).similar is None
    assert "left out the channel similar" in caplog.text


@pytest.mark.parametrize(
    ("time", "split", "has_order"),
    [("time", "random", True), (None, "random", False), (None, "leave_one_out", True)],
)
def test_newest_items_count_most_unless_a_split_without_times_is_random(tmp_path, time, split, has_order):
    synthetic.write_tables(tmp_path)
    settings = synthetic.make_config(tmp_path, data={"split": split}).as_json()
    settings["schema"]["interactions"]["time"] = time
    dataset = synthetic.load_dataset(parse_config(settings))
    assert dataset.has_order == has_order
    tables = build_channel_tables(ChannelsSettings(), dataset, dataset.interactions.positives)
    assert tables.similar.seed_weights.tolist() == ([0.9**age for age in range(10)] if has_order else [1.0] * 200)
    assert (tables.popular.counts.sum() < len(dataset.interactions.positives.items)) == has_order


def test_directory_in_which_the_tables_cannot_be_written_is_named(dataset, tmp_path):
    with pytest.raises(StoreError, match=r"nowhere could not be written"):
        build_channel_tables(
            ChannelsSettings(), dataset, dataset.interactions.positives, scratch_dir=tmp_path / "nowhere"
        )
