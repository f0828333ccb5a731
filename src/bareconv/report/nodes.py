"""The parts of a step as a report tells them: by layer, or group of layers, and by what of it is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# In the order of a step, with the tint that each has of its device's colour.
OPERATIONS = {
    "batch": 0.22,
    "forward": 1.0,
    "dX": 0.68,
    "dX + dW": 0.55,
    "dX + dW + update": 0.5,
    "dW": 0.42,
    "dW + update": 0.36,
    "update": 0.27,
    "other": 0.14,
}
_FROM_PHASE = {"batch": "batch", "forward": "forward", "backward": "dX + dW", "update": "update"}

_MOST_ROWS = 16  # nodes shown one by one

Step = Mapping[str, Any]


def operation(launch: Mapping[str, Any]) -> str:
    """What of the step a launch computes; of one that does not say, by its phase."""
    name = launch.get("operation") or _FROM_PHASE.get(launch["phase"], "other")
    return name if name in OPERATIONS else "other"


def by_node(step: Step) -> dict[str, dict[str, float]]:
    """Seconds by node, in the order of the forward pass, and by operation.

    What is done for one layer of several that run as one, with its weights say, is theirs.
    """
    launches = sorted(step["launches"], key=lambda launch: launch["phase"] != "forward")
    groups = [launch["node"] for launch in launches if " + " in launch["node"]]
    of = {layer: node for node in groups for layer in node.split(" + ")}
    found: dict[str, dict[str, float]] = {}
    for launch in launches:
        times = found.setdefault(of.get(launch["node"], launch["node"]), {})
        times[operation(launch)] = times.get(operation(launch), 0.0) + launch["seconds"]
    if len(found) <= _MOST_ROWS:
        return found
    longest = sorted(found, key=lambda node: -math.fsum(found[node].values()))[: _MOST_ROWS - 1]
    rest: dict[str, float] = {}
    for node, times in found.items():
        for name, seconds in times.items() if node not in longest else ():
            rest[name] = rest.get(name, 0.0) + seconds
    kept = {node: times for node, times in found.items() if node in longest}
    return kept | {f"{len(found) - len(kept)} others": rest}
