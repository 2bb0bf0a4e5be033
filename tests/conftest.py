"""What several test files share, made once a session."""

import pytest
from hypothesis import HealthCheck, settings

# A loaded machine makes slow examples, and the first of a process may wait for an import.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A folder with the tables of `tiny`, a finished run of them in `run` and its release `tiny` in `store`."""
    import tiny

    from vecall import pipeline

    folder = tmp_path_factory.mktemp("published")
    tiny.write_tables(folder)
    config = tiny.config(folder)
    pipeline.fit(config, folder / "run")
    pipeline.publish(folder / "run", folder / "store", name="tiny")
    return folder
