import faiss
import numpy as np
import pytest

from vecall.errors import ReleaseRefused, StoreError
from vecall.index.exact import ExactIndex
from vecall.index.files import build, load, save
from vecall.index.hnsw import HnswIndex
from vecall.index.settings import IndexSettings


def normal(n):
    return np.random.default_rng(0).standard_normal((n, 4), dtype=np.float32)


@pytest.mark.parametrize(
    ("engine", "n", "kind"),
    [
        ("auto", 1999, ExactIndex),
        ("auto", 2000, HnswIndex),
        ("exact", 2000, ExactIndex),
        ("hnsw", 5, HnswIndex),
    ],
)
def test_the_engine_is_the_settings_or_follows_the_size(engine, n, kind):
    assert type(build(normal(n), IndexSettings(engine=engine))) is kind


def test_given_parameters_reach_the_graph():
    index = build(normal(50), IndexSettings(engine="hnsw", M=5, ef_construction=33, ef=44))
    assert (index.ef, index._graph.hnsw.efConstruction, index._graph.hnsw.nb_neighbors(1)) == (44, 33, 5)


def test_a_folder_that_is_not_there_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="such a folder"):
        save(ExactIndex.build(normal(5)), tmp_path / "none" / "index.faiss")


def flat_f32(path):
    faiss.write_index(faiss.IndexFlatIP(4), str(path))


def eight_bit(path):
    faiss.write_index(faiss.IndexScalarQuantizer(4, faiss.ScalarQuantizer.QT_8bit_direct, 0), str(path))


def by_distance(path):
    faiss.write_index(faiss.IndexHNSWSQ(4, faiss.ScalarQuantizer.QT_fp16, 8, faiss.METRIC_L2), str(path))


@pytest.mark.parametrize(
    "write", [flat_f32, eight_bit, by_distance, lambda path: path.write_bytes(b"not faiss"), lambda path: None]
)
def test_files_of_another_kind_are_refused(tmp_path, write):
    write(tmp_path / "index.faiss")
    with pytest.raises(ReleaseRefused, match=r"index\.faiss") as refused:
        load(tmp_path / "index.faiss")
    assert refused.value.file == "index.faiss"
