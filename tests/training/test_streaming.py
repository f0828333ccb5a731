"""Images that do not stay on the device: the numbers of a training on all of them, whatever is brought at once."""

from __future__ import annotations

import mmap

import gpu_stand_in
import numpy as np
import pytest

from bareconv.data import Dataset, Split
from bareconv.data.mapped import expect_random_access
from bareconv.device import get_device
from bareconv.errors import NotFiniteError
from bareconv.optim import SGD
from bareconv.training import Settings, Trainer, loop
from bareconv.training.streaming import Stream, fits

IMAGE = 8 * 8


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for a GPU, whose memory takes half of the squares."""
    device = gpu_stand_in.install(monkeypatch)
    device.free = 103 * IMAGE
    return device


@pytest.fixture
def mapped(squares, tmp_path):
    """The squares in a file."""
    squares.train.images.tofile(tmp_path / "images")
    images = np.memmap(tmp_path / "images", np.uint8, "r", shape=squares.train.images.shape)
    return Dataset("mapped", Split(images, squares.train.labels), None, squares.test, 4)


def trained(make_model, data, device, **settings):
    wanted = Settings(**{"batch_size": 16, "epochs": 3, "seed": 3, **settings})
    trainer = Trainer(make_model(), data, SGD(0.05, momentum=0.9), wanted, device)
    trainer.run()
    return trainer


def assert_same(ours, theirs):
    assert ours.history.loss == theirs.history.loss
    assert ours.history.correct == theirs.history.correct
    for key, value in ours.model.state().items():
        np.testing.assert_array_equal(value, theirs.model.state()[key], key)


@pytest.mark.parametrize("engine", ["plan", "reference"])
@pytest.mark.parametrize("staged", [1, 16 * IMAGE, 50 * IMAGE, 1 << 20])
def test_the_same_training(engine, staged, gpu, mapped, squares, make_model, monkeypatch):
    """One step's images at a time, three steps', or all: of a file, though the device has no room for them."""
    monkeypatch.setattr(Stream.__init__, "__defaults__", (staged,))
    expected = trained(make_model, squares, "cpu", engine="reference")
    ours = trained(make_model, mapped, gpu, engine=engine)
    assert_same(ours, expected)
    room = {1: 16, 16 * IMAGE: 16, 50 * IMAGE: 48, 1 << 20: 103}[staged]
    assert ours.images.shape == (room, 8, 8, 1)
    assert ours.data_bytes() == room * (IMAGE + 4) + squares.test.images.nbytes
    launched = [entry[2] for entry in gpu.log if entry[0] == "launch"]
    assert all(count <= max(1, room // 16 + (room == 103)) for count in launched)


def test_what_fits_stays_there(gpu, mapped, make_model):
    gpu.free = 2 * 103 * IMAGE
    trainer = trained(make_model, mapped, gpu)
    assert trainer.images.shape == (103, 8, 8, 1)
    assert not isinstance(trainer.images.base, mmap.mmap)


def test_one_batch_of_everything_is_brought_at_once(gpu, squares, make_model):
    expected = trained(make_model, squares, "cpu", engine="reference", batch_size=200)
    assert_same(trained(make_model, squares, gpu, batch_size=200), expected)


def test_a_loss_that_is_not_finite_is_found_and_explained(gpu, mapped, make_model, monkeypatch):
    monkeypatch.setattr(Stream.__init__, "__defaults__", (16 * IMAGE,))
    with pytest.raises(NotFiniteError, match="the first output that is not finite is that of layer"):
        Trainer(make_model(), mapped, SGD(1e30), Settings(batch_size=16, seed=3), gpu).run()


def test_images_are_read_in_the_order_of_the_file(gpu, squares):
    asked = []

    class Watched(np.ndarray):
        def __getitem__(self, key):
            if isinstance(key, np.ndarray):
                asked.append(key)
            return super().__getitem__(key)

    split = Split(squares.train.images.view(Watched), squares.train.labels)
    stream = Stream(split, gpu, 16)
    order = np.random.default_rng(1).permutation(103)[:48]
    batches = stream.batches(order, 16, 3, 5)
    np.testing.assert_array_equal(batches.images[batches.chosen], squares.train.images[order])
    np.testing.assert_array_equal(batches.labels[batches.chosen], squares.train.labels[order])
    assert (len(batches), batches.step, batches.size) == (3, 5, 16)
    np.testing.assert_array_equal(asked[0], np.sort(order))


def test_the_host_does_not_run_far_ahead(gpu, squares):
    """Each window under way holds a copy in the host's memory."""
    waited: list[int] = []
    marks = iter(range(100))
    gpu.mark = lambda: next(marks)
    gpu.seconds_between = waited.extend
    stream = Stream(squares.train, gpu, 16)
    for number in range(5):
        stream.batches(np.arange(16), 16, 1, number)
    assert waited == [0, 1, 2]


def test_the_cpu_uses_images_where_they_are(mapped, squares, make_model, engine):
    """Nothing of a mapped file is copied or read but what a step asks for."""
    assert fits(mapped.train, get_device("cpu"))
    trainer = Trainer(make_model(), mapped, SGD(0.05), Settings(batch_size=16, engine=engine, seed=3), "cpu")
    assert np.shares_memory(trainer.images, mapped.train.images)
    plain = Trainer(make_model(), squares, SGD(0.05), Settings(batch_size=16, engine=engine, seed=3), "cpu")
    assert trainer.train_steps(0, 7) == plain.train_steps(0, 7)


def test_random_access_is_expected_of_a_mapped_file_alone(mapped, squares):
    assert expect_random_access(mapped.train.images)
    assert expect_random_access(np.asarray(mapped.train.images)[3:])
    assert not expect_random_access(squares.train.images)
    assert not expect_random_access(squares.train.images[3:])


def test_a_rehearsal_has_no_more_steps_than_there_is_room_for(gpu, mapped, make_model, monkeypatch):
    monkeypatch.setattr(Stream.__init__, "__defaults__", (32 * IMAGE,))
    monkeypatch.setattr(loop, "WINDOW_SECONDS", 1e9)
    trained(make_model, mapped, gpu)
    assert [entry[2] for entry in gpu.log if entry[0] == "rehearse"] == [1, 1, 2]
