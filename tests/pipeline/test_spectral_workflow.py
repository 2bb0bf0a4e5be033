"""Towers with a spectral part from `fit` to a release: refit, publication, cold items and a warm start."""

import numpy as np
import pytest
from support import synthetic

from vecall.pipeline import fit as fit_module
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import Run
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.training.spectral_share import SHARES

MODEL = {"dim": 12, "max_trained_dim": 8, "id_dropout": 0.2, "history": {"encoder": "set", "length": 50}}


@pytest.mark.examples
def test_spectral_part_is_published_refitted_and_computed_anew_for_a_warm_start(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "_MONITORED_K", 5)
    synthetic.write_tables(tmp_path)
    run = fit(synthetic.make_config(tmp_path, model=MODEL, training={"refit": True}), tmp_path / "run")
    evaluated, final = run.load_evaluated_model().towers, run.load_final_model().towers
    assert min(abs(evaluated.spectral_share - share) for share in SHARES) < 1e-6
    assert final.spectral_share == evaluated.spectral_share
    assert not np.array_equal(final.spectral_vectors, evaluated.spectral_vectors)  # of all interactions

    publish(tmp_path / "run", tmp_path / "store")
    release = open_release(Store.open(tmp_path / "store"))
    release.check_golden_queries()
    vectors = release.vectors.get_vectors(np.arange(synthetic.ITEMS))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2)
    assert (np.linalg.norm(vectors[:, 8:], axis=1) > 0.1).all()

    synthetic.write_tables(tmp_path, more_items=4)  # without interactions
    warm = fit(synthetic.make_config(tmp_path, model=MODEL), tmp_path / "warm", init=tmp_path / "run")
    publish(tmp_path / "warm", tmp_path / "store")
    release = open_release(Store.open(tmp_path / "store"))
    vectors = release.vectors.get_vectors(np.arange(synthetic.ITEMS + 4))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2)
    assert (np.linalg.norm(vectors[:, 8:], axis=1) < 1e-3).sum() == 4
    assert Run.open(warm.directory).load_evaluated_model().towers.spectral_share is not None
