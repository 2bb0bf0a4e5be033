"""Every byte of a release counts: any damage is refused, and the error names the damaged file."""

import hashlib
import json
import os
import shutil

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from vecall.errors import InvalidReleaseError, StoreError
from vecall.index.exact import ExactIndex
from vecall.release.file_io import write_array, write_table
from vecall.release.manifest import (
    MANIFEST_DIGEST_FILE,
    MANIFEST_FILE,
    IndexInfo,
    ReleaseMetadata,
    digest_files,
    read_manifest,
    verify_release,
)
from vecall.release.store import Store

FLIPPED_BITS = (0x01, 0x20, 0xFF)  # 0x20 changes the case of a letter


def make_metadata(**fields):
    return ReleaseMetadata(**{"items": 40, "dim": 16, "id_type": "string", "index": IndexInfo(engine="exact")} | fields)


def write_files(directory):
    """Write a file of each kind, of up to some KiB."""
    rng = np.random.default_rng(0)
    ExactIndex.build(rng.standard_normal((40, 16), dtype=np.float32)).save(directory / "index.faiss")
    write_array(directory / "item_ids.npy", np.arange(40))
    write_table(directory / "ids.arrow", pl.DataFrame({"id": [f"物{i}" for i in range(40)]}))
    (directory / "encoders.json").write_text(json.dumps({"year": {"mean": 1990.5}}))
    (directory / "query_tower.onnx").write_bytes(rng.bytes(3000))
    (directory / "empty.bin").write_bytes(b"")


@pytest.fixture
def store(tmp_path):
    store = Store.open_or_create(tmp_path / "store")
    with store.create_draft("one") as draft:
        write_files(draft.directory)
        draft.commit(make_metadata(), activate=True)
    return store


@pytest.fixture
def release_dir(store):
    return store.get_release_dir("one")


def get_blamed_file(check):
    """Return the file that the error names, as an attribute and in its message."""
    with pytest.raises(InvalidReleaseError) as caught:
        check()
    assert caught.value.file in str(caught.value)
    return caught.value.file


