"""Pruning of releases and operations, and checks that releases and the journal belong together."""

import hashlib
import json
from contextlib import ExitStack

import numpy as np
import pytest

from vecall.errors import InvalidReleaseError, StoreError
from vecall.live import compaction, live_index, switching
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
from vecall.pipeline import publish_vectors as publish_module
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release import release as release_module

EYE = np.eye(3, dtype=np.float32)
ALL_ITEMS = Query(vector=[1, 1, 1], k=99)


@pytest.fixture
def store(make_store):
    return make_store([1, 2, 3], EYE)


def append_deletes(store, count):
    with Journal.open(get_journal_path(store), "integer") as journal:
        return journal.append(
            [Operation(0, "delete", 100 + i, None, None, None, has_external_vector=False) for i in range(count)]
        )


def publish(store, name, journal_seq=0):
    publish_vectors(store.path, [1, 2, 3], EYE, name=name, journal_seq=journal_seq)


def test_operations_are_prunable_up_to_the_first_that_a_release_or_the_tables_lack(store):
    append_deletes(store, 9)
    for name, seq in (("two", 4), ("three", 7)):
        publish(store, name, seq)
    manifests = {manifest.name: manifest for manifest in store.list_releases()}
    assert [(m.journal_seq, m.tables_seq) for m in manifests.values()] == [(7, 7), (4, 4), (0, 0)]
    one, two, three = (manifests[name] for name in ("one", "two", "three"))
    compacted = three.model_copy(update={"journal_seq": 9})
    assert find_max_prunable_seq([]) == 0
    assert find_max_prunable_seq([three, two, one]) == 0  # `one` may be activated, and contains no operation
    assert find_max_prunable_seq([three, two]) == 4
    assert find_max_prunable_seq([three]) == 7
    assert find_max_prunable_seq([compacted, three]) == 7
    assert find_max_prunable_seq([compacted]) == 7  # the tables contain no more, and may be published again
    assert find_max_prunable_seq([two, compacted]) == 4


def test_pruning_does_not_disturb_a_writer(store):
    with open_recaller(store.path, writable=True) as recaller:
        assert recaller.delete([1]) == 1
        recaller.upsert([{"id": 9, "vector": EYE[0].tolist()}])
        assert prune_store(store, 0) == PruneResult([], 0)
        for name in ("two", "three", "four"):
            publish(store, name, 1)
        assert prune_store(store, 0) == PruneResult(["two", "one"], 1)
        assert prune_store(store, 0) == PruneResult([], 0)
        assert recaller.live_index.upsert([{"id": 8, "vector": EYE[0].tolist()}]).seq == 3
        # The tables of `four` contain the deleted item 1, although their journal_seq covers the delete.
        assert recaller.activate("four") == "four"
        assert sorted(recaller.recall(ALL_ITEMS).ids) == [1, 2, 3, 8, 9]
    with open_recaller(store.path) as reader:
        assert sorted(reader.recall(ALL_ITEMS).ids) == [1, 2, 3, 8, 9]
    with pytest.raises(StoreError, match="keep is -1"):
        prune_store(store, -1)


def test_store_without_a_journal_can_be_pruned(store):
    for name in ("two", "three"):
        publish(store, name)
    assert prune_store(store, 1) == PruneResult(["one"], 0)
    assert not get_journal_path(store).exists()


def test_publishing_rejects_a_journal_seq_beyond_the_journal(store):
    check_tables_seq(store, "integer", 0)
    with pytest.raises(StoreError, match=r"journal_seq is 1, but the journal of .* ends at 0"):
        publish(store, "two", 1)
    append_deletes(store, 5)
    publish(store, "two", 5)
    with pytest.raises(StoreError, match=r"journal_seq is 6, but the journal of .* ends at 5"):
        publish(store, "three", 6)
    assert [manifest.name for manifest in store.list_releases()] == ["two", "one"]


def test_publishing_of_tables_older_than_the_journal_is_rejected(store, caplog):
    """The operations between them would be lost without a word."""
    append_deletes(store, 5)
    for name in ("two", "three", "four"):
        publish(store, name, 4)
    assert prune_store(store, 0).operation_count == 4
    with pytest.raises(StoreError, match=r"journal_seq is 3, but the journal of .* was pruned up to 4"):
        publish(store, "five", 3)
    check_tables_seq(store, "integer", 4)
    assert not caplog.records
    check_tables_seq(store, "integer", 0)  # tables of which nothing is said
    assert "was pruned up to 4" in caplog.text


def test_release_whose_operations_were_pruned_while_it_was_built_is_given_up(store, monkeypatch):
    """Others publish newer tables meanwhile, and prune."""
    append_deletes(store, 5)
    write = publish_module.write_release

    def write_while_others_publish(*args, **options):
        monkeypatch.setattr(publish_module, "write_release", write)
        for name in ("two", "three"):
            publish(store, name, 5)
        assert prune_store(store, 0).operation_count == 5
        return write(*args, **options)

    monkeypatch.setattr(publish_module, "write_release", write_while_others_publish)
    with pytest.raises(StoreError, match=r"journal_seq is 3, but the journal of .* was pruned up to 5"):
        publish(store, "late", 3)
    assert [manifest.name for manifest in store.list_releases()] == ["three", "two"]
    assert store.get_current().release == "three"


