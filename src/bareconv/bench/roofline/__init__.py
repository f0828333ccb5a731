"""How near each part of a training step comes to what its device can do: a roofline.

A part takes at least as long as its operations take the unit that computes them, and as its bytes take the memory that
they lie in. Both ceilings are measured on the device at hand, in the same run; the share of the roofline is the longer
of these two times over the time measured.
Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", 2009.

Work is what the formula needs: its multiply-adds, each two operations, and every array read or written once. What a
kernel does beyond that counts against it. One that does less, such as Winograd's, or a backward through live gradients
alone, may come out above 1.

records     ceilings, launches, what bounds them; the form of a result's ``rooflines``
words       them, for people
layers      the work of each layer; steps of the reference, layer by layer, on any device
cpu         ceilings of a CPU; steps of the plan there, from the clocks within it
cuda        ceilings of a GPU; steps of the plan there, launch by launch
memory      what a step will keep, by component, and what it does keep
"""

from bareconv.bench.roofline.records import (
    CASES,
    Ceiling,
    Group,
    Operation,
    by_operation,
    groups,
    record,
)
from bareconv.bench.roofline.words import in_words, remarks, step_title, table

__all__ = [
    "CASES",
    "Ceiling",
    "Group",
    "Operation",
    "by_operation",
    "groups",
    "in_words",
    "record",
    "remarks",
    "step_title",
    "table",
]
