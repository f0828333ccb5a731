"""Every measurement of speed in a result, by what was measured: the form in which two results can be laid side by side.

A rate is work done a second: images, or for a rung of the ladder runs of a whole batch. Higher is faster, always.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bareconv.bench.estimates import Estimate, Noise, noise
from bareconv.bench.process import THREADS
from bareconv.report.format import counted

THROUGHPUT, SWEEP, LADDER = "throughput", "sweep", "ladder"
OWN_VERSION = "bareconv"  # the version that a comparison is about


@dataclass(frozen=True)
class Key:
    """What was measured. Two measurements with the same key did the same work in the same way.

    ``part``: throughput, sweep or ladder. ``device``: cpu or cuda; cuda:0 where a result has several GPUs. ``model``:
    for the ladder the problem. ``name`` and ``variant``: of the engine, the peer, the rung. ``threads``: None on a GPU.
    ``axis`` and ``value``: of a sweep's point.
    """

    part: str
    device: str
    model: str
    batch_size: int
    precision: str
    name: str
    variant: str = ""
    threads: int | None = None
    axis: str | None = None
    value: float | None = None

    @property
    def label(self) -> str:
        """In a person's words: "basic, batch 64, float32, cpu, 2 threads: plan"."""
        return self.worded(self.precision, [self.threads])

    def worded(self, precision: str, threads: Sequence[int | None]) -> str:
        """The label with these words for the precision, and the threads of one side or of both."""
        words = [self.model, f"batch {self.batch_size}", precision, self.device]
        numbers = [number for number in dict.fromkeys(threads) if number is not None]
        if numbers:
            words.append(" against ".join([*map(str, numbers[:-1]), counted(numbers[-1], "thread")]))
        if self.axis is not None and self.axis != "batch_size":
            words.append(f"{self.axis.replace('_', ' ')} {self.value:g}")
        where = "" if self.part == THROUGHPUT else f"{self.part}: "
        return f"{where}{', '.join(words)}: {f'{self.name} {self.variant}'.strip()}"

    @property
    def loose(self) -> Key:
        """Without what may be set otherwise for the same work: precision and threads."""
        return dataclasses.replace(self, precision="", threads=None)


