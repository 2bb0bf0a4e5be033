"""Made-up vectors of length 1 around many small clusters, which gather around larger themes, as catalogues do.

    python benchmarks/clustered.py VECTORS.npy [--items 1_000_000] [--dim 128] [--seed 0]

theme = gaussian; centre = 0.6 gaussian + its theme, normalised; item = centre + 1.05 / √D gaussian, normalised. There
is a centre for 100 items and a theme for about 100 centres. Items are made in blocks, each from a seed of its own.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from harness.environment import read_json, write_json
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
Numbers = NDArray[np.int64]

BLOCK_ITEMS = 100_000  # items made at a time
_ITEMS_PER_CENTER = 100  # items
_ITEMS_PER_THEME = 10_000  # items
_MIN_THEMES = 8
_CENTER_SCALE, _ITEM_SCALE = 0.6, 1.05  # of a centre beside its theme, of an item beside its centre


@dataclass(frozen=True)
class ClusteredVectors:
    """One pool by its numbers.

    Attributes:
        n_items: N, items.
        dim: D.
        seed: of everything.
    """

    n_items: int
    dim: int
    seed: int = 0

    @cached_property
    def themes(self) -> Floats:
        """[T, D] directions of length 1."""
        return _normalize(self._raw_themes)

    @cached_property
    def theme_by_center(self) -> Numbers:
        """[centres] the theme of each centre."""
        return self._rng("themes of centres").integers(
            len(self._raw_themes), size=max(1, self.n_items // _ITEMS_PER_CENTER)
        )

    def make_block(self, block_index: int) -> Halves:
        """[up to 100,000, D] items `block_index` × 100,000 and on."""
        size = min(BLOCK_ITEMS, self.n_items - block_index * BLOCK_ITEMS)
        chosen = self._rng("centres of items", block_index).integers(len(self._centers), size=size)
        return self._sample_around(chosen, self._rng("items", block_index)).astype(np.float16)

    def iterate_blocks(self, first_block: int = 0) -> Iterator[Halves]:
        """All items from a block on, block by block."""
        return map(self.make_block, range(first_block, -(-self.n_items // BLOCK_ITEMS)))

    def make_queries(self, count: int, *, stream: str = "queries", theme: int | None = None) -> Floats:
        """[count, D] vectors of the same kind as items: fewer are the first of more.

        Args:
            count: how many.
            stream: others for another name.
            theme: all around centres of this theme, which must have some.
        """
        centres = np.arange(len(self._centers)) if theme is None else np.flatnonzero(self.theme_by_center == theme)
        part = 0 if theme is None else theme + 1
        chosen = centres[self._rng(f"centres of {stream}", part).integers(len(centres), size=count)]
        return self._sample_around(chosen, self._rng(stream, part))

    def write_npy(self, path: Path) -> None:
        """Write all items to a float16 .npy file, block by block; goes on where it was cut off.

        The file is there once it is whole; until then a `.part` and a `.part.json` stand beside it.
        """
        part, progress = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
        if path.exists():
            if (shape := np.load(path, mmap_mode="r").shape) != (self.n_items, self.dim):
                raise SystemExit(f"{path} holds {list(shape)}, not {[self.n_items, self.dim]}: take another file")
            return
        room = shutil.disk_usage(path.parent).free
        if not part.exists() and room < 2 * self.n_items * self.dim:
            raise SystemExit(f"{path} takes {2 * self.n_items * self.dim:,} bytes, but only {room:,} are free")
        done = read_json(progress)
        first = done["blocks"] if part.exists() and done.get("pool") == asdict(self) else 0
        if not first:
            open_memmap(part, mode="w+", dtype=np.float16, shape=(self.n_items, self.dim))
        for number, block in enumerate(self.iterate_blocks(first), start=first):
            file = open_memmap(part, mode="r+")  # anew, or its pages would count as memory of this process
            file[number * BLOCK_ITEMS : number * BLOCK_ITEMS + len(block)] = block
            file.flush()
            del file
            write_json(progress, {"pool": asdict(self), "blocks": number + 1})
        part.replace(path)
        progress.unlink()

    @cached_property
    def _raw_themes(self) -> Floats:
        size = max(_MIN_THEMES, self.n_items // _ITEMS_PER_THEME), self.dim
        return self._rng("themes").standard_normal(size, dtype=np.float32)

    @cached_property
    def _centers(self) -> Floats:
        own = self._rng("centres").standard_normal((len(self.theme_by_center), self.dim), dtype=np.float32)
        return _normalize(np.float32(_CENTER_SCALE) * own + self._raw_themes[self.theme_by_center])

    def _sample_around(self, centers: Numbers, rng: np.random.Generator) -> Floats:
        noise = rng.standard_normal((len(centers), self.dim), dtype=np.float32)
        noise *= np.float32(_ITEM_SCALE / np.sqrt(self.dim))
        return _normalize(noise + self._centers[centers])

    def _rng(self, stream: str, number: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream.encode(), number])


def _normalize(vectors: Floats) -> Floats:
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    pool = ClusteredVectors(asked.items, asked.dim, asked.seed)
    pool.write_npy(asked.file)
    print(json.dumps(asdict(pool) | {"file": str(asked.file), "bytes": asked.file.stat().st_size}))


if __name__ == "__main__":
    main()
