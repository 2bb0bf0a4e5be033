"""Text to hashed tokens, for any script, without a word list."""

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vecall.data.hashing import hash_strings

_NGRAM_SIZE = 3
# Scripts written without spaces: characters and pairs of them stand for words.
_CJK_RANGES = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_RUN_PATTERN = re.compile(rf"[{_CJK_RANGES}]+|[^\W_{_CJK_RANGES}]+")
_CJK_PATTERN = re.compile(rf"[{_CJK_RANGES}]")


def tokenize(text: str) -> list[str]:
    """Words and their character trigrams; single characters and pairs in CJK. NFKC and casefolded first."""
    return list(_iterate_tokens(unicodedata.normalize("NFKC", text).casefold()))


def _iterate_tokens(text: str) -> Iterator[str]:
    for run in _RUN_PATTERN.findall(text):
        if _CJK_PATTERN.match(run):
            yield from run
            yield from (run[i : i + 2] for i in range(len(run) - 1))
            continue
        yield run
        edged = f"<{run}>"
        if len(run) >= _NGRAM_SIZE:
            yield from (edged[i : i + _NGRAM_SIZE] for i in range(len(edged) - _NGRAM_SIZE + 1))


def hash_tokens(texts: list[str | None], buckets: int, max_tokens: int) -> NDArray[np.int64]:
    """[B, T] buckets from 1, padded with 0; T is the longest text's number of tokens, at least 1."""
    lists = [tokenize(text)[:max_tokens] if text else [] for text in texts]
    lengths = np.array([len(found) for found in lists], dtype=np.int64)
    table = np.zeros((len(lists), max(1, int(lengths.max(initial=0)))), dtype=np.int64)
    flat = hash_strings([token for found in lists for token in found])
    table[np.arange(table.shape[1]) < lengths[:, None]] = (flat % np.uint64(buckets)).astype(np.int64) + 1
    return table
