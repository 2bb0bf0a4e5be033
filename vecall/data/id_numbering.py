"""Numbering of ids in batches: each distinct id gets a code, in the order in which ids are first seen."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.casting import to_id_dtype
from vecall.schema import IdType

Codes = NDArray[np.int32]

UNKNOWN_CODE = -1


class IdNumbering:
    """Codes of distinct ids, which grows as new ids are seen. Makes no Python object for an id.

    A join finds the codes. Strings are joined by a 64-bit hash, which is several times as fast; the id that is found is
    then compared. Should two of the ids have the same hash, all are hashed again with another seed.

    Args:
        id_type: Type of the ids.
        ids: [k] Distinct ids that get the codes 0 to k - 1; None for none.
    """

    def __init__(self, id_type: IdType, ids: pl.Series | None = None) -> None:
        self._is_text = id_type == "string"
        self._ids = pl.Series(dtype=to_id_dtype(id_type)) if ids is None else ids.alias("")
        self._seed = 0
        self._keys = self._ids
        self._update_keys()

    @property
    def ids(self) -> pl.Series:
        """The ids in the order of their codes."""
        return self._ids

    def find(self, ids: pl.Series) -> Codes:
        """Return the codes [n] of ids without nulls, `UNKNOWN_CODE` where an id is not known."""
        known = pl.LazyFrame({"key": self._keys, "code": np.arange(len(self._keys), dtype=np.int32)})
        keys = pl.LazyFrame({"key": self._to_keys(ids)})
        joined = keys.join(known, on="key", how="left", maintain_order="left")
        found = joined.collect(engine="streaming")["code"]  # the other engine takes twice as long
        if self._is_text:
            is_same = (self._ids.gather(found) == ids).fill_null(value=False)
            found = found.zip_with(is_same, pl.Series([UNKNOWN_CODE], dtype=pl.Int32))
        return found.fill_null(UNKNOWN_CODE).to_numpy()

    def number(self, ids: pl.Series) -> Codes:
        """Return the codes [n] of ids without nulls, and give a code to those that are not known."""
        codes = self.find(ids)
        is_new = codes == UNKNOWN_CODE
        if is_new.any():
            new_ids = ids.filter(pl.Series(is_new))
            self._ids = pl.concat([self._ids, new_ids.unique(maintain_order=True).alias("")], rechunk=True)
            self._update_keys()
            codes = codes.copy()
            codes[is_new] = self.find(new_ids)
        return codes

    def _update_keys(self) -> None:
        self._keys = self._to_keys(self._ids)
        while self._keys.n_unique() < len(self._ids):
            self._seed += 1
            self._keys = self._to_keys(self._ids)

    def _to_keys(self, ids: pl.Series) -> pl.Series:
        return ids.hash(self._seed) if self._is_text else ids