def sample_positions(size):
    return range(size) if size <= 400 else sorted({*range(60), *range(size - 60, size), *range(0, size, size // 100)})


def test_undamaged_release_is_verified(store, release_dir):
    manifest = store.verify()
    assert manifest == store.verify("one") == store.list_releases()[0]
    assert set(manifest.files) == {path.name for path in release_dir.iterdir()} - {MANIFEST_DIGEST_FILE, MANIFEST_FILE}
    assert manifest.total_bytes == sum((release_dir / name).stat().st_size for name in manifest.files)


def test_flipped_truncated_and_extended_files_are_refused_by_name(store, release_dir):
    tested = {}
    for path in [*release_dir.iterdir(), store.path / "CURRENT"]:
        content = path.read_bytes()
        positions = sample_positions(len(content))
        assert len(positions) >= min(200, len(content))
        for position in positions:
            for bits in FLIPPED_BITS if len(content) <= 400 else FLIPPED_BITS[position % 3 :][:1]:
                damaged = bytearray(content)
                damaged[position] ^= bits
                path.write_bytes(damaged)
                assert get_blamed_file(store.verify) == path.name, (position, bits)
        for length in {0, 1, len(content) // 2, len(content) - 1} & set(range(len(content))):
            path.write_bytes(content[:length])
            assert get_blamed_file(store.verify) == path.name, length
        path.write_bytes(content + b"\n")
        assert get_blamed_file(store.verify) == path.name
        path.write_bytes(content)
        tested[path.name] = len(positions)
    store.verify()
    assert len(tested) == 9
    assert min(tested[name] for name in ("index.faiss", "ids.arrow", "query_tower.onnx", MANIFEST_FILE)) >= 200


def test_missing_file_is_refused_by_name(store, release_dir):
    for path in release_dir.iterdir():
        content = path.read_bytes()
        path.unlink()
        assert get_blamed_file(store.verify) == path.name
        path.write_bytes(content)
    store.verify()


def test_wrong_size_is_reported_before_any_digest_is_computed(store, release_dir, monkeypatch):
    monkeypatch.setattr("vecall.release.manifest.compute_sha256", lambda path: pytest.fail("too late"))
    (release_dir / "query_tower.onnx").write_bytes(b"short")
    with pytest.raises(InvalidReleaseError, match=r"query_tower\.onnx has 5 bytes; the manifest lists 3000"):
        store.verify()


def make_file(path):
    path.write_bytes(b"")


def make_directory(path):
    path.mkdir()


def make_link(path):
    path.symlink_to("index.faiss")


@pytest.mark.parametrize("make", [make_file, make_directory, make_link, os.mkfifo])
@pytest.mark.parametrize("name", ["extra.bin", ".hidden", "tmp-1"])
def test_entry_that_the_manifest_does_not_list_is_refused(store, release_dir, make, name):
    make(release_dir / name)
    assert get_blamed_file(store.verify) == name


def test_link_to_identical_content_is_refused(store, release_dir, tmp_path):
    path = release_dir / "index.faiss"
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert get_blamed_file(store.verify) == "index.faiss"


def test_digest_mismatch_without_current_names_both_files(release_dir):
    (release_dir / MANIFEST_DIGEST_FILE).write_text("0" * 64 + "\n")
    with pytest.raises(InvalidReleaseError, match=rf"{MANIFEST_FILE} and {MANIFEST_DIGEST_FILE}"):
        verify_release(release_dir)


def rewrite_manifest(directory, changes):
    """Change keys of a manifest and write the digest that belongs to it."""
    content = json.dumps(json.loads((directory / MANIFEST_FILE).read_bytes()) | changes).encode()
    (directory / MANIFEST_FILE).write_bytes(content)
    (directory / MANIFEST_DIGEST_FILE).write_text(hashlib.sha256(content).hexdigest() + "\n")


def test_replaced_manifest_with_valid_digest_does_not_match_current(store, release_dir):
    rewrite_manifest(release_dir, {"items": 41})
    assert get_blamed_file(store.verify) == "CURRENT"
    assert verify_release(release_dir).items == 41


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": 5, "new": 1},
            r"has format 5, written by a newer vecall; this version reads format 4\. Upgrade vecall",
        ),
        (
            {"format": 2},
            r"has format 2, written by an older vecall; this version reads format 4\. Publish it again",
        ),
        ({"format": 1}, "has format 1, written by an older vecall"),
        ({"format": 0}, "format"),
        ({"format": "1"}, "format"),
        ({"surprise": 1}, "surprise"),
        ({"name": "two"}, "'two'"),
        ({"items": 0}, "items"),
        ({"created": "2026-11-24T15:55:01"}, "created"),
        ({"files": {"index.faiss": {"bytes": 1, "sha256": "x"}}}, r"files\.index\.faiss\.sha256"),
        ({"parent": "../one"}, "parent"),
    ],
)
def test_manifest_of_another_format_or_with_invalid_keys_is_refused(release_dir, changes, message):
    rewrite_manifest(release_dir, changes)
    with pytest.raises(InvalidReleaseError, match=message) as caught:
        read_manifest(release_dir)
    assert caught.value.file == MANIFEST_FILE
    assert MANIFEST_FILE in str(caught.value)


@pytest.mark.parametrize("content", [b"[]", b"{}", b"1", b"\xff", b"{"])
def test_manifest_that_is_not_a_manifest_object_is_refused(release_dir, content):
    (release_dir / MANIFEST_FILE).write_bytes(content)
    (release_dir / MANIFEST_DIGEST_FILE).write_text(hashlib.sha256(content).hexdigest() + "\n")
    assert get_blamed_file(lambda: verify_release(release_dir)) == MANIFEST_FILE


@pytest.mark.parametrize("make", [make_directory, make_link])
def test_directories_and_links_cannot_be_published(tmp_path, make):
    make(tmp_path / "thing")
    with pytest.raises(StoreError, match="thing"):
        digest_files(tmp_path)


def test_metadata_refuses_numbers_that_json_lacks():
    with pytest.raises(ValidationError, match="finite"):
        make_metadata(metrics={"recall@10": float("nan")})
