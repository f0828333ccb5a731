"""From the graph of a model to the calls of a step: forward in the graph's order, backward in reverse, the update."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bareconv.kernels.cpu.ends import Normalise, SoftmaxCrossEntropy
from bareconv.kernels.cpu.parameters import Update
from bareconv.kernels.cpu.program import WHOLE
from bareconv.nn.layer import features
from bareconv.plan.cpu.fused import fused
from bareconv.plan.cpu.fused.dense import reads_pixels
from bareconv.plan.cpu.memory import Buffer
from bareconv.plan.cpu.record import Place, RecordedStage, find_lifetimes
from bareconv.plan.cpu.step import GRAIN, Array, Step


@dataclass
class Lowered:
    """A step written down: its stages, over arrays that have no address yet; where its results will be."""

    step: Step
    stages: list[RecordedStage]
    logits: Array
    losses: Buffer
    hits: Buffer


def lower(step: Step, smoothing: float = 0.0) -> Lowered:
    """Write down all calls of a training step, or of a prediction."""
    graph, record, target, outside = step.graph, step.record, step.target, step.outside
    record.phase, record.node = "forward", "images"
    if reads_pixels(graph, step) is None:
        images, plane = step.tensor(graph.input)
        kernel = Normalise(target, plane, step.model.mean, step.model.std)
        record.images(kernel, pixels=outside.pixels, order=outside.order, y=images)
    nodes = [fused(step, node) for node in graph.nodes]
    for one in nodes:
        record.node = one.node.name
        one.forward()
    logits = step.tensor(graph.output)
    losses, hits = step.buffer("losses", 1, "float64"), step.buffer("hits", 1, "int64")
    if step.training:
        losses.kept = hits.kept = True
        record.node = "loss"
        into = step.into(graph.output)
        assert into is not None, f"model {step.model.name} has no parameters to train"
        record.images(
            SoftmaxCrossEntropy(target, features(graph.output.shape), smoothing),
            WHOLE,
            logits=logits[0],
            labels=outside.labels,
            order=outside.order,
            images=outside.images,
            dlogits=into[0],
            losses=losses,
            hits=hits,
        )
        record.phase = "backward"
        for one in reversed(nodes):
            if step.trains(one.node.output):
                record.node = one.node.name
                one.backward()
        record.phase = "update"
        _update(step)
    else:
        logits[0].kept = True
    before = step.prepare()
    record.stages[0].wait = bool(before)
    stages = before + record.stages
    find_lifetimes(stages)
    return Lowered(step, stages, logits, losses, hits)


def _update(step: Step) -> None:
    """The optimizer's step: on many weights with their gradients, on all others from the sums over workers."""
    parameters, record = step.parameters, step.record
    for number, write in enumerate(step.updates):
        write(number == 0)
    groups: list[tuple[list[str], NDArray[np.int32] | None]]
    groups = [(parameters.summed, None)] if parameters.summed else []
    groups += [([name], step.positions[name]) for name in parameters.mapped]
    for number, (names, positions) in enumerate(groups):
        start, end = parameters.start[names[0]], parameters.end(names[-1])
        record.node = "summed parameters" if positions is None else names[0].rpartition(".")[0]
        table = None
        if positions is not None:
            # What lies between parameters has no gradient: it reads the zero at the front, of which nothing is kept.
            padded = np.zeros(end - start, np.int32)
            padded[: positions.size] = positions
            table = step.table(f"{names[0]} gradient order", padded)
        record.shared(
            Update(step.target, step.partial_pitch, positions is not None, step.rule),
            *(end - start, GRAIN),
            wait=number == 0 and not step.updates,  # also for one worker's gradients of a batch norm
            partial=Place(step.outside.partial, 0 if positions is not None else start, shared=True),
            places=table,
            workers=step.outside.workers,
            **step.update_operands(start),
        )
