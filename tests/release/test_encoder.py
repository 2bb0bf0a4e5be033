import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from support import synthetic

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.errors import InvalidReleaseError
from vecall.pipeline.run import Run
from vecall.release.encoder import ENCODERS_FILE, ITEM_TOWER_FILE, QUERY_TOWER_FILE, OnnxEncoder
from vecall.release.golden import UserTowerInputs
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.training.data import TrainingData
from vecall.training.scoring import TowerScorer


@pytest.fixture
def release(published):
    return open_release(Store.open(published / "store"))


@pytest.fixture
def folder(published, tmp_path):
    """The release's folder, to be spoilt."""
    return shutil.copytree(published / "store" / "releases" / "tiny", tmp_path / "tiny")


def test_it_knows_what_it_reads(release):
    encoder = release.encoder
    assert (encoder.dim, encoder.history_length) == (8, 4)


def test_vectors_of_a_release_are_those_of_the_trained_towers(published, release):
    """From the tables to the vectors, all the way: features, ids, histories as they are served."""
    run = Run.open(published / "run")
    model, dataset = run.load_final_model(), synthetic.load_dataset(run.config)
    encoders = model.vocabulary.item_encoder, model.vocabulary.user_encoder
    problem = TrainingData.from_catalogue(dataset.catalogue, encoders, dataset.histories, synthetic.EMPTY_PAIRS)
    scorer = TowerScorer(model.towers, problem)
    everything = np.arange(synthetic.ITEMS)
    assert release.items.ids(everything) == dataset.catalogue.items.to_ids(everything)
    np.testing.assert_allclose(release.index.vectors(everything), scorer.item_vectors, atol=1e-3)
    exact = release.encoder.encode_items(dataset.catalogue.item_features, everything)
    np.testing.assert_allclose(exact, scorer.item_vectors, atol=1e-4)

    users = np.arange(synthetic.USERS)
    cut = [dataset.histories[user][: user % 7] for user in users]  # lengths 0 to 6; 4 are read
    cases = EvalCases(users, RaggedArray.from_lists(cut), RaggedArray.from_lists([[0]] * len(users)))
    served = UserTowerInputs(cases.histories, dataset.catalogue.user_features).encode(
        release.encoder, release.index.vectors
    )
    np.testing.assert_allclose(served, scorer.encode_users(cases), atol=1e-3)
    # A user that the tables do not know: no field is given.
    nothing = dataset.catalogue.user_features.clear(1)
    stranger = release.encoder.encode_users(nothing, np.zeros((1, 0, 8), np.float32), np.array([0]))
    np.testing.assert_allclose(np.linalg.norm(stranger), 1, atol=1e-5)


def test_it_answers_from_several_threads_at_once(release):
    fields = synthetic.make_features(64, 5).with_columns(pl.lit("x").alias("id"))
    alone = [release.encoder.encode_items(fields[i : i + 1], np.array([-1])) for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: release.encoder.encode_items(fields[i : i + 1], np.array([-1])), range(64)))
    np.testing.assert_array_equal(np.concatenate(alone), np.concatenate(together))


@pytest.mark.parametrize("file", [ENCODERS_FILE, ITEM_TOWER_FILE, QUERY_TOWER_FILE])
@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_a_file_that_is_not_what_its_name_says_is_refused(folder, file, content):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(InvalidReleaseError, match=file) as refused:
        OnnxEncoder(folder)
    assert refused.value.file == file
