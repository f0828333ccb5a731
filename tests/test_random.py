"""Philox and what is made of it: the published test vectors, a second implementation, and statistics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bareconv import random

STREAM = (random.SPLIT, 5, 9)


def philox_numbers(counter, key):
    """Philox4x32-10 once more, in Python's integers and in the words of the paper: what the arrays are held against."""
    (x0, x1, x2, x3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * x0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * x2, 2**32)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [x0, x1, x2, x3]


def word(seed, stream, i):
    """The i-th word of a stream, on its own."""
    purpose, a, b = stream
    block = i // 4
    counter = [block % 2**32, block // 2**32, a, purpose * 2**24 + b]
    return philox_numbers(counter, [seed % 2**32, seed // 2**32 % 2**32])[i % 4]


# From the known answers that come with Random123, for philox4x32 with 10 rounds.
KNOWN = [
    (
        [0x00000000, 0x00000000, 0x00000000, 0x00000000],
        (0x00000000, 0x00000000),
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
    ),
    (
        [0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF],
        (0xFFFFFFFF, 0xFFFFFFFF),
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def test_many_words_are_drawn_in_pieces(monkeypatch, device):
    """However large the pieces, the words are the same."""
    whole = [random.words(7, STREAM, count, device.xp) for count in (0, 1, 31, 32, 33, 100)]
    order = random.permutation(7, STREAM, 50)
    for piece in (1, 8):
        monkeypatch.setattr(random, "_PIECE", piece)
        for words in whole:
            again = random.words(7, STREAM, len(words), device.xp)
            assert device.to_host(again).tolist() == device.to_host(words).tolist()
            assert again.dtype == np.uint32
        assert random.permutation(7, STREAM, 50).tolist() == order.tolist()


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers(counter, key, expected, device):
    assert philox_numbers(counter, key) == expected
    out = random.philox([device.xp.full(3, c, dtype=np.uint64) for c in counter], key)
    assert {w.dtype for w in out} == {np.dtype(np.uint64)}
    for ours, known in zip(out, expected, strict=True):
        np.testing.assert_array_equal(device.to_host(ours), known)


def test_the_first_words_are_the_known_answer(device):
    """Seed, stream and index 0 make the counter and the key that the vector of zeros is for."""
    out = random.words(0, (0, 0, 0), 4, device.xp)
    assert device.to_host(out).tolist() == KNOWN[0][2]


@given(
    seed=st.integers(-(2**70), 2**70),
    purpose=st.integers(0, 2**8 - 1),
    a=st.integers(0, 2**32 - 1),
    b=st.integers(0, 2**24 - 1),
    count=st.integers(0, 11),
)
def test_words_are_the_second_implementation_s(seed, purpose, a, b, count, device):
    out = random.words(seed, (purpose, a, b), count, device.xp)
    assert out.dtype == np.uint32
    assert device.to_host(out).tolist() == [word(seed, (purpose, a, b), i) for i in range(count)]


def test_many_words(device):
    """Past any block of threads, and not a multiple of four."""
    count = 1_000_003
    out = random.words(11, STREAM, count, device.xp)
    assert out.shape == (count,)
    for i in (0, 3, 4, 65_535, 65_536, 262_144, 999_999, count - 2, count - 1):
        assert int(out[i]) == word(11, STREAM, i)
    assert int(device.to_host(out).astype(np.uint64).sum()) / count == pytest.approx(2**31, rel=5 / (3 * count) ** 0.5)


def test_the_same_numbers_on_every_device(device):
    for count in (1, 6, 10_001):
        np.testing.assert_array_equal(
            device.to_host(random.words(3, STREAM, count, device.xp)), random.words(3, STREAM, count)
        )
    on_device = random.uniform(3, STREAM, (25, 4, 11), device.xp)
    assert on_device.dtype == np.float32
    assert isinstance(on_device, device.xp.ndarray)
    np.testing.assert_array_equal(device.to_host(on_device), random.uniform(3, STREAM, (25, 4, 11)))


@given(first=st.integers(0, 40), more=st.integers(0, 40))
def test_a_longer_draw_begins_with_the_shorter(first, more, device):
    long = device.to_host(random.words(1, STREAM, first + more, device.xp))
    np.testing.assert_array_equal(device.to_host(random.words(1, STREAM, first, device.xp)), long[:first])
    np.testing.assert_array_equal(random.normal(1, STREAM, (first + more,))[:first], random.normal(1, STREAM, (first,)))


def test_streams_and_seeds_share_no_word():
    """Neighbours in every coordinate, and pairs that a careless packing would make one."""
    purposes = (random.INIT, random.SHUFFLE, random.DROPOUT, random.SPLIT)
    assert len(set(purposes)) == 4
    places = [
        (seed, (purpose, a, b))
        for seed in (0, 1, 2**32, 2**32 + 1)
        for purpose in (*purposes, 255)
        for a in (0, 1, 2**32 - 1)
        for b in (0, 1, 2, 2**24 - 1)
    ]
    blocks = {tuple(random.words(seed, stream, 4).tolist()) for seed, stream in places}
    assert len(blocks) == len(places) == 4 * 5 * 3 * 4


def test_a_seed_counts_modulo_two_to_the_64():
    expected = random.words(2**64 - 1, STREAM, 8)
    np.testing.assert_array_equal(random.words(-1, STREAM, 8), expected)
    np.testing.assert_array_equal(random.words(2**65 - 1, STREAM, 8), expected)


@pytest.mark.parametrize("integer", [np.uint8, np.int32, np.int64, np.uint64])
def test_numpy_integers_are_integers(integer):
    """Labels, steps and layers come out of arrays, too; a byte must not overflow when it is shifted."""
    out = random.words(integer(7), (integer(2), integer(5), integer(3)), 8)
    np.testing.assert_array_equal(out, random.words(7, (2, 5, 3), 8))


@pytest.mark.parametrize("draw", [random.words, random.uniform, random.uniform64, random.normal, random.permutation])
@pytest.mark.parametrize(
    "stream", [(-1, 0, 0), (256, 0, 0), (0, -1, 0), (0, 2**32, 0), (0, 0, -1), (0, 0, 2**24)], ids=str
)
def test_a_stream_out_of_range_is_refused(draw, stream):
    size = 4 if draw in (random.words, random.permutation) else (4,)
    with pytest.raises(ValueError, match=r"random stream \(.*\): expected 0 <= purpose < 2\*\*8"):
        draw(0, stream, size)


def test_the_last_stream_is_a_stream():
    assert random.words(0, (255, 2**32 - 1, 2**24 - 1), 2).tolist() == [
        word(0, (255, 2**32 - 1, 2**24 - 1), i) for i in range(2)
    ]


@pytest.mark.parametrize("not_an_integer", [1.5, "7"])
def test_a_seed_must_be_an_integer(not_an_integer):
    with pytest.raises(TypeError, match="integer"):
        random.words(not_an_integer, STREAM, 4)


# --- What is made of the words ---------------------------------------------------------------------------------------


def draw_uniform(device, n):
    return device.to_host(random.uniform(2, STREAM, (n,), device.xp)).astype(np.float64)


def draw_uniform64(_, n):
    return random.uniform64(2, STREAM, (n,))


@pytest.mark.parametrize("draw", [draw_uniform, draw_uniform64])
def test_uniform_moments_and_bins(draw, device):
    n = 200_000
    u = draw(device, n)
    assert 0.0 <= u.min() < 1e-4
    assert 1.0 - 1e-4 < u.max() < 1.0
    assert u.mean() == pytest.approx(0.5, abs=5 * (1 / 12 / n) ** 0.5)
    assert u.var() == pytest.approx(1 / 12, abs=5 * (1 / 180 / n) ** 0.5)
    for lag in (1, 2, 4):  # the words of one block, and of neighbours
        assert np.corrcoef(u[:-lag], u[lag:])[0, 1] == pytest.approx(0.0, abs=5 / n**0.5)
    counts = np.bincount((u * 256).astype(np.int64), minlength=256)
    chi_squared = ((counts - n / 256) ** 2 / (n / 256)).sum()
    assert chi_squared == pytest.approx(255, abs=5 * (2 * 255) ** 0.5)


@pytest.mark.parametrize(("bits", "low", "high"), [(0, 0.0, 0.0), (0xFFFFFFFF, 1 - 2.0**-24, 1 - 2.0**-53)])
def test_uniform_at_its_ends(bits, low, high, device, monkeypatch):
    """0 can be drawn, 1 cannot: no rounding makes one of the largest word; and the normal numbers stay finite."""
    monkeypatch.setattr(random, "words", lambda seed, stream, count, xp=np: xp.full(count, bits, dtype=np.uint32))
    np.testing.assert_array_equal(device.to_host(random.uniform(0, STREAM, (3,), device.xp)), np.float32(low))
    np.testing.assert_array_equal(random.uniform64(0, STREAM, (3,)), high)
    assert high < 1.0
    assert np.isfinite(random.normal(0, STREAM, (4,))).all()


def test_uniform_takes_the_high_bits():
    """24 of a word, 53 of two: as numbers, not as statistics."""
    w = [word(2, STREAM, i) for i in range(6)]
    assert random.uniform(2, STREAM, (6,)).tolist() == [v // 2**8 / 2**24 for v in w]
    assert random.uniform64(2, STREAM, (3,)).tolist() == [
        (w[2 * i] // 2**5 * 2**26 + w[2 * i + 1] // 2**6) / 2**53 for i in range(3)
    ]


def test_normal_moments():
    n = 200_000
    z = random.normal(4, STREAM, (n,))
    assert z.dtype == np.float64
    assert z.mean() == pytest.approx(0.0, abs=5 / n**0.5)
    assert z.var() == pytest.approx(1.0, abs=5 * (2 / n) ** 0.5)
    assert (z**3).mean() == pytest.approx(0.0, abs=5 * (15 / n) ** 0.5)
    assert (z**4).mean() == pytest.approx(3.0, abs=5 * (96 / n) ** 0.5)
    for lag in (1, 2):  # within and across the pairs of Box and Muller
        assert np.corrcoef(z[:-lag], z[lag:])[0, 1] == pytest.approx(0.0, abs=5 / n**0.5)
    assert np.corrcoef(z[0::2] ** 2, z[1::2] ** 2)[0, 1] == pytest.approx(0.0, abs=5 / (n / 2) ** 0.5)


def test_normal_distribution_and_tails():
    n = 200_000
    z = np.sort(random.normal(4, STREAM, (n,)))
    distribution = np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in z])
    assert np.abs(distribution - (np.arange(n) + 0.5) / n).max() < 2.0 / n**0.5  # Kolmogorov: beyond it 1 in 1500
    for bound in (2.0, 3.0, 4.0):
        share = math.erfc(bound / math.sqrt(2.0))
        for side in (z > bound, z < -bound):
            assert side.sum() == pytest.approx(n * share / 2, abs=5 * (n * share / 2) ** 0.5)


def test_normal_is_box_and_muller_s():
    """The first four numbers, from the words up."""
    w = [word(4, STREAM, i) for i in range(8)]
    u = [(w[2 * i] // 2**5 * 2**26 + w[2 * i + 1] // 2**6) / 2**53 for i in range(4)]
    expected = []
    for first, second in (u[:2], u[2:]):
        radius, angle = math.sqrt(-2.0 * math.log(1.0 - first)), 2.0 * math.pi * second
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    np.testing.assert_allclose(random.normal(4, STREAM, (4,)), expected, rtol=1e-13)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 0, 3), (3, 5, 7)], ids=str)
def test_shapes(shape, device):
    for out in (
        random.uniform(0, STREAM, shape, device.xp),
        random.uniform64(0, STREAM, shape),
        random.normal(0, STREAM, shape),
    ):
        assert out.shape == shape


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000, 60_001])
def test_a_permutation_is_one(n):
    order = random.permutation(6, STREAM, n)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(random.permutation(6, STREAM, n), order)


def test_permutations_differ_and_are_far_from_sorted():
    orders = [random.permutation(6, (random.SHUFFLE, epoch, 0), 1000) for epoch in range(4)]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).sum() < 10  # one in a thousand stays, on average
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 5 / 1000**0.5


def test_every_permutation_is_as_likely():
    draws = 4800
    seen = [tuple(random.permutation(6, (random.SHUFFLE, epoch, 0), 4).tolist()) for epoch in range(draws)]
    counts = [seen.count(order) for order in itertools.permutations(range(4))]
    assert sum(counts) == draws
    chi_squared = sum((count - draws / 24) ** 2 / (draws / 24) for count in counts)
    assert chi_squared == pytest.approx(23, abs=5 * (2 * 23) ** 0.5)
