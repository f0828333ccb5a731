"""Evaluation: every figure against a count or a formula by hand, and the model as it was afterwards."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bareconv import nn, optim
from bareconv.data import Split
from bareconv.training import Evaluation, evaluate, make_engine, predict

LABELS = [0, 0, 1, 1, 1, 2, 2, 0, 1]
PREDICTED = [0, 1, 1, 1, 0, 1, 0, 0, 1]  # never 2
CONFIDENCE = [0.9, 0.7, 0.8, 0.5, 0.95, 0.7, 0.99, 0.6, 0.4]


@pytest.fixture
def judged():
    return Evaluation(
        0.5, np.array(PREDICTED, np.int64), np.array(CONFIDENCE), np.array(LABELS, np.int32), classes=4
    )  # no image of class 3


def engine_of(model, device="cpu", precision="float64", engine="reference"):
    return make_engine(engine, model.to(device, precision), optim.SGD(0.1))


def test_accuracy_and_confusion(judged):
    assert judged.accuracy == 5 / 9
    pairs = list(zip(LABELS, PREDICTED, strict=True))
    assert judged.confusion.tolist() == [[pairs.count((true, came)) for came in range(4)] for true in range(4)]
    assert judged.confusion.sum() == 9


def test_precision_and_recall(judged):
    """Class 0: predicted four times, twice right, of three. Class 2 is never predicted; class 3 has no image."""
    assert judged.precision_recall() == [(2 / 4, 2 / 3), (3 / 5, 3 / 4), (None, 0.0), (None, None)]


def test_most_confidently_wrong(judged):
    """Wrong are 1, 4, 5, 6 with 0.7, 0.95, 0.7, 0.99; equals stay in their order."""
    assert judged.most_confidently_wrong(10).tolist() == [6, 4, 1, 5]
    assert judged.most_confidently_wrong(2).tolist() == [6, 4]
    equals = Evaluation(0.0, np.ones(200, np.int64), np.tile([0.7, 0.9], 100), np.zeros(200, np.int32), 4)
    assert equals.most_confidently_wrong(200).tolist() == [*range(1, 200, 2), *range(0, 200, 2)]
    right = Evaluation(0.0, judged.labels.astype(np.int64), judged.confidence, judged.labels, 4)
    assert right.most_confidently_wrong(5).size == 0
    assert right.accuracy == 1


@pytest.mark.parametrize("chunk", [1, 10, 37, 1000])
def test_figures_by_hand(squares, chunk, device, engine):
    """A dense layer in float64: logits, softmax, loss and classes written out, whatever the chunks."""
    model = nn.Model([nn.Flatten(), nn.Dense(4, init="uniform(0.5)")], (8, 8, 1), seed=5, mean=30.0, std=100.0)
    weight, bias = (array.astype(np.float64) for array in model.parameters().values())
    split = squares.test
    assert len(split) == 37
    loss, predicted, confidence = 0.0, [], []
    for image, label in zip(split.images, split.labels, strict=True):
        logits = (image.reshape(-1) - 30.0) / 100.0 @ weight + bias
        p = [math.exp(z) for z in logits]
        loss -= math.log(p[label] / sum(p)) / 37
        predicted.append(p.index(max(p)))
        confidence.append(max(p) / sum(p))

    engine = engine_of(model, device, engine=engine)
    engine.predict_images = chunk
    result = evaluate(engine, split)
    assert result.loss == pytest.approx(loss, rel=1e-12)
    np.testing.assert_array_equal(result.predicted, predicted)
    np.testing.assert_allclose(result.confidence, confidence, rtol=1e-12)
    assert result.labels is split.labels
    assert result.classes == 4
    assert result.accuracy == sum(p == t for p, t in zip(predicted, split.labels, strict=True)) / 37
    with device.activate():
        there = device.asarray(split.images)
    again = evaluate(engine, split, there)
    np.testing.assert_array_equal(again.confidence, result.confidence)

    classes, shares = predict(engine, split.images)
    assert isinstance(classes, np.ndarray)
    assert classes.dtype == np.int64
    assert shares.dtype == np.float64
    np.testing.assert_array_equal(classes, predicted)
    np.testing.assert_allclose(shares, confidence, rtol=1e-12)


def test_running_statistics_and_no_dropout(squares, rng, engine):
    model = nn.Model([nn.Flatten(), nn.BatchNorm(), nn.Dropout(0.5), nn.Dense(4)], (8, 8, 1))
    engine = engine_of(model, engine=engine)
    state = {key: rng.uniform(0.5, 2.0, value.shape) for key, value in model.state().items()}
    model.load_state(state)
    x = squares.test.images.reshape(37, 64) / 255.0
    xhat = (x - state["norm1.mean"]) / np.sqrt(state["norm1.var"] + 1e-5)
    logits = (xhat * state["norm1.gamma"] + state["norm1.beta"]) @ state["dense1.weight"] + state["dense1.bias"]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    result = evaluate(engine, squares.test)
    np.testing.assert_allclose(result.confidence, p.max(axis=1), rtol=1e-9)
    assert result.loss == pytest.approx(-np.log(p[np.arange(37), squares.test.labels]).mean(), rel=1e-9)


def test_leaves_the_model_as_it_was(squares, make_model):
    model = make_model()
    engine = engine_of(model)
    x = model.prepare(squares.train.images[:8])
    engine.forward(x, squares.train.labels[:8], 0)  # running statistics that are not those of the start
    engine.backward()
    before = {key: value.copy() for key, value in {**model.state(), **model.gradients()}.items()}
    first, second = evaluate(engine, squares.test), evaluate(engine, squares.test)
    np.testing.assert_array_equal(first.confidence, second.confidence)
    for key, value in {**model.state(), **model.gradients()}.items():
        np.testing.assert_array_equal(value, before[key], key)
    assert all(leaf._saved is None for leaf in model.leaves())
    assert engine.optimizer.step == 0


def test_one_image(squares, make_model, engine):
    split = Split(squares.test.images[:1], squares.test.labels[:1])
    assert evaluate(engine_of(make_model(), engine=engine), split).predicted.shape == (1,)


def test_the_largest_logit_wins_even_where_probabilities_tie(engine):
    """In float32 exp(-3e-8) is 1: the probabilities are equal, the logits are not."""
    model = nn.Model([nn.Flatten(), nn.Dense(2)], (1, 1, 1))
    model.load_state({"dense1.weight": np.zeros((1, 2)), "dense1.bias": np.array([0.25, 0.25 + 2.0**-25])})
    engine = engine_of(model, precision="float32", engine=engine)
    logits = engine.predict(np.zeros((1, 1, 1, 1), np.uint8))
    assert logits[0, 1] > logits[0, 0]
    split = Split(np.zeros((3, 1, 1, 1), np.uint8), np.ones(3, np.int32))
    assert evaluate(engine, split).accuracy == 1
    assert predict(engine, split.images)[0].tolist() == [1, 1, 1]
