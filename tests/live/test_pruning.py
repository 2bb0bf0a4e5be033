import json

import numpy as np
import pytest

from vecall.errors import InvalidReleaseError, StoreError
from vecall.live import compaction as compact_file
from vecall.live import live_index, switching
from vecall.live.journal import Journal
from vecall.live.operations import Operation
from vecall.live.pruning import (
    PruneResult,
    check_journal_covers,
    check_tables_seq,
    find_max_prunable_seq,
    get_journal_path,
    prune_store,
)
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.recaller import open_recaller
from vecall.release import release as release_module

EYE = np.eye(3, dtype=np.float32)


@pytest.fixture
def store(store_of):
    return store_of([1, 2, 3], EYE)


def write(store, count):
    with Journal.open(get_journal_path(store), "integer") as journal:
        return journal.append(
            [Operation(0, "delete", 100 + i, None, None, None, has_external_vector=False) for i in range(count)]
        )


def publish(store, name, journal_seq=0):
    publish_vectors(store.path, [1, 2, 3], EYE, name=name, journal_seq=journal_seq)


def test_what_no_release_and_no_table_is_without(store):
    write(store, 9)
    for name, seq in (("two", 4), ("three", 7)):
        publish(store, name, seq)
    made = {one.name: one for one in store.releases()}
    assert [(one.journal_seq, one.declared_seq) for one in made.values()] == [(7, 7), (4, 4), (0, 0)]
    compacted = made["three"].model_copy(update={"journal_seq": 9})
    assert find_max_prunable_seq([]) == 0
    assert (
        find_max_prunable_seq([made["three"], made["two"], made["one"]]) == 0
    )  # `one` may be activated, and has none of them
    assert find_max_prunable_seq([made["three"], made["two"]]) == 4
    assert find_max_prunable_seq([made["three"]]) == 7
    assert find_max_prunable_seq([compacted, made["three"]]) == 7
    assert find_max_prunable_seq([compacted]) == 7  # the tables have no more, and may be published again
    assert find_max_prunable_seq([made["two"], compacted]) == 4


def test_pruning_beside_a_writer(store):
    with open_recaller(store.path, writable=True) as recaller:
        assert recaller.delete([1]) == 1
        recaller.upsert([{"id": 9, "vector": EYE[0].tolist()}])
        assert prune_store(store, 0) == PruneResult([], 0)
        for name in ("two", "three", "four"):
            publish(store, name, 1)
        assert prune_store(store, 0) == PruneResult(["two", "one"], 1)
        assert prune_store(store, 0) == PruneResult([], 0)
        assert recaller.live_index.upsert([{"id": 8, "vector": EYE[0].tolist()}]).seq == 3
        assert recaller.activate("four") == "four"  # whose tables hold the deleted item: that was said
        assert sorted(recaller.recall(_all()).ids) == [1, 2, 3, 8, 9]
    with open_recaller(store.path) as reader:
        assert sorted(reader.recall(_all()).ids) == [1, 2, 3, 8, 9]
    with pytest.raises(StoreError, match="keep is -1"):
        prune_store(store, -1)


def _all():
    from vecall.recall.query import Query

    return Query(vector=[1, 1, 1], k=99)


def test_without_a_journal_releases_alone_are_pruned(store):
    for name in ("two", "three"):
        publish(store, name)
    assert prune_store(store, 1) == PruneResult(["one"], 0)
    assert not get_journal_path(store).exists()


def test_tables_cannot_hold_what_was_never_written(store):
    check_tables_seq(store, "integer", 0)
    with pytest.raises(StoreError, match=r"journal_seq is 1, but the journal of .* ends at 0"):
        publish(store, "two", 1)
    write(store, 5)
    publish(store, "two", 5)
    with pytest.raises(StoreError, match=r"journal_seq is 6, but the journal of .* ends at 5"):
        publish(store, "three", 6)
    assert [one.name for one in store.releases()] == ["two", "one"]


def test_a_lost_journal_is_not_written_to(store):
    """Its numbers would begin again, and releases would take new operations for old ones."""
    write(store, 5)
    publish(store, "two", 5)
    for file in store.path.glob("journal.sqlite*"):
        file.unlink()
    for release in (None, "one"):
        with pytest.raises(StoreError, match="release 'two' contains operations up to 5, but the journal ends at 0"):
            open_recaller(store.path, release=release, writable=True)
    with open_recaller(store.path) as reader:  # reading does no harm
        assert len(reader.recall(_all()).ids) == 3
    with Journal.open(get_journal_path(store), "integer") as journal:
        check_journal_covers(journal, [])


def test_a_manifest_of_format_1_opens(store):
    """Older releases lack what came with live changes; they contain and declare nothing."""
    import hashlib

    publish(store, "two")
    folder = store.folder("one")
    said = json.loads((folder / "manifest.json").read_bytes())
    del said["declared_seq"]
    content = json.dumps(said | {"format": 1}).encode()
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(InvalidReleaseError):
        store.verify("one")
    (folder / "manifest.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")
    assert (store.verify("one").format, store.verify("one").declared_seq, store.verify("two").format) == (1, 0, 2)
    with open_recaller(store.path, release="one") as reader:
        assert len(reader.recall(_all()).ids) == 3


@pytest.mark.parametrize("how", ["open", "activate", "compact"])
def test_a_release_that_is_pruned_while_it_is_read_is_refused(store, monkeypatch, how):
    """It would be without operations that were pruned with it."""
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.upsert([{"id": 9, "vector": EYE[0].tolist()}])
        for name in ("two", "three"):
            publish(store, name, 1)
        recaller.activate("three")
        recaller.delete([1])

        def pruned_at_once(*args):
            release = release_module.open_release(*args)
            assert prune_store(store, 0) == PruneResult(["one"], 1)
            return release

        monkeypatch.setattr(compact_file if how == "compact" else live_index, "open_release", pruned_at_once)
        monkeypatch.setattr(switching, "prove_release", pruned_at_once)
        with pytest.raises(StoreError, match="has no release 'one'"):
            {
                "open": lambda: open_recaller(store.path, release="one"),
                "activate": lambda: recaller.live_index._switcher._prepare(store, "one"),
                "compact": lambda: compact_file.compact(store.path, release="one"),
            }[how]()
