"""Files of the channels' tables: what is written is read again, and what does not belong to it is refused."""

import shutil

import numpy as np
import polars as pl
import pytest
from support.channel_oracles import make_similar_items

from vecall.channels.channel_tables import ChannelTables
from vecall.data.id_map import build_id_map
from vecall.errors import InvalidReleaseError, StoreError
from vecall.index.settings import IndexSettings
from vecall.release.manifest import MANIFEST_DIGEST_FILE, MANIFEST_FILE, Manifest, digest_files, write_manifest
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.release.writer import ReleaseContents, write_release

LISTS = [[(2, 70), (1, 64)], [], [(0, 0.25)], [(1, 9), (2, 9), (0, 3)]]
FILES = [f"channels/similar.{name}.npy" for name in ("later_shares", "offsets", "rows", "scores", "seed_weights")]


def publish(directory, channels):
    contents = ReleaseContents(
        item_ids=build_id_map(pl.Series(range(4)), "integer"),
        vectors=np.eye(4, dtype=np.float32),
        attributes=pl.DataFrame(height=4),
        channels=channels,
    )
    store = Store.open_or_create(directory)
    with store.create_draft("one") as draft:
        draft.commit(write_release(draft.directory, contents, IndexSettings()), activate=True)
    return store


@pytest.fixture
def store(tmp_path):
    return publish(tmp_path / "store", ChannelTables(similar=make_similar_items(LISTS, [1.0, 0.5])))


def republish(store, change):
    """Change files of the release and write a manifest and CURRENT that match the change."""
    directory, manifest = store.get_release_dir("one"), store.verify("one")
    for name in (MANIFEST_FILE, MANIFEST_DIGEST_FILE):
        (directory / name).unlink()
    change(directory)
    write_manifest(directory, Manifest(**dict(manifest) | {"files": digest_files(directory)}))
    store.activate("one")


def test_tables_are_read_as_they_were_written(store):
    written, read = make_similar_items(LISTS, [1.0, 0.5]), open_release(store).channels.similar
    for name in ("offsets", "rows", "scores", "later_shares", "seed_weights"):
        expected, actual = getattr(written, name), getattr(read, name)
        assert (actual.dtype, actual.tolist()) == (expected.dtype, expected.tolist())
    assert sorted(name for name in open_release(store).manifest.files if "/" in name) == FILES


def test_release_without_channels_has_no_directory(tmp_path):
    store = publish(tmp_path / "store", ChannelTables())
    assert open_release(store).channels.is_empty
    assert not (store.get_release_dir("one") / "channels").exists()


@pytest.mark.parametrize("name", FILES)
def test_damaged_or_missing_file_is_refused_by_name(store, name):
    path = store.get_release_dir("one") / name
    content = path.read_bytes()
    flipped = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in range(0, len(content), 7)]
    for damaged in (*flipped, content[:-1], content + b"\0", b""):
        path.write_bytes(damaged)
        with pytest.raises(InvalidReleaseError) as caught:
            open_release(store)
        assert caught.value.file == name
    path.unlink()
    with pytest.raises(InvalidReleaseError, match="is missing") as caught:
        open_release(store)
    assert caught.value.file == name


@pytest.mark.parametrize("name", ["channels/similar.bak", "channels/deep/file", "channels/deep", "other/file", "other"])
def test_unlisted_file_and_other_directory_are_refused(store, name):
    path = store.get_release_dir("one") / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"") if "." in name or path.name == "file" else path.mkdir()
    with pytest.raises(InvalidReleaseError) as caught:
        open_release(store)
    assert name.startswith(caught.value.file)


def test_link_in_place_of_the_directory_is_refused(store):
    directory = store.get_release_dir("one")
    shutil.move(directory / "channels", store.path / "elsewhere")
    (directory / "channels").symlink_to(store.path / "elsewhere")
    with pytest.raises(InvalidReleaseError, match="a directory or a link"):
        open_release(store)


@pytest.mark.parametrize("name", ["other", "channels/deep"])
def test_other_directory_is_not_published(tmp_path, name):
    draft = tmp_path / "draft"
    (draft / name).mkdir(parents=True)
    with pytest.raises(StoreError, match="no directories but channels/"):
        digest_files(draft)


def cut_offsets(directory):
    np.save(directory / FILES[0], np.load(directory / FILES[0])[:-1])


def cut_rows(directory):
    np.save(directory / FILES[1], np.load(directory / FILES[1])[:-1])


def cut_scores(directory):
    np.save(directory / FILES[2], np.load(directory / FILES[2])[:-1])


def remove_rows(directory):
    (directory / FILES[1]).unlink()


@pytest.mark.parametrize("change", [cut_offsets, cut_rows, cut_scores, remove_rows])
def test_tables_that_do_not_match_are_refused(store, change):
    republish(store, change)
    with pytest.raises(InvalidReleaseError, match=r"channels.*similar\.") as caught:
        open_release(store)
    assert caught.value.file.startswith("channels/similar.")
