"""Kernels that measure ceilings: what they compute, and that they do no less than they say."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import call, filled, single

from bareconv.kernels.cpu.jit import assembly
from bareconv.kernels.cpu.peak import Nothing, PeakFma, Stream


@pytest.mark.parametrize("operation", list(Stream.ARRAYS))
def test_streams(operation, target, rng):
    kernel = Stream(target, operation)
    piece, pieces, passes = Stream.PIECE * target.lanes, 3, 2
    values = {name: rng.uniform(-1, 1, pieces * piece).astype(target.dtype) for name in "abc"}
    # As the one array of all that it goes through, whichever piece the range begins with.
    blocks = {name: single(value) for name, value in values.items()}
    blocks |= {"passes": single(np.array([passes])), "sums": single(np.zeros(piece, target.dtype))}
    written = {"fill": ["a"], "read": [], "copy": ["b"], "triad": ["c"]}[operation]
    changed = [*written, "sums"]
    call(kernel, blocks, changed, range(5, 5 + pieces), whole=changed)
    a, b, c = (blocks[name].data[0] for name in "abc")
    expected = {"fill": (a, 1.0), "read": (a, values["a"]), "copy": (b, values["a"])}
    expected["triad"] = c, values["a"] + values["b"] / 2
    np.testing.assert_allclose(*expected[operation], rtol=1e-6)
    total = passes * values["a"].reshape(pieces, piece).sum(axis=0) if operation == "read" else 0.0
    np.testing.assert_allclose(blocks["sums"].data[0], total, rtol=1e-5, atol=1e-6)
    arrays = {"fill": 1, "read": 1, "copy": 2, "triad": 3}[operation]
    assert kernel.bytes(pieces, 0) == arrays * values["a"].nbytes


def test_multiply_adds_are_counted_as_they_are_written(target):
    """As many chains of them as the code has instructions, each of as many lanes, over and over."""
    kernel = PeakFma(target)
    assert kernel.flops == 2 * 1000 * kernel.chains * target.lanes
    if target.name in ("AVX-512", "AVX2"):
        assert assembly(kernel).count("vfmadd") == kernel.chains
    rounds = 2
    sums = filled(np.zeros((1, kernel.chains * target.lanes), target.dtype))
    call(kernel, {"sums": sums}, ["sums"], range(rounds), whole=["sums"])
    np.testing.assert_allclose(sums.data, 0.5 * (1 - 0.999 ** (1000 * rounds)) / 0.001, rtol=1e-3)


def test_nothing(target):
    call(Nothing(target), {}, [], range(3))
