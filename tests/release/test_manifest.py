"""Every byte of a release counts: each damage is refused, under the name of the damaged file."""

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
from vecall.release.atomic_io import write_array, write_table
from vecall.release.manifest import IndexInfo, ReleaseMetadata, digest_files, read_manifest, verify_release
from vecall.release.store import Store

FLIPS = (0x01, 0x20, 0xFF)  # 0x20 turns a letter's case
SUM, JSON = "manifest.sha256", "manifest.json"


def described(**fields):
    return ReleaseMetadata(**{"items": 40, "dim": 16, "id_type": "string", "index": IndexInfo(engine="exact")} | fields)


def write_release(folder):
    """A file of each kind, of up to some KiB."""
    rng = np.random.default_rng(0)
    ExactIndex.build(rng.standard_normal((40, 16), dtype=np.float32)).save(folder / "index.faiss")
    write_array(folder / "item_ids.npy", np.arange(40))
    write_table(folder / "ids.arrow", pl.DataFrame({"id": [f"物{i}" for i in range(40)]}))
    (folder / "encoders.json").write_text(json.dumps({"year": {"mean": 1990.5}}))
    (folder / "query_tower.onnx").write_bytes(rng.bytes(3000))
    (folder / "empty.bin").write_bytes(b"")


@pytest.fixture
def store(tmp_path):
    store = Store.create(tmp_path / "store")
    with store.create_draft("one") as draft:
        write_release(draft.directory)
        draft.commit(described(), activate=True)
    return store


def refusal(check):
    """The file that is blamed; its name stands in the message too."""
    with pytest.raises(InvalidReleaseError) as refused:
        check()
    assert refused.value.file in str(refused.value)
    return refused.value.file


def positions(size):
    return range(size) if size <= 400 else sorted({*range(60), *range(size - 60, size), *range(0, size, size // 100)})


def test_an_untouched_release_passes(store):
    manifest = store.verify()
    assert manifest == store.verify("one") == store.releases()[0]
    assert set(manifest.files) == {entry.name for entry in store.folder("one").iterdir()} - {SUM, JSON}
    assert manifest.bytes == sum((store.folder("one") / name).stat().st_size for name in manifest.files)


def test_every_flipped_byte_and_every_cut_is_refused_by_name(store):
    checked = {}
    for path in [*store.folder("one").iterdir(), store.path / "CURRENT"]:
        content = path.read_bytes()
        places = positions(len(content))
        assert len(places) >= min(200, len(content))
        for place in places:
            for bits in FLIPS if len(content) <= 400 else FLIPS[place % 3 :][:1]:
                damaged = bytearray(content)
                damaged[place] ^= bits
                path.write_bytes(damaged)
                assert refusal(store.verify) == path.name, (place, bits)
        for length in {0, 1, len(content) // 2, len(content) - 1} & set(range(len(content))):
            path.write_bytes(content[:length])
            assert refusal(store.verify) == path.name, length
        path.write_bytes(content + b"\n")
        assert refusal(store.verify) == path.name
        path.write_bytes(content)
        checked[path.name] = len(places)
    store.verify()
    assert len(checked) == 9
    assert min(checked[name] for name in ("index.faiss", "ids.arrow", "query_tower.onnx", JSON)) >= 200


def test_every_missing_file_is_refused_by_name(store):
    for path in store.folder("one").iterdir():
        content = path.read_bytes()
        path.unlink()
        assert refusal(store.verify) == path.name
        path.write_bytes(content)
    store.verify()


def test_a_wrong_size_is_said_before_anything_is_summed(store, monkeypatch):
    monkeypatch.setattr("vecall.release.manifest.sha256", lambda path: pytest.fail("too late"))
    (store.folder("one") / "query_tower.onnx").write_bytes(b"short")
    with pytest.raises(InvalidReleaseError, match=r"query_tower\.onnx has 5 bytes; the manifest says 3000"):
        store.verify()


def a_file(path):
    path.write_bytes(b"")


def a_folder(path):
    path.mkdir()


def a_link(path):
    path.symlink_to("index.faiss")


@pytest.mark.parametrize("make", [a_file, a_folder, a_link, os.mkfifo])
@pytest.mark.parametrize("name", ["extra.bin", ".hidden", "tmp-1"])
def test_whatever_the_manifest_does_not_name_is_refused(store, make, name):
    make(store.folder("one") / name)
    assert refusal(store.verify) == name


def test_a_link_is_refused_even_to_the_right_bytes(store, tmp_path):
    path = store.folder("one") / "index.faiss"
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert refusal(store.verify) == "index.faiss"


def test_without_a_third_witness_both_are_named(store):
    folder = store.folder("one")
    (folder / SUM).write_text("0" * 64 + "\n")
    with pytest.raises(InvalidReleaseError, match=rf"{JSON} and {SUM}"):
        verify_release(folder)


def rewrite(folder, change):
    """A manifest that somebody changed, with a sum that fits."""
    fields = json.loads((folder / JSON).read_bytes())
    change(fields)
    content = json.dumps(fields).encode()
    (folder / JSON).write_bytes(content)
    (folder / SUM).write_text(hashlib.sha256(content).hexdigest() + "\n")


def test_an_exchanged_manifest_is_not_the_current_one(store):
    rewrite(store.folder("one"), lambda fields: fields.update(items=41))
    assert refusal(store.verify) == "CURRENT"
    assert verify_release(store.folder("one")).items == 41


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3, "new": 1}, "newer vecall"),
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
def test_manifests_that_say_something_else_are_refused(store, change, message):
    rewrite(store.folder("one"), lambda fields: fields.update(change))
    with pytest.raises(InvalidReleaseError, match=message) as refused:
        read_manifest(store.folder("one"))
    assert refused.value.file == JSON
    assert JSON in str(refused.value)


@pytest.mark.parametrize("content", [b"[]", b"{}", b"1", b"\xff", b"{"])
def test_what_is_no_manifest_is_refused(store, content):
    folder = store.folder("one")
    (folder / JSON).write_bytes(content)
    (folder / SUM).write_text(hashlib.sha256(content).hexdigest() + "\n")
    assert refusal(lambda: verify_release(folder)) == JSON


@pytest.mark.parametrize("make", [a_folder, a_link])
def test_folders_and_links_do_not_become_part_of_a_release(tmp_path, make):
    make(tmp_path / "thing")
    with pytest.raises(StoreError, match="thing"):
        digest_files(tmp_path)


def test_numbers_that_json_has_not_are_refused_before_anything_is_written():
    with pytest.raises(ValidationError, match="finite"):
        described(metrics={"recall@10": float("nan")})
