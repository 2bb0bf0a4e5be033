"""Tokenization and hashing of text in any script, without a vocabulary.

Text is normalized (NFKC, case folding) and cut into runs: words, or stretches of CJK text. The tokens of a word are the
word, then its character trigrams with `<` and `>` as its edges; the tokens of CJK text are its single characters, then
its pairs of neighbours. Words of less than three characters have no trigrams.
"""

import re
import unicodedata
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Mask, Offsets
from vecall.data.hashing import Hashes, hash_slices, hash_strings, pack_column
from vecall.data.list_cells import replace_where
from vecall.data.ragged import RaggedArray, offsets_from_lengths

_NGRAM_SIZE = 3
# Scripts written without spaces. Their tokens are single characters and pairs of them, in place of words.
_CJK_RANGES = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_RUN_PATTERN = re.compile(rf"[{_CJK_RANGES}]+|[^\W_{_CJK_RANGES}]+")
_ASCII_RUN_PATTERN = "[a-z0-9]+"  # what is left of _RUN_PATTERN in lower-case ASCII text
_CJK_PATTERN = re.compile(rf"^[{_CJK_RANGES}]")
_MIN_COLUMN_TEXTS = 16  # fewer, as of a request, are hashed faster one by one


def hash_tokens(texts: pl.Series, buckets: int, max_tokens: int) -> RaggedArray:
    """Hash the tokens of B texts into buckets.

    Args:
        texts: [B] String; null has no tokens.
        buckets: Number of buckets, below 2^31.
        max_tokens: Tokens read per text; further ones are ignored.

    Returns:
        B lists of buckets from 1 to `buckets`, int32, in the order of the tokens.
    """
    if len(texts) < _MIN_COLUMN_TEXTS:
        return _hash_few_tokens(texts, buckets, max_tokens)
    runs, run_offsets = _split_runs(texts)
    layout = _build_run_layout(runs)
    totals = offsets_from_lengths(layout.token_counts)  # [runs + 1]
    text_lengths = np.minimum(np.diff(totals[run_offsets]), max_tokens)  # [B]
    first_of_text = np.repeat(totals[run_offsets[:-1]], np.diff(run_offsets))  # [runs]
    n_read = np.clip(max_tokens - (totals[:-1] - first_of_text), 0, layout.token_counts)  # [runs]
    hashes = hash_slices(layout.blob, *_slice_tokens(layout, n_read))
    return RaggedArray(offsets_from_lengths(text_lengths), _to_buckets(hashes, buckets))


def _to_buckets(hashes: Hashes, buckets: int) -> NDArray[np.int32]:
    return (hashes % np.uint64(buckets)).astype(np.int32) + np.int32(1)


def _hash_few_tokens(texts: pl.Series, buckets: int, max_tokens: int) -> RaggedArray:
    token_lists = [tokenize(text)[:max_tokens] if text else [] for text in texts]
    lengths = np.array([len(tokens) for tokens in token_lists], dtype=np.int64)
    hashes = hash_strings([token for tokens in token_lists for token in tokens])
    return RaggedArray(offsets_from_lengths(lengths), _to_buckets(hashes, buckets))


def tokenize(text: str) -> list[str]:
    """Split text into tokens, after normalization."""
    tokens: list[str] = []
    for run in _find_runs(text):
        if _CJK_PATTERN.match(run):
            tokens += [*run, *(run[start : start + 2] for start in range(len(run) - 1))]
            continue
        tokens.append(run)
        if len(run) >= _NGRAM_SIZE:
            delimited = f"<{run}>"
            tokens += [delimited[start : start + _NGRAM_SIZE] for start in range(len(run))]
    return tokens


def _find_runs(text: str) -> list[str]:
    return _RUN_PATTERN.findall(unicodedata.normalize("NFKC", text).casefold())


def _split_runs(texts: pl.Series) -> tuple[pl.Series, Offsets]:
    """Return all runs of B normalized texts, and [B + 1] their offsets by text.

    ASCII text is split by Polars: it is in NFKC, and its case folding is lower case.
    """
    texts = texts.fill_null("")
    is_ascii = texts.str.len_bytes() == texts.str.len_chars()
    lists = texts.str.to_lowercase().str.extract_all(_ASCII_RUN_PATTERN)
    if not is_ascii.all():
        found = pl.Series([_find_runs(text) for text in texts.filter(~is_ascii)], dtype=pl.List(pl.String))
        lists = replace_where(~is_ascii, lists, found)
    offsets = offsets_from_lengths(lists.list.len().to_numpy())
    return lists.explode().drop_nulls(), offsets  # an empty list becomes a null


class _RunLayout(NamedTuple):
    """R runs in an array of bytes, each as `<run>`.

    Attributes:
        blob: [bytes] UTF-8, end to end.
        char_starts: [chars + 1] Start of each character in `blob`.
        first_chars: [R] Index of each run's `<` in `char_starts`.
        char_counts: [R] Characters of each run, without the edges.
        is_cjk: [R] Whether the run is CJK text.
    """

    blob: NDArray[np.uint8]
    char_starts: NDArray[np.int64]
    first_chars: NDArray[np.int64]
    char_counts: NDArray[np.int64]
    is_cjk: Mask

    @property
    def token_counts(self) -> NDArray[np.int64]:
        """Number of tokens of each run, [R]."""
        words = 1 + np.where(self.char_counts >= _NGRAM_SIZE, self.char_counts, 0)
        return np.where(self.is_cjk, 2 * self.char_counts - 1, words)


def _build_run_layout(runs: pl.Series) -> _RunLayout:
    blob, _ = pack_column("<" + runs + ">")
    is_char_start = (blob & 0xC0) != 0x80  # other bytes continue a character of UTF-8
    char_counts = runs.str.len_chars().cast(pl.Int64).to_numpy()
    return _RunLayout(
        blob=blob,
        char_starts=np.append(np.flatnonzero(is_char_start), len(blob)),
        first_chars=offsets_from_lengths(char_counts + 2)[:-1],
        char_counts=char_counts,
        is_cjk=runs.str.contains(_CJK_PATTERN.pattern).to_numpy(),
    )


def _slice_tokens(layout: _RunLayout, n_read: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the start and the length in bytes of the first `n_read` tokens of each run, [total] each."""
    run_of_token = np.repeat(np.arange(len(n_read)), n_read)
    index = np.arange(len(run_of_token)) - np.repeat(offsets_from_lengths(n_read)[:-1], n_read)  # within the run
    n_chars = layout.char_counts[run_of_token]
    # In characters from `<` on. Word: the word, then trigrams from `<` on. CJK: characters, then pairs.
    first = np.where(index == 0, 1, index - 1)
    size = np.where(index == 0, n_chars, _NGRAM_SIZE)
    if layout.is_cjk.any():
        is_cjk = layout.is_cjk[run_of_token]
        is_pair = index >= n_chars
        first = np.where(is_cjk, 1 + index - np.where(is_pair, n_chars, 0), first)
        size = np.where(is_cjk, np.where(is_pair, 2, 1), size)
    first += layout.first_chars[run_of_token]
    starts = layout.char_starts[first]
    return starts, layout.char_starts[first + size] - starts
