"""Synthetic unit vectors in many small clusters around larger themes, as item catalogues have them.

With g a standard Gaussian of D dimensions:

    theme  = g
    center = normalize(theme + 0.6 g)
    item   = normalize(center + 1.05 / sqrt(D) g)

There is a center per 100 items and a theme per 10,000. Items are generated in blocks, each from a seed of its own.
"""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from harness.environment import read_json, write_json
from vecall.arrays import HalfVectors, Rows, Vectors

BLOCK_ITEMS = 100_000  # items generated at a time
_ITEMS_PER_CENTER = 100
_ITEMS_PER_THEME = 10_000
_MIN_THEMES = 8
_GROUPING_SEED = 0  # of which items are near each other, in all pools
_CENTER_SCALE, _ITEM_SCALE = 0.6, 1.05  # noise of a center around its theme, of an item around its center


@dataclass(frozen=True)
class ClusteredVectors:
    """Reproducible pool of vectors.

    Attributes:
        n_items: N, number of items.
        dim: D, dimension of a vector.
        seed: seed of the vectors. Which items are near each other does not depend on it, as it hardly does on the seed
            of a training.
    """

    n_items: int
    dim: int
    seed: int = 0

    @cached_property
    def themes(self) -> Vectors:
        """[T, D] unit vectors in the directions of the themes."""
        return _normalize(self._raw_themes)

    @cached_property
    def theme_by_center(self) -> Rows:
        """[C] index of the theme of each center."""
        return _make_rng(_GROUPING_SEED, "themes of centres").integers(
            len(self._raw_themes), size=max(1, self.n_items // _ITEMS_PER_CENTER)
        )

    def make_block(self, block_index: int) -> HalfVectors:
        """Generate a block of items.

        Args:
            block_index: the block starts at item `block_index` * BLOCK_ITEMS.

        Returns:
            [BLOCK_ITEMS, D]; fewer rows in the last block.
        """
        centers = self._draw_centers(block_index)
        return self._sample_around(centers, self._rng("items", block_index)).astype(np.float16)

    def list_centers(self) -> Rows:
        """Return [N] the center of each item."""
        return np.concatenate([self._draw_centers(block) for block in range(-(-self.n_items // BLOCK_ITEMS))])

    def _draw_centers(self, block_index: int) -> Rows:
        size = min(BLOCK_ITEMS, self.n_items - block_index * BLOCK_ITEMS)
        return _make_rng(_GROUPING_SEED, "centres of items", block_index).integers(len(self.theme_by_center), size=size)

    def iterate_blocks(self, first_block: int = 0) -> Iterator[HalfVectors]:
        """Generate all blocks from `first_block` on."""
        return map(self.make_block, range(first_block, -(-self.n_items // BLOCK_ITEMS)))

    def make_queries(self, count: int, *, stream: str = "queries", theme: int | None = None) -> Vectors:
        """Generate query vectors of the same distribution as the items.

        Args:
            count: Q; a smaller count gives a prefix of a larger one.
            stream: name of the random stream; another name gives other queries.
            theme: draw only around centers of this theme, which must have at least one.

        Returns:
            [Q, D] unit vectors.
        """
        candidates = np.arange(len(self._centers)) if theme is None else np.flatnonzero(self.theme_by_center == theme)
        number = 0 if theme is None else theme + 1
        centers = candidates[
            _make_rng(_GROUPING_SEED, f"centres of {stream}", number).integers(len(candidates), size=count)
        ]
        return self._sample_around(centers, self._rng(stream, number))

    def write_npy(self, path: Path) -> None:
        """Write all items to a float16 .npy file of shape [N, D], block by block.

        An interrupted call is continued by the next: until the file is complete, `.part` and `.part.json` stand for it.

        Raises:
            SystemExit: the file has another shape, or the disk has too little space.
        """
        part_path, progress_path = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
        if path.exists():
            if (shape := np.load(path, mmap_mode="r").shape) != (self.n_items, self.dim):
                expected = (self.n_items, self.dim)
                raise SystemExit(f"{path}: expected shape {expected}, got {shape}: delete it or use another file")
            return
        required_bytes, free_bytes = 2 * self.n_items * self.dim, shutil.disk_usage(path.parent).free
        if not part_path.exists() and free_bytes < required_bytes:
            raise SystemExit(f"{path}: needs {required_bytes:,} bytes, but only {free_bytes:,} are free")
        progress = read_json(progress_path)
        first = progress["blocks"] if part_path.exists() and progress.get("pool") == asdict(self) else 0
        if not first:
            open_memmap(part_path, mode="w+", dtype=np.float16, shape=(self.n_items, self.dim))
        for index, block in enumerate(self.iterate_blocks(first), start=first):
            # Mapped anew for each block: pages of a lasting mapping would count as memory of this process.
            items = open_memmap(part_path, mode="r+")
            items[index * BLOCK_ITEMS : index * BLOCK_ITEMS + len(block)] = block
            items.flush()
            del items
            write_json(progress_path, {"pool": asdict(self), "blocks": index + 1})
        part_path.replace(path)
        progress_path.unlink()

    @cached_property
    def _raw_themes(self) -> Vectors:
        shape = max(_MIN_THEMES, self.n_items // _ITEMS_PER_THEME), self.dim
        return self._rng("themes").standard_normal(shape, dtype=np.float32)

    @cached_property
    def _centers(self) -> Vectors:
        noise = self._rng("centres").standard_normal((len(self.theme_by_center), self.dim), dtype=np.float32)
        return _normalize(np.float32(_CENTER_SCALE) * noise + self._raw_themes[self.theme_by_center])

    def _sample_around(self, centers: Rows, rng: np.random.Generator) -> Vectors:
        noise = rng.standard_normal((len(centers), self.dim), dtype=np.float32)
        noise *= np.float32(_ITEM_SCALE / np.sqrt(self.dim))
        return _normalize(noise + self._centers[centers])

    def _rng(self, stream: str, number: int = 0) -> np.random.Generator:
        return _make_rng(self.seed, stream, number)


def _make_rng(seed: int, stream: str, number: int = 0) -> np.random.Generator:
    # The stream's name is part of the seed: another spelling is another pool.
    return np.random.default_rng([seed, *stream.encode(), number])


def _normalize(vectors: Vectors) -> Vectors:
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled
