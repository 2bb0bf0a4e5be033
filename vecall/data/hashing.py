"""A fixed 64-bit hash of strings, the same in every process and version, computed for many strings at once."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Offsets
from vecall.data.ragged import offsets_from_lengths

Hashes = NDArray[np.uint64]

# The offset basis and prime of FNV-1a; the finalizer of SplitMix64 then makes all bits depend on all bytes.
_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_SPLITMIX_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def hash_bytes(blob: NDArray[np.uint8], offsets: Offsets) -> Hashes:
    """Hash n byte strings that are concatenated in one array.

    The hash is FNV-1a (Fowler, Noll, Vo), mixed as in SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). Each step handles
    the i-th byte of every string that is long enough, so it works on arrays that shrink as the shorter strings end.

    Args:
        blob: [bytes] The strings, end to end.
        offsets: [n + 1] String i is `blob[offsets[i] : offsets[i + 1]]`.

    Returns:
        [n] hashes.
    """
    starts, lengths = offsets[:-1], np.diff(offsets)
    hashes = np.full(len(starts), _FNV_OFFSET, dtype=np.uint64)
    longest_first = np.argsort(-lengths, kind="stable")
    ordered_lengths = lengths[longest_first]
    for position in range(int(lengths.max(initial=0))):
        active = longest_first[: np.searchsorted(-ordered_lengths, -position, side="left")]
        hashes[active] = (hashes[active] ^ blob[starts[active] + position]) * _FNV_PRIME
    return mix_bits(hashes)


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
