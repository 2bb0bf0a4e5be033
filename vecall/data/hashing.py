"""A fixed 64-bit hash of strings, the same in every process and version, computed for many at once."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# FNV-1a's offset and prime, then the finaliser of SplitMix64 so that all bits depend on all bytes.
_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_SPLITMIX_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def hash_bytes(blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Hashes:
    """Hash n strings that lie one after the other in `blob`, string i at `offsets[i] : offsets[i + 1]`.

    FNV-1a over the bytes (Fowler, Noll, Vo), mixed as in SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    One step handles the i-th byte of every string that has one: [n] at first, fewer as short strings end.
    """
    starts, lengths = offsets[:-1], np.diff(offsets)
    hashes = np.full(len(starts), _FNV_OFFSET, dtype=np.uint64)
    longest_first = np.argsort(-lengths, kind="stable")
    ordered_lengths = lengths[longest_first]
    for position in range(int(lengths.max(initial=0))):
        alive = longest_first[: np.searchsorted(-ordered_lengths, -position, side="left")]
        hashes[alive] = (hashes[alive] ^ blob[starts[alive] + position]) * _FNV_PRIME
    return mix_bits(hashes)


def mix_bits(numbers: Hashes) -> Hashes:
    """[n] numbers whose bits depend on all bits of those given: SplitMix64's finaliser."""
    mixed: Hashes = numbers ^ (numbers >> np.uint64(30))
    mixed *= _SPLITMIX_MULTIPLIERS[0]
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SPLITMIX_MULTIPLIERS[1]
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_strings(strings: Sequence[str]) -> Hashes:
    """[n] hashes of the strings' UTF-8 bytes."""
    return hash_bytes(*pack_strings(strings))


def encode_utf8(text: str) -> bytes:
    """UTF-8; half of a surrogate pair, which JSON can bring, is no UTF-8 and becomes bytes that no id has."""
    return text.encode("utf-8", "surrogatepass")


def pack_strings(strings: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The strings' UTF-8 bytes end to end, and [n + 1] where each begins."""
    return pack_bytes([encode_utf8(text) for text in strings])


def pack_bytes(byte_strings: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """As `pack`, of what is UTF-8 already."""
    lengths = np.fromiter((len(text) for text in byte_strings), dtype=np.int64, count=len(byte_strings))
    blob = np.frombuffer(b"".join(byte_strings), dtype=np.uint8)
    return blob, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
