"""A fixed 64-bit hash of strings, the same in every process and version, computed for many strings at once."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Offsets
from vecall.data.ragged import offsets_from_lengths

Hashes = NDArray[np.uint64]

_RADIX_SORT_LIMIT = 2**16
_CHUNK_ROWS = 2**20  # strings concatenated at a time

# The offset basis and prime of FNV-1a; the finalizer of SplitMix64 then makes all bits depend on all bytes.
_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_PRIME, _MASK = int(_FNV_PRIME), 2**64 - 1
_MIN_ACTIVE = 12  # slices, below which each is hashed by itself
_SPLITMIX_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def hash_bytes(blob: NDArray[np.uint8], offsets: Offsets) -> Hashes:
    """Hash n byte strings that are concatenated in an array.

    Args:
        blob: [bytes] The strings, end to end.
        offsets: [n + 1] String i is `blob[offsets[i] : offsets[i + 1]]`.

    Returns:
        [n] hashes, see `hash_slices`.
    """
    return hash_slices(blob, offsets[:-1], np.diff(offsets))


def hash_slices(blob: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Hashes:
    """Hash n slices of an array of bytes.

    The hash is FNV-1a (Fowler, Noll, Vo), mixed as in SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). Each step handles
    the i-th byte of every slice that is long enough, so it works on arrays that shrink as the shorter slices end.

    Args:
        blob: [bytes] The bytes.
        starts: [n] Slice i is `blob[starts[i] : starts[i] + lengths[i]]`; slices may overlap.
        lengths: [n] Lengths in bytes.

    Returns:
        [n] hashes.
    """
    longest = int(lengths.max(initial=0))
    # NumPy sorts 16-bit integers by radix, several times as fast as others.
    missing = longest - lengths if longest >= _RADIX_SORT_LIMIT else (longest - lengths).astype(np.uint16)
    longest_first = np.argsort(missing, kind="stable")
    ordered_starts = starts[longest_first]
    active_counts = len(lengths) - np.cumsum(np.bincount(lengths, minlength=1))  # [longest + 1], by position
    ordered = np.full(len(lengths), _FNV_OFFSET, dtype=np.uint64)
    n_steps = int(np.searchsorted(-active_counts, -_MIN_ACTIVE, side="right"))  # while so many slices are active
    for position in range(min(n_steps, longest)):
        active = ordered[: active_counts[position]]  # a view
        active ^= blob[ordered_starts[: len(active)] + position]
        active *= _FNV_PRIME
    if n_steps < longest:
        for i in range(active_counts[n_steps]):
            start, length = int(starts[longest_first[i]]), int(lengths[longest_first[i]])
            ordered[i] = _hash_rest(int(ordered[i]), blob[start + n_steps : start + length].tobytes())
    hashes = np.empty_like(ordered)
    hashes[longest_first] = mix_bits(ordered)
    return hashes


def _hash_rest(number: int, rest: bytes) -> int:
    """Continue FNV-1a: a step of NumPy for a byte of few slices takes as long as twenty of these."""
    for byte in rest:
        number = ((number ^ byte) * _PRIME) & _MASK
    return number


def mix_bits(numbers: Hashes) -> Hashes:
    """Return [n] numbers of which every bit depends on all bits of the input: the finalizer of SplitMix64."""
    mixed: Hashes = numbers ^ (numbers >> np.uint64(30))
    mixed *= _SPLITMIX_MULTIPLIERS[0]
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SPLITMIX_MULTIPLIERS[1]
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_strings(strings: Sequence[str]) -> Hashes:
    """Return [n] hashes of the UTF-8 bytes of strings."""
    return hash_bytes(*pack_strings(strings))


def encode_utf8(text: str) -> bytes:
    """Encode text as UTF-8; an unpaired surrogate, which JSON can contain, becomes bytes that no valid text has."""
    return text.encode("utf-8", "surrogatepass")


def pack_strings(strings: Sequence[str]) -> tuple[NDArray[np.uint8], Offsets]:
    """Concatenate the UTF-8 bytes of n strings; see `pack_bytes`."""
    return pack_bytes([encode_utf8(text) for text in strings])


def pack_bytes(byte_strings: Sequence[bytes]) -> tuple[NDArray[np.uint8], Offsets]:
    """Concatenate n byte strings.

    Returns:
        [bytes] The strings, end to end, and [n + 1] their offsets.
    """
    lengths = np.fromiter((len(text) for text in byte_strings), dtype=np.int64, count=len(byte_strings))
    return np.frombuffer(b"".join(byte_strings), dtype=np.uint8), offsets_from_lengths(lengths)


def pack_column(texts: pl.Series) -> tuple[NDArray[np.uint8], Offsets]:
    """Concatenate the UTF-8 bytes of a column of n strings without nulls, as `pack_strings` does, in chunks of rows.

    No Python object is held for each string.
    """
    chunks = (texts.slice(start, _CHUNK_ROWS) for start in range(0, len(texts), _CHUNK_ROWS))
    blob = b"".join(encode_utf8(chunk.str.join("").item()) for chunk in chunks)
    return np.frombuffer(blob, dtype=np.uint8), offsets_from_lengths(texts.str.len_bytes().to_numpy())


def unpack_column(blob: NDArray[np.uint8], offsets: Offsets) -> pl.Series:
    """Return the n strings that `pack_column` concatenated as a column."""
    slices = pl.DataFrame({"start": offsets[:-1], "length": np.diff(offsets)})
    cells = pl.lit(blob.tobytes()).bin.slice(pl.col("start"), pl.col("length"))
    return slices.select(cells.cast(pl.String).alias("")).to_series()
