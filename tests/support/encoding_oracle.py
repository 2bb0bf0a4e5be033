"""Encoding of features row by row with Python objects: slow and plain, what `FeatureEncoder` must give."""

import re
import unicodedata

import numpy as np

from vecall.data.hashing import hash_strings
from vecall.data.vocabulary import MISSING, OOV
from vecall.schema import CategoryFeature, NumericFeature, TagsFeature, TextFeature, VectorFeature

NGRAM_SIZE = 3
CJK_RANGES = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
RUN_PATTERN = re.compile(rf"[{CJK_RANGES}]+|[^\W_{CJK_RANGES}]+")
CJK_PATTERN = re.compile(rf"[{CJK_RANGES}]")


def tokenize(text):
    """Tokens of a text after NFKC normalization and case folding."""
    tokens = []
    for run in RUN_PATTERN.findall(unicodedata.normalize("NFKC", text).casefold()):
        if CJK_PATTERN.match(run):
            tokens += [*run, *(run[start : start + 2] for start in range(len(run) - 1))]
            continue
        tokens.append(run)
        delimited = f"<{run}>"
        if len(run) >= NGRAM_SIZE:
            tokens += [delimited[start : start + NGRAM_SIZE] for start in range(len(delimited) - NGRAM_SIZE + 1)]
    return tokens


def hash_token_lists(texts, buckets, max_tokens):
    """Buckets of the tokens of each text."""
    token_lists = [tokenize(text)[:max_tokens] if text else [] for text in texts]
    return [[value % buckets + 1 for value in hash_strings(tokens).tolist()] for tokens in token_lists]


def pad(lists):
    """Lists as a matrix, padded with 0."""
    table = np.zeros((len(lists), max([1, *map(len, lists)])), dtype=np.int64)
    for index, rows in enumerate(lists):
        table[index, : len(rows)] = rows
    return table


def encode_feature(cells, feature, state):
    """Encode the cells of a feature; `state` is its fitted NumericState or CategoryState, None for other kinds."""
    values = cells.to_list()
    row_by_value = {value: row for row, value in enumerate(getattr(state, "values", ()), OOV + 1)}
    match feature:
        case NumericFeature():
            has_value = [value is not None and np.isfinite(value) for value in values]
            zscores = [
                min(10.0, max(-10.0, (value - state.mean) / state.std)) if present else 0.0
                for value, present in zip(values, has_value, strict=True)
            ]
            return np.array([zscores, has_value], dtype=np.float64).T.astype(np.float32).reshape(len(values), 2)
        case CategoryFeature():
            return np.array(
                [MISSING if value is None else row_by_value.get(value, OOV) for value in values], dtype=np.int64
            )
        case TagsFeature():
            tag_lists = [(tags or [])[: feature.max_tags] for tags in values]
            return pad([[row_by_value[tag] for tag in tags if tag in row_by_value] for tags in tag_lists])
        case VectorFeature():
            zeros = [0.0] * feature.size
            vectors = [zeros if value is None else value for value in values]
            return np.array(vectors, dtype=np.float32).reshape(len(values), feature.size)
        case TextFeature():
            return pad(hash_token_lists(values, feature.buckets, feature.max_tokens))
    return None


def encode(encoder, frame):
    """Encode the rows of a frame as `encoder.encode` does."""
    state = encoder.state
    return {
        name: encode_feature(frame[name], feature, state.numeric.get(name) or state.categorical.get(name))
        for name, feature in state.features.items()
    }
