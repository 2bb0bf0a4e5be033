"""A ranker from `fit` to a release that serves it."""

import sys

import pytest
from support import synthetic

from vecall.errors import ConfigError, TrainingError
from vecall.evaluation.paired_bootstrap import BootstrapInterval
from vecall.pipeline import ranker_training
from vecall.pipeline.fit import fit
from vecall.pipeline.fit_ranker import RANKER_DIR, check_ranker_installed
from vecall.pipeline.publish import publish
from vecall.ranking.settings import RankingSettings
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.ranker_io import RANKER_MODEL_FILE
from vecall.release.release import open_release
from vecall.release.store import Store

pytest.importorskip("lightgbm")


@pytest.mark.examples
@pytest.mark.parametrize(("low", "name"), [(0.01, "lightgbm"), (-0.01, "none")])
def test_ranker_is_published_if_it_gains(tmp_path, monkeypatch, low, name):
    monkeypatch.setattr(ranker_training, "bootstrap_differences", lambda _: BootstrapInterval(0.1, low, 0.2))
    synthetic.write_tables(tmp_path)
    run = fit(synthetic.make_config(tmp_path, ranking={"ranker": "lightgbm"}), tmp_path / "run")
    assert run.summary.ranker.info.name == name
    assert run.summary.ranker.users == synthetic.USERS  # all of them, in folds
    assert (run.directory / RANKER_DIR).exists() == (name == "lightgbm")
    publish(run.directory, tmp_path / "store", name="first")
    release = open_release(Store.open(tmp_path / "store"))
    assert release.manifest.ranker == run.summary.ranker.info
    assert (release.ranker is None) == (name == "none")
    if release.ranker is not None:
        with open_recaller(tmp_path / "store") as recaller:
            scores = release.ranker.ranker(recaller.candidates(Query(user_id="user-1", k=20)))
        assert len(scores) == 20
        (run.directory / RANKER_DIR / RANKER_MODEL_FILE).unlink()
        with pytest.raises(TrainingError, match=r"ranker\.lightgbm\.txt: cannot be read; fit again"):
            publish(run.directory, tmp_path / "store", name="second")


def test_missing_package_is_named_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match=r"pip install 'vecall\[ranking\]'"):
        check_ranker_installed(RankingSettings(ranker="lightgbm"))
    check_ranker_installed(RankingSettings())
