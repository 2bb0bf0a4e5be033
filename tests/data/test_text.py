import subprocess
import sys

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.encoding_oracle import hash_token_lists
from support.ragged import to_lists

from vecall.data import text as text_module
from vecall.data.hashing import hash_strings
from vecall.data.text import hash_tokens, tokenize

BUCKETS = 2**20


def hash_lists(texts, buckets=BUCKETS, max_tokens=64):
    return to_lists(hash_tokens(pl.Series(texts, dtype=pl.String), buckets, max_tokens))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" .,!_ ", []),
        ("A", ["a"]),
        ("Toy", ["toy", "<to", "toy", "oy>"]),
        ("it 4", ["it", "4"]),
        ("召回", ["召", "回", "召回"]),
        ("矢量vec召", ["矢", "量", "矢量", "vec", "<ve", "vec", "ec>", "召"]),
        ("ひらカ", ["ひ", "ら", "カ", "ひら", "らカ"]),
        ("서울", ["서", "울", "서울"]),
        ("Straße", tokenize("STRASSE")),  # case folding, not lowercasing
        ("ＡＢＣ ｶﾞ", [*tokenize("abc"), "ガ"]),  # NFKC unifies full and half widths
        ("e\u0301té", tokenize("été")),
    ],
)
def test_text_is_split_into_tokens(text, expected):
    assert tokenize(text) == expected
    assert (
        hash_lists([text])
        == hash_lists([text] * 20)[:1]
        == [[value % BUCKETS + 1 for value in hash_strings(expected).tolist()]]
    )


# Of every length of UTF-8, and with texts that change their length under NFKC and case folding.
CHARACTERS = st.sampled_from("aZ9_ .é\u0301ßıİſŞｶﾞＡ召回矢ひカ서ǅ\u200d\u0660\x00<>'\U0001f600\U00010400ﷺ")
TEXTS = st.text(CHARACTERS, max_size=30) | st.text(max_size=12)


@settings(max_examples=50)
@given(st.lists(TEXTS | st.none(), max_size=8), st.integers(16, 70000), st.integers(1, 20), st.sampled_from([0, 16]))
def test_hashed_tokens_equal_those_of_the_oracle(texts, buckets, max_tokens, min_column_texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_MIN_COLUMN_TEXTS", min_column_texts)
        hashed = hash_tokens(pl.Series(texts, dtype=pl.String), buckets, max_tokens)
    assert to_lists(hashed) == hash_token_lists(texts, buckets, max_tokens)
    assert hashed.values.dtype == "int32"


def test_characters_of_all_scripts_are_read_as_by_the_oracle():
    texts = [f"a{chr(code)}B 1{chr(code)}" for code in range(0, 0x20000, 7) if not 0xD800 <= code < 0xE000]
    texts = ["".join(texts[start : start + 16]) for start in range(0, len(texts), 16)]
    assert hash_lists(texts, max_tokens=400) == hash_token_lists(texts, BUCKETS, 400)


def test_tokens_beyond_the_limit_are_ignored():
    assert hash_lists(["toy story", None, "召", ""], max_tokens=5) == [
        hash_lists(["toy story"])[0][:5],
        [],
        hash_lists(["召"])[0],
        [],
    ]
    assert hash_lists([]) == []
    assert hash_lists([None]) == [[]]


def test_buckets_range_from_1_to_their_number():
    assert set(hash_lists([" ".join(map(str, range(3000)))], 16, 4096)[0]) == set(range(1, 17))


def test_buckets_are_the_same_in_another_process():
    expression = "hash_tokens(pl.Series(['Toy 召回']), 16384, 64).values.tolist()"
    code = f"import polars as pl; from vecall.data.text import hash_tokens; print({expression})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout.strip() == str(hash_lists(["Toy 召回"], 16384)[0])
