"""Drawn images in a file that grows: the same ones, room, interruptions."""

from __future__ import annotations

import io
import os
import shutil

import numpy as np
import pytest

from bareconv.bench import synthetic
from bareconv.bench.synthetic import ImageFile, lies_in_memory
from bareconv.bench.workers.serving import Job
from bareconv.bench.workload import Workload
from bareconv.errors import BareconvError, UsageError


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(synthetic, "PIECE_BYTES", 1 << 12)
    monkeypatch.setattr(synthetic, "SYNC_BYTES", 1 << 14)


SHAPE = (5, 3, 1)  # 15 bytes: no whole number of eight


def test_uniform_images_and_labels(tmp_path):
    file = ImageFile(tmp_path, SHAPE, 10, seed=3)
    assert file.grow(5000)
    images, labels = file.images(5000), file.labels(5000)
    assert (images.shape, labels.shape) == ((5000, *SHAPE), (5000,))
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert isinstance(images, np.memmap)
    assert images.flags.c_contiguous
    # Of 75,000 pixels each of 256 values is expected 293 times, with a standard deviation of 17.
    counts = np.bincount(images.reshape(-1), minlength=256)
    assert counts.min() > 150
    assert counts.max() < 450
    assert np.bincount(labels).tolist() == pytest.approx([500] * 10, rel=0.25)
    assert len(np.unique(images.reshape(5000, -1), axis=0)) == 5000
    assert (
        abs(np.corrcoef(images[: file.piece].reshape(-1), images[file.piece : 2 * file.piece].reshape(-1))[0, 1]) < 0.9
    )
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_the_first_images_are_the_same_however_many_there_are(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    grown, whole = (ImageFile(tmp_path / name, SHAPE, 10, seed=3) for name in ("one", "other"))
    told = []
    for count in (10, 400, 400, 300, 1700):
        assert grown.grow(count, lambda done, total: told.append((done, total)))
    assert whole.grow(1700)
    np.testing.assert_array_equal(grown.images(1700), whole.images(1700))
    np.testing.assert_array_equal(grown.labels(1700), whole.labels(1700))
    np.testing.assert_array_equal(grown.labels(300), whole.labels(1700)[:300])
    assert told[0] == (10, 10)
    assert told[-1] == (1700, 1700)
    assert (tmp_path / "one" / "drawn-images").stat().st_size == grown.pieces * grown.piece * 15
    other = ImageFile(tmp_path / "other", SHAPE, 10, seed=4)
    other.grow(100)
    assert (other.images(100) != grown.images(100)).any()


def test_it_can_be_stopped_and_goes_on(tmp_path):
    file = ImageFile(tmp_path, SHAPE, 10, seed=3)
    asked = iter([False, False, True])
    assert not file.grow(5000, should_stop=lambda: next(asked))
    assert file.pieces == 2
    assert file.grow(5000)
    (tmp_path / "again").mkdir()
    whole = ImageFile(tmp_path / "again", SHAPE, 10, seed=3)
    whole.grow(5000)
    np.testing.assert_array_equal(file.images(5000), whole.images(5000))


def test_too_little_room_is_one_line(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    file = ImageFile(tmp_path, (28, 28, 1), 10, seed=0)
    with pytest.raises(BareconvError) as raised:
        file.grow(10_000_000)
    said = str(raised.value)
    assert said.startswith("10,000,000 images take 7.30 GiB, of which 7.30 GiB are still to be written, and in ")
    assert said.endswith("1.00 GiB are free: give a folder with more room (--folder), or fewer images")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_one_line(tmp_path, monkeypatch):
    written: list[int] = []

    def full(file, content):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(len(content))
        return write(file, content)

    write = synthetic._write
    monkeypatch.setattr(synthetic, "_write", full)
    with pytest.raises(
        BareconvError,
        match=r"^5,000 images take 73.2 KiB, which could not be written in /.*: No space left on device: give another",
    ):
        ImageFile(tmp_path, SHAPE, 10, seed=0).grow(5000)


def test_all_is_written_by_a_file_that_takes_a_little_at_a_time():
    class Slow(io.RawIOBase):
        taken = b""

        def write(self, content):
            self.taken += bytes(content[:3])
            return len(content[:3])

    slow = Slow()
    synthetic._write(slow, b"ten bytes!")
    assert slow.taken == b"ten bytes!"


def test_what_goes_to_the_disk_goes_there_now_and_then(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    file = ImageFile(tmp_path, SHAPE, 10, seed=3)
    file.grow(5000)
    assert len(synced) > 3
    assert synced[-1] == file.path.stat().st_size
    assert max(np.diff([0, *synced])) <= (1 << 14) + (1 << 12)


def test_memory_is_no_disk(tmp_path):
    mounts = tmp_path / "root" / "proc" / "self" / "mounts"
    mounts.parent.mkdir(parents=True)
    inner = tmp_path / "a b"
    inner.mkdir()
    escaped = str(inner).replace(" ", "\\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\n/dev/vdb {escaped} xfs rw 0 0\n")
    assert lies_in_memory(tmp_path, tmp_path / "root")
    assert not lies_in_memory(inner, tmp_path / "root")
    assert not lies_in_memory(tmp_path.parent, tmp_path / "root")
    assert not lies_in_memory(tmp_path, tmp_path / "nowhere")


def test_a_job_of_mapped_images(tmp_path):
    """One epoch's order of whole batches; nothing but the file has the images."""
    work = Workload("mlp", SHAPE, batch_size=16, images=1000, seed=3)
    dataset = work.write(tmp_path)
    job = Job.read(tmp_path)
    assert (work.train_images, len(dataset.train), job.images.shape) == (992, 992, (992, *SHAPE))
    assert isinstance(job.images, np.memmap)
    np.testing.assert_array_equal(job.images, dataset.train.images)
    np.testing.assert_array_equal(job.labels, dataset.train.labels)
    assert job.order.shape == (1, 992)
    assert sorted(job.order[0]) == list(range(992))
    assert job.total_steps == 62
    assert not (tmp_path / "images.npy").exists()
    assert "mapped" in dataset.name


def test_workloads_share_a_file(tmp_path):
    for name in ("few", "many"):
        (tmp_path / name).mkdir()
    few, many = (Workload("mlp", SHAPE, batch_size=16, images=images, seed=3) for images in (64, 640))
    file = few.image_file(tmp_path)
    few.write(tmp_path / "few", file)
    many.write(tmp_path / "many", file)
    small, large = Job.read(tmp_path / "few"), Job.read(tmp_path / "many")
    np.testing.assert_array_equal(small.images, large.images[:64])
    np.testing.assert_array_equal(small.labels, large.labels[:64])


def test_two_batches_at_least():
    assert Workload("mlp", SHAPE, batch_size=16, images=3).train_images == 32
    assert Workload("mlp", SHAPE, batch_size=16).train_images is None
    with pytest.raises(UsageError, match="0 images: expected at least 1"):
        Workload("mlp", SHAPE, images=0)
