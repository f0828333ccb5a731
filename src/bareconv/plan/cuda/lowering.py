"""From the graph of a model to the launches of a step: forward in the graph's order, backward in reverse, update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bareconv.device import Array
from bareconv.kernels.cuda.loss import softmax_loss
from bareconv.kernels.cuda.prepare import prepare
from bareconv.kernels.cuda.update import Parameter, copy_weights, update, update_table
from bareconv.nn.layer import features
from bareconv.plan.cuda.binding import Program
from bareconv.plan.cuda.blocks import blocks_of
from bareconv.plan.cuda.parameters import Parameters
from bareconv.plan.cuda.record import Buffer, Operand, Place, Recorder
from bareconv.plan.cuda.runtime import Runtime
from bareconv.plan.cuda.step import Step


@dataclass
class Lowered:
    """A step written down: its launches, over buffers that have no address yet; where its results will be."""

    step: Step
    record: Recorder
    logits: Buffer

    def tables(self, program: Program, runtime: Runtime, outside: Mapping[Buffer, Array | None]) -> dict[Buffer, Array]:
        """What the update reads to know which parameter is where."""
        step = self.step
        if not step.training:
            return {}
        copies = step.parameters.copies
        base = runtime.address(step.parameters.copy)
        table = update_table(
            _summed(step),
            step.limits,
            [program.address(Place(one.partial), outside) or 0 for one in step.summed],
            [base + copies[one.name].offset if one.name in copies else None for one in step.summed],
        )
        return {step.outside.pieces: runtime.xp.asarray(table)}


def lower(step: Step) -> Lowered:
    """Write down all launches of a training step, or of a prediction."""
    graph, record, outside = step.graph, step.record, step.outside
    record.phase = "forward"
    blocks = blocks_of(step)
    if not blocks.reads_pixels:
        record.node = "images"
        kernel = prepare(step.precision, step.batch, step.model.input_shape, step.model.mean, step.model.std)
        step.launch(kernel, pixels=outside.pixels, order=outside.order, y=step.tensor(graph.input))
    for one in blocks.all:
        record.node = one.name
        one.forward()
    logits = step.tensor(graph.output)
    if not step.training:
        logits.kept = True
        return Lowered(step, record, logits)
    assert step.trains(graph.output), f"model {step.model.name} has no parameters to train"
    if not blocks.has_loss:
        record.node = "loss"
        into = step.into(graph.output)
        assert into is not None
        step.launch(
            softmax_loss(step.precision, features(graph.output.shape), step.batch, step.smoothing),
            logits=logits,
            labels=outside.labels,
            order=outside.order,
            dlogits=into[0],
            image_loss=step.image_loss,
            image_hit=step.image_hit,
            position=step.position,
        )
    record.phase = "backward"
    for one in reversed(blocks.all):
        if step.trains(one.output):
            record.node = one.name
            one.backward()
        step.finished.add(one.output)
    record.phase, record.node, record.joins = "update", "parameters", True
    _update(step)
    return Lowered(step, record, logits)


def _summed(step: Step) -> list[Parameter]:
    """The parameters that the update adds up, as its kernel is told of them."""
    return [_parameter(step.parameters, one.name, one.parts) for one in step.summed]


def _parameter(parameters: Parameters, name: str, parts: int) -> Parameter:
    copy = parameters.copies.get(name)
    channels, filters = (copy.channels, copy.filters) if copy else (0, 0)
    return Parameter(parameters.start[name], parameters.elements(name), parts, channels, filters)


def _update(step: Step) -> None:
    """The optimizer's step, and the end of the training step."""
    outside = step.outside
    operands: dict[str, Operand] = {
        "pieces": outside.pieces,
        "master": outside.weight,
        "state1": outside.state1,
        "state2": outside.state2,
        "gradient": outside.gradient,
        "scalars": outside.scalars,
        "position": step.position,
        "control": outside.control,
        "image_loss": step.image_loss,
        "image_hit": step.image_hit,
        "losses": outside.losses,
        "hits": outside.hits,
    }
    kernel = update(step.precision, step.rule, _summed(step), step.limits, step.batch)
    step.record.launch(kernel, operands, reads=[one.partial for one in step.summed])


def refresher(step: Step, runtime: Runtime) -> Callable[[], None]:
    """What makes all working copies anew from the masters."""
    parameters = step.parameters
    names = list(parameters.copies)
    if not names:
        return lambda: None
    base = runtime.address(parameters.copy)
    told = [_parameter(parameters, name, 1) for name in names]
    kernel = copy_weights(step.precision, told, step.limits)
    table = update_table(told, step.limits, [0] * len(names), [base + parameters.copies[name].offset for name in names])
    pieces = runtime.xp.asarray(table)
    runtime.load([kernel], None)
    launch = runtime.bind(kernel, [runtime.address(pieces), None, runtime.address(parameters.weight)], False)

    def refresh(keep: Array = pieces) -> None:
        launch(0)

    return refresh
