"""Pages that several files of tests look at, made once."""

from __future__ import annotations

from pathlib import Path

import bench_samples as bench
import pytest

from bareconv.report.page import render, render_machines


@pytest.fixture(scope="session")
def bench_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each benchmark's page: "gpu", "peers"; and "machines", the page of both."""
    made = {}
    results = {"gpu": bench.with_gpu(), "peers": bench.with_peers()}
    for name, result in results.items():
        made[name] = tmp_path_factory.mktemp(name)
        page = render(result, name=f"bench-{name}.json")
        (made[name] / "report.html").write_text(page, encoding="utf-8")
    made["machines"] = tmp_path_factory.mktemp("machines")
    both = [("t4.json", results["gpu"]), ("two-cores.json", results["peers"])]
    (made["machines"] / "report.html").write_text(render_machines(both), encoding="utf-8")
    return made
