"""What serves a candidate: its first look at the accuracy, and its beginning again."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bareconv.bench.workers.serving import EVALUATED, Candidate, _Server
from bareconv.bench.workload import Workload

COMPILING = 0.2  # seconds


class Counting(Candidate):
    """Its loss is the number of steps since it was built; what looks at the accuracy is compiled by the first look."""

    def build(self, job):
        self.taken, self.looked = 0, []

    def steps(self, first, count):
        self.taken += count
        return float(self.taken)

    def accuracy(self, images, labels):
        if not self.looked:
            time.sleep(COMPILING)
        self.looked.append(len(images))
        return 0.5


@pytest.fixture
def server(tmp_path):
    Workload("mlp", (28, 28, 1), batch_size=64).write(tmp_path)
    served = _Server(Counting)
    assert served.prepare(str(tmp_path), {}, 3, 0.0)["losses"] == [1.0, 2.0, 3.0]
    return served


def test_a_first_look_compiles_outside_the_clock(server):
    first, second = server.accuracy(), server.accuracy()
    images = len(server.job.test_images)
    assert server.candidate.looked == [EVALUATED, images, images]
    assert (first["accuracy"], second["accuracy"]) == (0.5, 0.5)
    assert max(first["seconds"], second["seconds"]) < COMPILING


def test_it_begins_again(server):
    server.run(steps=5)
    again = server.restart(2)
    assert (again["losses"], again["steps"], again["warmed_up"]) == ([1.0, 2.0], 2, False)
    assert np.isfinite(again["step_seconds"])
