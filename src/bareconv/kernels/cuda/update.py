"""The optimizer's step at the end of a training step."""

from __future__ import annotations

from bareconv.kernels.cpu.rules import Rule

RULES = ("gradient", "sgd", "rmsprop", "adam", "adamw")  # by the number that RULE has in the sources


def rule_defines(rule: Rule) -> dict[str, int]:
    """The constants that ``update.cuh`` is compiled with, in any kernel that includes it."""
    return {
        "RULE": RULES.index(rule.name),
        "MOMENTUM": int(rule.momentum),
        "NESTEROV": int(rule.nesterov),
        "DECAY": int(rule.decay),
    }
