"""Text to hashed tokens, for any script, without a word list."""

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vecall.data.hashing import hash_strings

_NGRAM = 3
# Scripts written without spaces: characters and pairs of them stand for words.
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_RUNS = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")


def tokens(text: str) -> list[str]:
    """Words and their character trigrams; single characters and pairs in CJK. NFKC and casefolded first."""
    return list(_tokens(unicodedata.normalize("NFKC", text).casefold()))


def _tokens(text: str) -> Iterator[str]:
    for run in _RUNS.findall(text):
        if _IS_CJK.match(run):
            yield from run
            yield from (run[i : i + 2] for i in range(len(run) - 1))
            continue
        yield run
        edged = f"<{run}>"
        if len(run) >= _NGRAM:
            yield from (edged[i : i + _NGRAM] for i in range(len(edged) - _NGRAM + 1))


def hashed_tokens(texts: list[str | None], buckets: int, max_tokens: int) -> NDArray[np.int64]:
    """[B, T] buckets from 1, padded with 0; T is the longest text's number of tokens, at least 1."""
    lists = [tokens(text)[:max_tokens] if text else [] for text in texts]
    lengths = np.array([len(found) for found in lists], dtype=np.int64)
    table = np.zeros((len(lists), max(1, int(lengths.max(initial=0)))), dtype=np.int64)
    flat = hash_strings([token for found in lists for token in found])
    table[np.arange(table.shape[1]) < lengths[:, None]] = (flat % np.uint64(buckets)).astype(np.int64) + 1
    return table
