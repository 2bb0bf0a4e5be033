"""Tokenization and hashing of text in any script, without a vocabulary."""

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vecall.data.hashing import hash_strings

_NGRAM_SIZE = 3
# Scripts written without spaces. Their tokens are single characters and pairs of them, in place of words.
_CJK_RANGES = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_RUN_PATTERN = re.compile(rf"[{_CJK_RANGES}]+|[^\W_{_CJK_RANGES}]+")
_CJK_PATTERN = re.compile(rf"[{_CJK_RANGES}]")


def tokenize(text: str) -> list[str]:
    """Split text into tokens, after NFKC normalization and case folding.

    Returns:
        Words, each followed by its character trigrams with `<` and `>` as its edges. Of CJK text single characters,
        then pairs of neighbours.
    """
    return list(_iterate_tokens(unicodedata.normalize("NFKC", text).casefold()))


def _iterate_tokens(text: str) -> Iterator[str]:
    for run in _RUN_PATTERN.findall(text):
        if _CJK_PATTERN.match(run):
            yield from run
            yield from (run[start : start + 2] for start in range(len(run) - 1))
            continue
        yield run
        delimited = f"<{run}>"
        if len(run) >= _NGRAM_SIZE:
            yield from (delimited[start : start + _NGRAM_SIZE] for start in range(len(delimited) - _NGRAM_SIZE + 1))


def hash_tokens(texts: list[str | None], buckets: int, max_tokens: int) -> NDArray[np.int64]:
    """Hash the tokens of B texts into buckets.

    Args:
        texts: [B] Texts; None has no tokens.
        buckets: Number of buckets.
        max_tokens: Tokens read per text; further ones are ignored.

    Returns:
        [B, T] Buckets from 1 to `buckets`, padded with 0; T is the largest number of tokens, at least 1.
    """
    token_lists = [tokenize(text)[:max_tokens] if text else [] for text in texts]
    lengths = np.array([len(tokens) for tokens in token_lists], dtype=np.int64)
    table = np.zeros((len(token_lists), max(1, int(lengths.max(initial=0)))), dtype=np.int64)
    hashes = hash_strings([token for tokens in token_lists for token in tokens])
    table[np.arange(table.shape[1]) < lengths[:, None]] = (hashes % np.uint64(buckets)).astype(np.int64) + 1
    return table
