import faiss
import numpy as np
import pytest

from vecall.errors import InvalidReleaseError, StoreError
from vecall.index.base import SearchParams
from vecall.index.exact import ExactIndex
from vecall.index.index_io import load_index, save_index
from vecall.index.ivf import IvfPqIndex

INNER, FP16 = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_fp16


def normal(n, dim=4):
    return np.random.default_rng(0).standard_normal((n, dim), dtype=np.float32)


def test_a_folder_that_is_not_there_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="such a folder"):
        save_index(ExactIndex.build(normal(5)), tmp_path / "none" / "index.faiss")


@pytest.mark.parametrize(("n", "dim", "given"), [(1, 1, 1), (50, 3, 50), (3000, 16, 64)])
def test_cells_come_back_to_the_bit(tmp_path, n, dim, given):
    index = IvfPqIndex.build(normal(n, dim), nlist=given)
    save_index(index, tmp_path / "index.faiss")
    again = load_index(tmp_path / "index.faiss")
    assert isinstance(again, IvfPqIndex)
    assert (again.size, again.dim, again.nlist) == (n, dim, given)
    np.testing.assert_array_equal(again._centroids, index._centroids)
    queries = normal(30, dim)
    for k in (1, 20):
        for effort in (None, SearchParams(1, k), SearchParams(7, 3 * k), SearchParams(given, n)):
            hits, before = (one.search(queries, k, search_params=effort) for one in (again, index))
            np.testing.assert_array_equal(hits.rows, before.rows)
            np.testing.assert_array_equal(hits.scores, before.scores)
    save_index(again, tmp_path / "again.faiss")
    assert (tmp_path / "again.faiss").read_bytes() == (tmp_path / "index.faiss").read_bytes()


def cells(*, metric=INNER, residual=True, kind=FP16, by_graph=False, of=None, alone=False):
    """Cells as others might make them; as they are here, they are ours."""
    vectors = normal(700)
    quantizer = faiss.IndexHNSWFlat(4, 8, metric) if by_graph else faiss.IndexFlat(4, metric)
    lists = (of or faiss.IndexIVFPQFastScan)(quantizer, 4, 4, 4, 4, metric)
    lists.by_residual = residual
    stored = faiss.IndexScalarQuantizer(4, kind, metric)
    for part in (lists, stored):
        part.train(vectors)
        part.add(vectors)
    made = lists if alone else faiss.IndexRefine(lists, stored)
    return faiss.deserialize_index(faiss.serialize_index(made))  # which owns its parts


def test_cells_made_by_faiss_alone_are_read(tmp_path):
    faiss.write_index(cells(), str(tmp_path / "index.faiss"))
    assert isinstance(load_index(tmp_path / "index.faiss"), IvfPqIndex)


FOREIGN = {
    "single precision": lambda: faiss.IndexFlatIP(4),
    "eight bits": lambda: faiss.IndexScalarQuantizer(4, faiss.ScalarQuantizer.QT_8bit_direct, INNER),
    "half precision by distance": lambda: faiss.IndexScalarQuantizer(4, FP16, faiss.METRIC_L2),
    "a graph by distance": lambda: faiss.IndexHNSWSQ(4, FP16, 8, faiss.METRIC_L2),
    "a graph of single precision": lambda: faiss.IndexHNSWFlat(4, 8, INNER),
    "cells by distance": lambda: cells(metric=faiss.METRIC_L2),
    "cells without residuals": lambda: cells(residual=False),
    "cells of eight bits": lambda: cells(kind=faiss.ScalarQuantizer.QT_8bit),
    "cells found by a graph": lambda: cells(by_graph=True),
    "cells of slow codes": lambda: cells(of=faiss.IndexIVFPQ),
    "cells without vectors": lambda: cells(alone=True),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_indexes_of_another_kind_are_refused(tmp_path, kind):
    faiss.write_index(FOREIGN[kind](), str(tmp_path / "index.faiss"))
    with pytest.raises(InvalidReleaseError, match=r"index\.faiss holds a \w+; expected .*publish") as refused:
        load_index(tmp_path / "index.faiss")
    assert refused.value.file == "index.faiss"


@pytest.mark.parametrize("content", [b"not faiss", b"", None])
def test_files_of_another_kind_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "index.faiss").write_bytes(content)
    with pytest.raises(InvalidReleaseError, match=r"index\.faiss is no faiss index") as refused:
        load_index(tmp_path / "index.faiss")
    assert refused.value.file == "index.faiss"
