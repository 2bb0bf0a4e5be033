"""What several test files share, made once a session."""

import pytest
from hypothesis import HealthCheck, settings

# A loaded machine makes slow examples, and the first of a process may wait for an import.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A folder with the tables of `tiny`, a finished run of them in `run` and its release `tiny` in `store`."""
    from support import synthetic

    from vecall.pipeline.fit import fit
    from vecall.pipeline.publish import publish

    folder = tmp_path_factory.mktemp("published")
    synthetic.write_tables(folder)
    config = synthetic.make_config(folder)
    fit(config, folder / "run")
    publish(folder / "run", folder / "store", name="tiny")
    return folder


@pytest.fixture(scope="session")
def published_with_index(published, tmp_path_factory):
    """The same run as a store whose recalls search an index: of so few items a release would have none."""
    import json
    import shutil

    from vecall.index import tuning
    from vecall.index.planner import CostModel
    from vecall.pipeline.publish import publish

    folder = tmp_path_factory.mktemp("published-with-index")
    shutil.copytree(published / "run", folder / "run")
    config = json.loads((folder / "run" / "config.json").read_text())
    config["index"] |= {"engine": "hnsw"}
    (folder / "run" / "config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tuning,
            "_fit_cost_model",
            lambda *_: CostModel(fixed_ms=0.0, ms_per_width=0.0, ms_per_reranked_row=0.0, ms_per_scanned_row=1.0),
        )
        publish(folder / "run", folder / "store", name="tiny")
    return folder / "store"
