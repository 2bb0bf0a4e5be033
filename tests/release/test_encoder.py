import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from support import synthetic

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.data.split import NO_HARD_NEGATIVES
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
def release_dir(published, tmp_path):
    """Copy of the release's directory, for tests that damage it."""
    return shutil.copytree(published / "store" / "releases" / "tiny", tmp_path / "tiny")


def test_encoder_reports_dimension_and_history_length(release):
    encoder = release.encoder
    assert (encoder.dim, encoder.history_length) == (8, 4)


def test_release_vectors_equal_those_of_trained_towers(published, release):
    """From tables to vectors: features, ids and histories as they are served."""
    run = Run.open(published / "run")
    model, dataset = run.load_final_model(), synthetic.load_dataset(run.config)
    encoders = model.vocabulary.item_encoder, model.vocabulary.user_encoder
    data = TrainingData.from_catalogue(dataset.catalogue, encoders, dataset.histories, NO_HARD_NEGATIVES)
    scorer = TowerScorer(model.towers, data)
    item_rows = np.arange(synthetic.ITEMS)
    assert release.item_ids.to_ids(item_rows) == dataset.catalogue.items.to_ids(item_rows)
    np.testing.assert_allclose(release.vectors.get_vectors(item_rows), scorer.item_vectors, atol=1e-3)
    item_vectors = release.encoder.encode_items(dataset.catalogue.item_features, item_rows)
    np.testing.assert_allclose(item_vectors, scorer.item_vectors, atol=1e-4)

    user_rows = np.arange(synthetic.USERS)
    histories = [dataset.histories[user][: user % 7] for user in user_rows]  # lengths 0 to 6; 4 are read
    cases = EvalCases(user_rows, RaggedArray.from_lists(histories), RaggedArray.from_lists([[0]] * len(user_rows)))
    user_vectors = UserTowerInputs(cases.histories, dataset.catalogue.user_features).encode(
        release.encoder, release.vectors.get_vectors
    )
    np.testing.assert_allclose(user_vectors, scorer.encode_users(cases), atol=1e-3)
    # A user that the tables do not contain: every feature is missing.
    no_features = dataset.catalogue.user_features.clear(1)
    vector = release.encoder.encode_users(no_features, np.zeros((1, 0, 8), np.float32), np.array([0]))
    np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-5)


def test_parallel_encoding_equals_sequential_encoding(release):
    features = synthetic.make_features(64, 5).with_columns(pl.lit("x").alias("id"))

    def encode(row):
        return release.encoder.encode_items(features[row : row + 1], np.array([-1]))

    sequential = [encode(row) for row in range(64)]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(encode, range(64)))
    np.testing.assert_array_equal(np.concatenate(sequential), np.concatenate(parallel))


@pytest.mark.parametrize("file", [ENCODERS_FILE, ITEM_TOWER_FILE, QUERY_TOWER_FILE])
@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_missing_or_malformed_file_raises_invalid_release_with_its_name(release_dir, file, content):
    (release_dir / file).unlink()
    if content is not None:
        (release_dir / file).write_bytes(content)
    with pytest.raises(InvalidReleaseError, match=file) as caught:
        OnnxEncoder(release_dir)
    assert caught.value.file == file