@dataclass(frozen=True)
class Measurement:
    """The rates of one process, block by block in the order of time, or their ``summary`` where no blocks were kept.

    ``noise``: how the result itself judged them. ``begun``: when each block began, seconds since 1970, and ``lasted``:
    its seconds by the wall clock; empty where that was not kept. ``facts``: what else the rates depend on.
    """

    key: Key
    ours: bool
    rates: tuple[float, ...] = ()
    summary: Estimate | None = None
    noise: Noise | None = None
    begun: tuple[float, ...] = ()
    lasted: tuple[float, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def measurements(result: Mapping[str, Any]) -> list[Measurement]:
    """All of a valid result, each once; what has no rate of its own blocks, such as a whole training, is left out."""
    gpus = {device for device in _devices(result) if device.startswith("cuda")}
    found: list[Measurement] = []
    for one in (*_runs(result), *_peers(result), *_sweeps(result), *_ladder(result)):
        if len(gpus) <= 1:
            key = dataclasses.replace(one.key, device=one.key.device.partition(":")[0])
            one = dataclasses.replace(one, key=key)
        # Our engines beside peers are among the runs too, with the very same blocks.
        if (one.rates or one.summary) and not any(one.key == other.key and one.rates == other.rates for other in found):
            found.append(one)
    return found


def _devices(result: Mapping[str, Any]) -> Iterator[str]:
    for run in result["runs"]:
        yield run["device"]
    for part in result.get("peers", []):
        yield part.get("device", "cpu")
    for sweep in result.get("sweeps", []):
        for curve in sweep["curves"]:
            yield curve["device"]


# What the rate of a run depends on beside its key, as far as a part of a result tells.
FACTS = {
    "data": "data",
    "train_images": "train images",
    "optimizer": "optimizer",
    "flops_per_image": "FLOP/image",
    "image_shape": "image shape",
}


def _facts(part: Mapping[str, Any]) -> dict[str, str]:
    return {shown: str(part[name]) for name, shown in FACTS.items() if name in part}


def _runs(result: Mapping[str, Any]) -> Iterator[Measurement]:
    for run in result["runs"]:
        if "throughput" not in run:
            continue
        threads = _threads(run["device"], run["throughput"]["threads"])
        precision, batch_size = run["precision"], run["batch_size"]
        key = Key(THROUGHPUT, run["device"], run["model"], batch_size, precision, run["engine"], threads=threads)
        yield _of(key, True, run["throughput"], _facts(run))


def _peers(result: Mapping[str, Any]) -> Iterator[Measurement]:
    for part in result.get("peers", []):
        device = part.get("device", "cpu")
        for candidate in part["candidates"]:
            steady = candidate.get("throughput")
            if steady is None:
                continue
            key = Key(
                THROUGHPUT,
                device,
                part["model"],
                part["batch_size"],
                part["precision"],
                candidate["name"],
                candidate["variant"],
                _threads(device, steady["threads"]),
            )
            yield _of(key, candidate["ours"], steady, _facts(part))


def _sweeps(result: Mapping[str, Any]) -> Iterator[Measurement]:
    for sweep in result.get("sweeps", []):
        axis = sweep["axis"]
        for curve in sweep["curves"]:
            for point in curve["points"]:
                if "images_per_second" not in point:
                    continue
                value = point["value"]
                threads = int(value) if axis == "threads" else curve.get("threads")
                key = Key(
                    SWEEP,
                    curve["device"],
                    sweep["model"],
                    int(value) if axis == "batch_size" else sweep["batch_size"],
                    curve["precision"],
                    curve["name"],
                    curve["variant"],
                    _threads(curve["device"], threads),
                    axis,
                    value,
                )
                rates = _rates(point.get("samples"))
                known = point["images_per_second"]
                yield Measurement(
                    key,
                    curve["ours"],
                    rates,
                    Estimate(known["value"], known["low"], known["high"]),
                    noise(rates) if rates else None,
                    *_times(point.get("samples")),
                    _facts(sweep),
                )


def _ladder(result: Mapping[str, Any]) -> Iterator[Measurement]:
    for problem in result.get("ladder", {}).get("problems", []):
        for rung in problem["rungs"]:
            rates = tuple(1 / seconds for seconds in rung.get("samples", []) if seconds > 0)
            if rung["status"] != "measured" or not rates:
                continue
            threads = _threads(rung["device"], problem["threads"])
            batch_size, precision = problem["batch_size"], problem["precision"]
            key = Key(LADDER, rung["device"], problem["name"], batch_size, precision, rung["name"], threads=threads)
            yield Measurement(key, True, rates, noise=noise(rates), facts={"share": str(rung.get("share", 1))})


def _of(key: Key, ours: bool, steady: Mapping[str, Any], facts: Mapping[str, str]) -> Measurement:
    """The measurement in a ``throughput`` object."""
    rates = _rates(steady["samples"])
    judged, times = steady.get("noise"), _times(steady["samples"])
    versions = {name: version for name, version in steady["versions"].items() if name != OWN_VERSION}
    variables = {name: value for name, value in steady["variables"].items() if name not in THREADS}
    return Measurement(
        key,
        ours,
        rates,
        noise=None if not rates else Noise(**judged) if judged else noise(rates),
        begun=times[0],
        lasted=times[1],
        facts={**facts, **versions, **variables, **steady.get("flags", {})},
    )


def _rates(samples: Mapping[str, Any] | None) -> tuple[float, ...]:
    """Images a second of every block that took any time."""
    if samples is None:
        return ()
    pairs = zip(samples["images"], samples["seconds"], strict=True)
    return tuple(images / seconds for images, seconds in pairs if images and seconds)


def _times(samples: Mapping[str, Any] | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """When the blocks began and how long they took by the wall clock; both empty unless every block has both."""
    if samples is None:
        return (), ()
    begun, lasted = samples.get("begun", ()), samples.get("wall_seconds", ())
    return (tuple(begun), tuple(lasted)) if len(begun) == len(lasted) == len(_rates(samples)) else ((), ())


def _threads(device: str, threads: int | None) -> int | None:
    return threads if device == "cpu" else None
