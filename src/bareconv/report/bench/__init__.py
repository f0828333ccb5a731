"""The parts of a benchmark's page, each with its charts, tables and sentences, made from a validated result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bareconv.report.bench.clocks import clocks_section
from bareconv.report.bench.conditions import conditions_section
from bareconv.report.bench.energy import energy_section
from bareconv.report.bench.ladder import ladder_section
from bareconv.report.bench.layers import layers_section
from bareconv.report.bench.learning import learning_section
from bareconv.report.bench.memory import memory_section
from bareconv.report.bench.noise import noise_section
from bareconv.report.bench.peers import peers_section
from bareconv.report.bench.raw import raw_section
from bareconv.report.bench.roofline import roofline_section
from bareconv.report.bench.sweeps import sweep_sections
from bareconv.report.bench.throughput import method_section, throughput_section
from bareconv.report.sections import Section

_PARTS = ("sweeps", "peers", "clocks", "learning", "rooflines", "energy", "conditions")


def is_benchmark(result: Mapping[str, Any]) -> bool:
    """Whether the result has anything that only a benchmark has."""
    return any(result.get(part) for part in _PARTS) or any("throughput" in run for run in result["runs"])


def sections(result: dict[str, Any], name: str = "result.json") -> list[Section]:
    """All there is to show of a benchmark, in the order a reader asks; ``name`` of the result's file."""
    ladder = ladder_section(result)
    if not is_benchmark(result):
        return [] if ladder is None else [ladder]
    by_batch = [s for s in sweep_sections(result) if _axis(result, s) == "batch_size"]
    other = [s for s in sweep_sections(result) if _axis(result, s) != "batch_size"]
    every = [
        *by_batch,
        peers_section(result),
        throughput_section(result),
        learning_section(result),
        layers_section(result),
        roofline_section(result),
        clocks_section(result),
        *other,
        ladder,
        memory_section(result),
        energy_section(result),
        noise_section(result),
        conditions_section(result),
        method_section(),
        raw_section(result, name),
    ]
    return [section for section in every if section is not None]


def _axis(result: Mapping[str, Any], section: Section) -> str:
    return str(result["sweeps"][int(section.anchor.removeprefix("sweep-"))]["axis"])
