"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from bareconv.report import format as fmt


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "0 s"),
        (1e-9, "1.00 ns"),
        (12e-6, "12.0 µs"),
        (9.996e-6, "10.0 µs"),
        (999.9e-6, "1.00 ms"),
        (0.0045, "4.50 ms"),
        (0.99996, "1.00 s"),
        (53.21, "53.2 s"),
        (99.97, "100 s"),
        (119.4, "119 s"),
        (119.7, "2 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3725, "1 h 02 min"),
        (90000, "25 h 00 min"),
    ],
)
def test_seconds(x: float, text: str) -> None:
    assert fmt.seconds(x) == text


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "0 B"),
        (1000, "1,000 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (312 * 2**20, "312 MiB"),
        (1023.9 * 2**20, "1.00 GiB"),
        (80 * 2**30, "80.0 GiB"),
        (5000 * 2**40, "5,000 TiB"),
    ],
)
def test_bytes(x: float, text: str) -> None:
    assert fmt.bytes_(x) == text


def test_rates_and_counts() -> None:
    assert fmt.rate(12345.4) == "12,345/s"
    assert fmt.rate(8.2145, "images") == "8.21 images/s"
    assert fmt.rate(99.97) == "100/s"
    assert fmt.count(60000) == "60,000"
    assert fmt.count(2.5) == "2.5"
    assert fmt.flops(2.584e12) == "2.58 TFLOP/s"
    assert fmt.flops(999.7e9) == "1.00 TFLOP/s"
    assert fmt.flops(12) == "12.0 FLOP/s"


def test_per_cent_never_rounds_an_error_away() -> None:
    assert fmt.percent(0.9896) == "98.96%"
    assert fmt.percent(1) == "100%"
    assert fmt.percent(0.99999) == ">99.99%"
    assert fmt.percent(0.9999, 0) == ">99%"
    assert fmt.percent(0) == "0%"
    assert fmt.percent(1e-9) == "<0.01%"
    assert fmt.percent(0.5, 1) == "50.0%"


def test_ratios() -> None:
    assert fmt.ratio(23.14) == "23.1×"
    assert fmt.ratio(23.14, 2) == "23×"
    assert fmt.ratio(1.236) == "1.24×"
    assert fmt.ratio(0.4199) == "0.42×"
    assert fmt.ratio(1234.4) == "1,234×"


def test_powers_of_ten() -> None:
    assert fmt.scientific(2.13e-6) == "2.1×10⁻⁶"
    assert fmt.scientific(1e-3) == "10⁻³"
    assert fmt.scientific(9.96e-4) == "10⁻³"
    assert fmt.scientific(0) == "0"
    assert fmt.scientific(3e12) == "3.0×10¹²"


@pytest.mark.parametrize(
    "function",
    [fmt.seconds, fmt.bytes_, fmt.rate, fmt.count, fmt.percent, fmt.ratio, fmt.scientific, fmt.flops],
)
def test_what_is_not_a_number_is_a_dash(function: object) -> None:
    assert callable(function)
    for x in (None, math.nan, math.inf, -math.inf):
        assert function(x) == "–"
