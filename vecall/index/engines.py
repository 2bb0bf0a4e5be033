"""All engines by name. A new engine is a file of its own and a line here: see docs/architecture.md."""

from vecall.index.engine import Engine
from vecall.index.exact import EXACT_ENGINE
from vecall.index.hnsw import HNSW_ENGINE
from vecall.index.ivf_engine import IVF_ENGINE
from vecall.index.milvus_engine import MILVUS_ENGINE

ENGINES: dict[str, Engine] = {
    "exact": EXACT_ENGINE,
    "hnsw": HNSW_ENGINE,
    "ivf": IVF_ENGINE,
    "milvus": MILVUS_ENGINE,
}
