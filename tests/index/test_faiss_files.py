from pathlib import Path

import faiss
import numpy as np
import pytest
from support.vectors import random_vectors

from vecall.errors import InvalidReleaseError, StoreError
from vecall.index.base import SearchParams
from vecall.index.engine import BuildContext
from vecall.index.engines import ENGINES
from vecall.index.exact import ExactIndex
from vecall.index.index_info import IndexInfo
from vecall.index.ivf import IvfPqIndex
from vecall.index.settings import IndexSettings

INNER_PRODUCT, FP16 = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_fp16


def test_saving_into_a_missing_directory_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match=r"cannot be written: .*check that its directory exists"):
        ExactIndex.build(random_vectors(5, 4)).save(tmp_path / "none" / "index.faiss")


@pytest.mark.parametrize(("n", "dim", "nlist"), [(1, 1, 1), (50, 3, 50), (3000, 16, 64)])
def test_loaded_ivf_index_equals_the_saved_one(tmp_path, n, dim, nlist):
    saved = IvfPqIndex.build(random_vectors(n, dim), nlist=nlist)
    saved.save(tmp_path / "index.faiss")
    loaded = IvfPqIndex.load(tmp_path / "index.faiss")
    assert (loaded.vectors.size, loaded.vectors.dim, loaded.nlist) == (n, dim, nlist)
    np.testing.assert_array_equal(loaded._centroids, saved._centroids)
    queries = random_vectors(30, dim)
    for k in (1, 20):
        for params in (None, SearchParams(1, k), SearchParams(7, 3 * k), SearchParams(nlist, n)):
            hits, expected = (index.search(queries, k, search_params=params) for index in (loaded, saved))
            np.testing.assert_array_equal(hits.rows, expected.rows)
            np.testing.assert_array_equal(hits.scores, expected.scores)
    loaded.save(tmp_path / "again.faiss")
    assert (tmp_path / "again.faiss").read_bytes() == (tmp_path / "index.faiss").read_bytes()


def make_faiss_ivf(
    *,
    metric=INNER_PRODUCT,
    by_residual=True,
    storage_type=FP16,
    is_graph_quantizer=False,
    ivf_class=faiss.IndexIVFPQFastScan,
    is_refined=True,
):
    """Faiss IVF index over 700 vectors; with the defaults it has the structure of an `IvfPqIndex`."""
    vectors = random_vectors(700, 4)
    quantizer = faiss.IndexHNSWFlat(4, 8, metric) if is_graph_quantizer else faiss.IndexFlat(4, metric)
    ivf_index = ivf_class(quantizer, 4, 4, 4, 4, metric)
    ivf_index.by_residual = by_residual
    storage = faiss.IndexScalarQuantizer(4, storage_type, metric)
    for part in (ivf_index, storage):
        part.train(vectors)
        part.add(vectors)
    index = faiss.IndexRefine(ivf_index, storage) if is_refined else ivf_index
    return faiss.deserialize_index(faiss.serialize_index(index))  # a copy that owns its parts


def test_ivf_index_written_by_faiss_alone_is_loaded(tmp_path):
    faiss.write_index(make_faiss_ivf(), str(tmp_path / "index.faiss"))
    assert IvfPqIndex.load(tmp_path / "index.faiss").nlist == 4


UNSUPPORTED = {
    "flat, single precision": lambda: faiss.IndexFlatIP(4),
    "flat, 8 bits": lambda: faiss.IndexScalarQuantizer(4, faiss.ScalarQuantizer.QT_8bit_direct, INNER_PRODUCT),
    "flat, by distance": lambda: faiss.IndexScalarQuantizer(4, FP16, faiss.METRIC_L2),
    "hnsw by distance": lambda: faiss.IndexHNSWSQ(4, FP16, 8, faiss.METRIC_L2),
    "hnsw, single precision": lambda: faiss.IndexHNSWFlat(4, 8, INNER_PRODUCT),
    "ivf by distance": lambda: make_faiss_ivf(metric=faiss.METRIC_L2),
    "ivf without residuals": lambda: make_faiss_ivf(by_residual=False),
    "ivf, 8-bit storage": lambda: make_faiss_ivf(storage_type=faiss.ScalarQuantizer.QT_8bit),
    "ivf, graph quantizer": lambda: make_faiss_ivf(is_graph_quantizer=True),
    "ivf without fast scan": lambda: make_faiss_ivf(ivf_class=faiss.IndexIVFPQ),
    "ivf without stored vectors": lambda: make_faiss_ivf(is_refined=False),
}


FAISS_ENGINES = [name for name, engine in ENGINES.items() if engine.file == "index.faiss"]


@pytest.mark.parametrize("engine", FAISS_ENGINES)
@pytest.mark.parametrize("n", [100, 301])
def test_vectors_of_large_engines_are_mapped_from_the_file(tmp_path, engine, n):
    """So that processes share them; a release that is pruned while it is served is still answered from."""
    path, vectors = tmp_path / "index.faiss", random_vectors(n, 5)
    built = ENGINES[engine].build(vectors, BuildContext(IndexSettings())).index
    built.save(path)
    index = ENGINES[engine].open(path, IndexInfo(engine=engine))
    address, mappings = index.vectors.half_vectors.ctypes.data, Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in mappings if line.endswith(str(path))]
    is_mapped = any(int(start, 16) <= address < int(end, 16) for start, end in ranges)
    assert is_mapped == ENGINES[engine].maps_vectors == (engine != "exact")
    assert index.vectors.half_vectors.flags.aligned
    path.unlink()
    np.testing.assert_array_equal(index.search(vectors[:20], 10).rows, built.search(vectors[:20], 10).rows)


@pytest.mark.parametrize("engine", FAISS_ENGINES)
@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_unsupported_faiss_indexes_are_refused(tmp_path, kind, engine):
    faiss.write_index(UNSUPPORTED[kind](), str(tmp_path / "index.faiss"))
    with pytest.raises(InvalidReleaseError, match=r"index\.faiss holds a faiss \w+; expected .*publish") as error_info:
        ENGINES[engine].open(tmp_path / "index.faiss", IndexInfo(engine=engine))
    assert error_info.value.file == "index.faiss"


@pytest.mark.parametrize("engine", FAISS_ENGINES)
@pytest.mark.parametrize("other", FAISS_ENGINES)
def test_index_of_another_engine_than_the_manifest_names_is_refused(tmp_path, engine, other):
    path, info = tmp_path / "index.faiss", IndexInfo(engine=engine)
    ENGINES[other].build(random_vectors(100, 4), BuildContext(IndexSettings())).index.save(path)
    if other == engine:
        assert ENGINES[engine].open(path, info).vectors.size == 100
        return
    with pytest.raises(InvalidReleaseError, match=r"index\.faiss holds a faiss \w+; expected an? \w+ index as vecall"):
        ENGINES[engine].open(path, info)


@pytest.mark.parametrize("engine", FAISS_ENGINES)
@pytest.mark.parametrize("content", [b"not faiss", b"", None])
def test_missing_and_foreign_files_are_refused(tmp_path, content, engine):
    if content is not None:
        (tmp_path / "index.faiss").write_bytes(content)
    with pytest.raises(InvalidReleaseError, match=r"index\.faiss is not a readable faiss index") as error_info:
        ENGINES[engine].open(tmp_path / "index.faiss", IndexInfo(engine=engine))
    assert error_info.value.file == "index.faiss"
