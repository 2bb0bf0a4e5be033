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
from facts import read_json, write_json
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
Numbers = NDArray[np.int64]

BLOCK = 100_000  # items made at a time
_PER_CENTRE = 100  # items
_PER_THEME = 10_000  # items
_LEAST_THEMES = 8
_OWN, _SPREAD = 0.6, 1.05  # of a centre beside its theme, of an item beside its centre


@dataclass(frozen=True)
class Clusters:
    """One pool by its numbers.

    Attributes:
        n: N, items.
        dim: D.
        seed: of everything.
    """

    n: int
    dim: int
    seed: int = 0

    @cached_property
    def themes(self) -> Floats:
        """[T, D] directions of length 1."""
        return _normalised(self._themes)

    @cached_property
    def theme_of(self) -> Numbers:
        """[centres] the theme of each centre."""
        return self._rng("themes of centres").integers(len(self._themes), size=max(1, self.n // _PER_CENTRE))

    def block(self, number: int) -> Halves:
        """[up to 100,000, D] items `number` × 100,000 and on."""
        size = min(BLOCK, self.n - number * BLOCK)
        chosen = self._rng("centres of items", number).integers(len(self._centres), size=size)
        return self._around(chosen, self._rng("items", number)).astype(np.float16)

    def blocks(self, first: int = 0) -> Iterator[Halves]:
        """All items from a block on, block by block."""
        return map(self.block, range(first, -(-self.n // BLOCK)))

    def queries(self, count: int, *, who: str = "queries", theme: int | None = None) -> Floats:
        """[count, D] vectors of the same kind as items: fewer are the first of more.

        Args:
            count: how many.
            who: others for another name.
            theme: all around centres of this theme, which must have some.
        """
        centres = np.arange(len(self._centres)) if theme is None else np.flatnonzero(self.theme_of == theme)
        part = 0 if theme is None else theme + 1
        chosen = centres[self._rng(f"centres of {who}", part).integers(len(centres), size=count)]
        return self._around(chosen, self._rng(who, part))

    def fill(self, path: Path) -> None:
        """Write all items to a float16 .npy file, block by block; goes on where it was cut off.

        The file is there once it is whole; until then a `.part` and a `.part.json` stand beside it.
        """
        part, progress = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
        if path.exists():
            if (shape := np.load(path, mmap_mode="r").shape) != (self.n, self.dim):
                raise SystemExit(f"{path} holds {list(shape)}, not {[self.n, self.dim]}: take another file")
            return
        room = shutil.disk_usage(path.parent).free
        if not part.exists() and room < 2 * self.n * self.dim:
            raise SystemExit(f"{path} takes {2 * self.n * self.dim:,} bytes, but only {room:,} are free")
        done = read_json(progress)
        first = done["blocks"] if part.exists() and done.get("pool") == asdict(self) else 0
        if not first:
            open_memmap(part, mode="w+", dtype=np.float16, shape=(self.n, self.dim))
        for number, block in enumerate(self.blocks(first), start=first):
            file = open_memmap(part, mode="r+")  # anew, or its pages would count as memory of this process
            file[number * BLOCK : number * BLOCK + len(block)] = block
            file.flush()
            del file
            write_json(progress, {"pool": asdict(self), "blocks": number + 1})
        part.replace(path)
        progress.unlink()

    @cached_property
    def _themes(self) -> Floats:
        size = max(_LEAST_THEMES, self.n // _PER_THEME), self.dim
        return self._rng("themes").standard_normal(size, dtype=np.float32)

    @cached_property
    def _centres(self) -> Floats:
        own = self._rng("centres").standard_normal((len(self.theme_of), self.dim), dtype=np.float32)
        return _normalised(np.float32(_OWN) * own + self._themes[self.theme_of])

    def _around(self, centres: Numbers, rng: np.random.Generator) -> Floats:
        noise = rng.standard_normal((len(centres), self.dim), dtype=np.float32)
        noise *= np.float32(_SPREAD / np.sqrt(self.dim))
        return _normalised(noise + self._centres[centres])

    def _rng(self, part: str, number: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, *part.encode(), number])


def _normalised(vectors: Floats) -> Floats:
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    pool = Clusters(asked.items, asked.dim, asked.seed)
    pool.fill(asked.file)
    print(json.dumps(asdict(pool) | {"file": str(asked.file), "bytes": asked.file.stat().st_size}))


if __name__ == "__main__":
    main()
