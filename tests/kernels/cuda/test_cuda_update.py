"""update.cu on a CPU against the optimizers, and compiled for every GPU."""

import itertools
from typing import Any

import numpy as np
import pytest
from cuda_host import needs_nvrtc, to_kept

from bareconv.kernels.cuda.compiler import compile_kernel
from bareconv.kernels.cuda.kernel import PRECISIONS, padded
from bareconv.kernels.cuda.limits import GENERATIONS, H100
from bareconv.kernels.cuda.update import Parameter, copy_weights, update, update_table
from bareconv.optim import SGD, Adam, AdamW, RMSprop
from bareconv.optim.rule import SCALARS, Rule, scalars

OPTIMIZERS = {
    "sgd": lambda: SGD(0.1),
    "momentum": lambda: SGD(0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda: SGD(0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda: RMSprop(0.01, weight_decay=0.02),
    "rmsprop with momentum": lambda: RMSprop(0.01, momentum=0.8),
    "adam": lambda: Adam(0.01, weight_decay=0.03),
    "adamw": lambda: AdamW(0.01, weight_decay=0.1),
}
# (taps, C, K) of weights, (K,) of others, and in how many parts their gradients come.
SHAPES = (
    *(((9, 3, 10), 5), ((10,), 131), ((1, 30, 70), 1), ((4, 8, 16), 12), ((33,), 2), ((25, 1, 6), 300)),
    *(((2, 5, 12), 70), ((12,), 3)),
)
BATCH = 300


class Model:
    """Parameters of SHAPES as the kernels have them: flat arrays; partial gradients and copies in ``memory``."""

    def __init__(self, precision, seed=0):
        self.rng = rng = np.random.default_rng(seed)
        self.precision = precision
        self.parameters: list[Any] = []
        self.partials: list[Any] = []
        self.copies: list[Any] = []
        self.parts: list[Any] = []
        start = place = 0
        chunks = []
        for shape, parts in SHAPES:
            count = int(np.prod(shape))
            weight = shape[1:] if len(shape) == 3 else (0, 0)
            one = Parameter(start, count, parts, *weight)
            self.parameters.append(one)
            gradient = rng.standard_normal((parts, count)).astype(np.float32)
            self.parts.append(gradient)
            self.partials.append(place)
            chunks.append(gradient.view(np.uint8).ravel())
            place += gradient.nbytes
            if place % 16:
                chunks.append(np.zeros(-place % 16, np.uint8))
                place += -place % 16
            self.copies.append(None)
            if one.filters:
                filler = np.zeros(one.copy_size * (2 if precision == "bfloat16" else 4), np.uint8)
                self.copies[-1] = place
                chunks.append(filler)
                place += filler.nbytes
            # What lies between belongs to nobody; some parameters begin where four elements are one load.
            start += count + (3 if len(self.parts) in (5, 7) else 4 + -count % 4)
        self.memory = np.concatenate(chunks)
        assert [one.width for one in self.parameters] == [1, 1, 4, 4, 1, 1, 4, 1]
        self.master = rng.standard_normal(start).astype(np.float32)
        self.table = update_table(self.parameters, H100, self.partials, self.copies)
        self.step = {
            "scalars": rng.standard_normal((4, SCALARS)).astype(np.float32),
            "position": np.array([2], np.int32),
            "control": np.array([2, 77, 2 * BATCH + 77, BATCH, 5], np.int32),
            "image_loss": rng.random(BATCH).astype(np.float32),
            "image_hit": rng.integers(0, 2, BATCH).astype(np.int32),
            "losses": np.full(4, np.nan, np.float32),
            "hits": np.full(4, -1, np.int32),
        }
        self.image_hit = self.step["image_hit"].copy()

    def gradient(self, i):
        """Of parameter i, in float64."""
        return self.parts[i].astype(np.float64).sum(axis=0)

    def check_copies(self):
        """The working copies are the masters, rounded, with zeros around them."""
        for one, place, (shape, _) in zip(self.parameters, self.copies, SHAPES, strict=True):
            if place is None:
                continue
            taps, C, K = shape
            kind = np.uint16 if self.precision == "bfloat16" else np.float32
            got = self.memory[place:][: one.copy_size * np.dtype(kind).itemsize].view(kind)
            expected = np.zeros((taps, padded(C), padded(K)), np.float32)
            expected[:, :C, :K] = self.master[one.start :][: one.count].reshape(shape)
            np.testing.assert_array_equal(got, to_kept(expected, self.precision).ravel())

    def check_end_of_step(self):
        """The step's mean loss and hits are in row 2, and the control names the next step, which has no image."""
        step = self.step
        np.testing.assert_allclose(step["losses"][2], step["image_loss"][:77].astype(np.float64).mean(), rtol=1e-6)
        assert step["hits"].tolist() == [-1, -1, self.image_hit[:77].sum(), -1]
        assert np.isnan(step["losses"][[0, 1, 3]]).all()
        assert step["control"].tolist() == [3, 0, 2 * BATCH + 77, BATCH, 5]


@pytest.mark.parametrize(
    ("name", "precision", "order"),
    [
        *((name, "float32", "forward") for name in OPTIMIZERS),
        ("momentum", "bfloat16", "backward"),
        ("adam", "tf32", "random"),
    ],
)
def test_sums_parts_and_steps_as_the_optimizer_does(launch, name, precision, order):
    optimizer, rng = OPTIMIZERS[name](), np.random.default_rng(1)
    model = Model(precision)
    optimizer.step, lr = 6, 0.05
    model.step["scalars"][2] = 0
    numbers = scalars(optimizer, lr)
    model.step["scalars"][2, : len(numbers)] = numbers

    params = {
        str(i): model.master[one.start :][: one.count].astype(np.float64) for i, one in enumerate(model.parameters)
    }
    states: list[Any] = [
        rng.random(model.master.size).astype(np.float32) if s < len(optimizer.slots) else None for s in range(2)
    ]
    slots = {
        f"{slot}/{i}": state[one.start :][: one.count].astype(np.float64)
        for slot, state in zip(optimizer.slots, states, strict=False)
        for i, one in enumerate(model.parameters)
    }
    optimizer.load_state(slots, 6)
    before = model.master.copy()
    rule = Rule.of(optimizer)
    optimizer.update(params, {str(i): model.gradient(i) for i in range(len(SHAPES))}, lr)

    kernel = update(precision, rule, model.parameters, H100, BATCH)
    arrays = {
        "pieces": model.table,
        "memory": model.memory,
        "master": model.master,
        "gradient": None,
    }
    launch(kernel, {**arrays, "state1": states[0], "state2": states[1], **model.step}, order)
    untouched = np.ones(model.master.size, bool)
    for i, one in enumerate(model.parameters):
        place = slice(one.start, one.start + one.count)
        untouched[place] = False
        np.testing.assert_allclose(model.master[place], params[str(i)], rtol=2e-5, atol=2e-5)
        for slot, state in zip(optimizer.slots, states, strict=False):
            np.testing.assert_allclose(state[place], optimizer.state()[f"{slot}/{i}"], rtol=2e-5, atol=2e-5)
    assert untouched.any()
    np.testing.assert_array_equal(model.master[untouched], before[untouched])
    model.check_copies()
    model.check_end_of_step()


def test_gradient_rule_writes_the_sums_and_changes_nothing(launch):
    model = Model("float32")
    before, memory = model.master.copy(), model.memory.copy()
    gradient = np.full(model.master.size, np.nan, np.float32)
    kernel = update("float32", Rule("gradient"), model.parameters, H100, BATCH)
    arrays = {"pieces": model.table, "memory": model.memory, "master": model.master, "gradient": gradient}
    launch(kernel, {**arrays, "state1": None, "state2": None, **model.step})
    for i, one in enumerate(model.parameters):
        np.testing.assert_allclose(gradient[one.start :][: one.count], model.gradient(i), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(model.master, before)
    np.testing.assert_array_equal(model.memory, memory)
    model.check_end_of_step()


@pytest.mark.parametrize(("count", "parts"), [(9001, 40), (9000, 40), (20004, 3), (4100, 130)])
def test_a_large_parameter_is_cut_into_pieces_that_cover_it_once(launch, count, parts):
    rng = np.random.default_rng(2)
    parameter = Parameter(0, count, parts, 0, 0)
    parts = rng.standard_normal((parts, count)).astype(np.float32)
    arrays = {name: np.zeros(count, np.float32) for name in ("master", "gradient")}
    results = []
    for order in ("forward", "random"):
        model = Model("float32")
        kernel = update("float32", Rule("sgd"), [parameter], H100, BATCH)
        assert kernel.grid[0] > 10
        model.step["scalars"][2] = [1.0, 0, 0, 0, 0, 0, 0, 0]
        arrays["master"][:] = 0
        table = update_table([parameter], H100, [0], [None])
        operands = {"pieces": table, "memory": parts.view(np.uint8).ravel()}
        launch(kernel, {**arrays, **operands, "state1": None, "state2": None, **model.step}, order)
        np.testing.assert_allclose(-arrays["master"], parts.astype(np.float64).sum(axis=0), rtol=1e-4, atol=1e-5)
        results.append(arrays["master"].copy())
    np.testing.assert_array_equal(results[0], results[1])  # the same bits in any order of threads


def test_where_others_have_updated_everything(launch):
    """It ends the step."""
    model = Model("float32")
    arrays = {name: np.zeros(8, np.float32) for name in ("master", "gradient")}
    operands = {"pieces": np.zeros(64, np.uint8), "memory": model.memory}
    kernel = update("float32", Rule("sgd"), [], H100, BATCH)
    launch(kernel, {**arrays, **operands, "state1": None, "state2": None, **model.step})
    model.check_end_of_step()


@pytest.mark.parametrize(
    ("count", "parts", "at_once"), [(1000, 3, 3), (18432, 132, 5), (18432, 128, 8), (5000, 300, 5), (5000, 1, 1)]
)
def test_threads_load_an_even_share_of_the_parts_at_once(count, parts, at_once):
    kernel = update("float32", Rule("sgd"), [Parameter(0, count, parts), Parameter(count, 8, 1)], H100, BATCH)
    assert dict(kernel.defines)["PARTS"] == at_once


@pytest.mark.parametrize("precision", PRECISIONS)
def test_copies_weights(launch, precision):
    model = Model(precision)
    kernel = copy_weights(precision, model.parameters, H100)
    launch(kernel, {"pieces": model.table, "memory": model.memory, "master": model.master})
    model.check_copies()


@needs_nvrtc
@pytest.mark.parametrize("limits", GENERATIONS, ids=lambda limits: limits.architecture)
def test_compiles_without_spills(limits):
    parameters = [Parameter(0, 1000, 256, 10, 10)]  # so many parts that a thread loads as many at once as it may
    rules = [Rule("gradient"), Rule.of(SGD(0.1)), *(Rule.of(OPTIMIZERS[name]()) for name in ("nesterov", "adam"))]
    kernels = [
        update(precision, rule, parameters, limits, 64) for precision, rule in itertools.product(PRECISIONS[1:], rules)
    ]
    for kernel in [*kernels, copy_weights("bfloat16", parameters, limits)]:
        code = compile_kernel(kernel, limits.architecture)
        assert (code.spilled, code.stack) == (0, 0)
        assert code.registers <= 64
