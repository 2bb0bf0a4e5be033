import subprocess
import sys

import pytest

from vecall.data.text import hash_tokens, tokenize


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
        ("\ud800", []),
    ],
)
def test_text_is_split_into_tokens(text, expected):
    assert tokenize(text) == expected


def test_buckets_are_padded_with_0_and_truncated():
    table = hash_tokens(["toy story", None, "召", ""], buckets=1000, max_tokens=5)
    assert table.shape == (4, 5)
    assert (table[0] > 0).all()
    assert table[2].tolist() == [hash_tokens(["召"], 1000, 5)[0, 0], 0, 0, 0, 0]
    assert not table[[1, 3]].any()
    assert hash_tokens([None], 16, 5).tolist() == [[0]]
    assert hash_tokens([], 16, 5).shape == (0, 1)


def test_buckets_range_from_1_to_their_number():
    table = hash_tokens([" ".join(map(str, range(3000)))], buckets=16, max_tokens=4096)
    assert set(table[0].tolist()) == set(range(1, 17))


def test_buckets_are_the_same_in_another_process():
    code = "from vecall.data.text import hash_tokens; print(hash_tokens(['Toy 召回'], 16384, 64).tolist())"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout.strip() == str(hash_tokens(["Toy 召回"], 16384, 64).tolist())