@pytest.mark.parametrize("journal_seq", [None, "0", True, -1])
def test_journal_seq_is_an_integer(store, journal_seq):
    with pytest.raises(StoreError, match="expected the sequence number of an operation"):
        publish(store, "two", journal_seq)


def test_current_release_that_is_replaced_and_pruned_while_it_is_opened_is_not_missed(store, monkeypatch):
    load = release_module.load_release

    def load_what_is_gone(*args):
        monkeypatch.setattr(release_module, "load_release", load)
        for name in ("two", "three"):
            publish(store, name)
        assert prune_store(store, 0).release_names == ["one"]
        return load(*args)

    monkeypatch.setattr(release_module, "load_release", load_what_is_gone)
    with open_recaller(store.path) as recaller:
        assert recaller.recall(ALL_ITEMS).release == "three"


def test_release_with_ids_of_another_type_than_the_journal_is_not_published(store):
    """The store could not be opened any more."""
    append_deletes(store, 5)
    (store.path / "CURRENT").unlink()
    with pytest.raises(StoreError, match=r"journal.sqlite is a journal .* with ids of type integer, .*another store"):
        publish_vectors(store.path, ["a", "b"], np.eye(2, dtype=np.float32), name="two")
    store.activate("one")
    assert [manifest.name for manifest in store.list_releases()] == ["one"]
    open_recaller(store.path).close()


def test_release_with_ids_of_another_type_than_the_current_one_is_not_published(store):
    """After the first live change, a rollback would end in a store that cannot be opened."""
    with pytest.raises(
        StoreError, match=r"has item ids of type integer, and these are of type string: .*another store"
    ):
        publish_vectors(store.path, ["a", "b"], np.eye(2, dtype=np.float32), name="two")
    assert [manifest.name for manifest in store.list_releases()] == ["one"]


def test_a_damaged_current_release_does_not_prevent_another(store):
    (store.get_release_dir("one") / "manifest.json").write_text("{")
    publish(store, "two")
    assert store.get_current().release == "two"


def test_store_that_lost_its_journal_cannot_be_written_to(store):
    """Sequence numbers would start from 1 again, and releases would take new operations for ones they contain."""
    append_deletes(store, 5)
    publish(store, "two", 5)
    for file in store.path.glob("journal.sqlite*"):
        file.unlink()
    for release in (None, "one"):
        with pytest.raises(StoreError, match="release 'two' contains operations up to 5, but the journal ends at 0"):
            open_recaller(store.path, release=release, writable=True)
    with open_recaller(store.path) as reader:
        assert len(reader.recall(ALL_ITEMS).ids) == 3
    with Journal.open(get_journal_path(store), "integer") as journal:
        check_journal_covers(journal, [])


def test_release_of_an_older_format_is_rejected_and_does_not_prevent_writing(store):
    publish(store, "two")
    directory = store.get_release_dir("one")
    manifest = json.loads((directory / "manifest.json").read_bytes())
    del manifest["tables_seq"]
    content = json.dumps(manifest | {"format": 1}).encode()
    (directory / "manifest.json").write_bytes(content)
    with pytest.raises(InvalidReleaseError):
        store.verify("one")
    (directory / "manifest.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")
    with pytest.raises(InvalidReleaseError, match="format 1"):
        open_recaller(store.path, release="one")
    with open_recaller(store.path, writable=True) as writer:
        assert writer.delete([1]) == 1
        assert len(writer.recall(ALL_ITEMS).ids) == 2


@pytest.mark.parametrize("action", ["open", "activate", "compact"])
def test_release_that_is_pruned_while_it_is_opened_is_rejected(store, monkeypatch, action):
    """Operations that it lacks were pruned together with it."""
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.upsert([{"id": 9, "vector": EYE[0].tolist()}])
        for name in ("two", "three"):
            publish(store, name, 1)
        recaller.activate("three")
        recaller.delete([1])

        def open_and_prune(*args):
            release = release_module.open_release(*args)
            assert prune_store(store, 0) == PruneResult(["one"], 1)
            return release

        monkeypatch.setattr(compaction if action == "compact" else live_index, "open_release", open_and_prune)
        monkeypatch.setattr(switching, "open_and_check_release", open_and_prune)
        with pytest.raises(StoreError, match="has no release 'one'"):
            {
                "open": lambda: open_recaller(store.path, release="one"),
                "activate": lambda: ExitStack().enter_context(recaller.live_index._switcher._prepare(store, "one")),
                "compact": lambda: compaction.compact(store.path, release="one"),
            }[action]()
