"""What a training keeps, by component: what can be said before its first step, and what is found after some."""

from __future__ import annotations

from bareconv.bench import profile
from bareconv.training import ReferenceEngine, Trainer


def predicted(trainer: Trainer) -> dict[str, int]:
    """Bytes, from shapes and from what an engine has laid out. It has not taken a step yet; it is prepared here.

    The reference keeps arrays of its own making: what it keeps of one image and of two says what it keeps of a batch,
    for each image takes the same room.
    """
    engine = trainer.engine
    engine.prepare()
    kept = engine.kept_bytes()
    parameters = trainer.model.parameters()
    size = sum(int(array.nbytes) for array in parameters.values())
    by_layer = isinstance(engine, ReferenceEngine)  # the tuned one is one too: it leaves gradients to the layers
    return {
        "parameters": sum(int(array.nbytes) for array in trainer.model.state().values()),
        "gradients": size if by_layer else kept["gradients"],
        "optimizer": len(trainer.optimizer.slots) * size,
        "activations": kept["activations"] if "activations" in kept else _activations(trainer),
        "data": trainer.data_bytes(),
    }


def measured(trainer: Trainer, growth: int) -> dict[str, int]:
    """Bytes after some steps; ``growth``: of the process, or of what is reserved on the device, by model and data.

    "overhead" is what the growth has beyond the rest.
    """
    return profile.memory(trainer, growth)


def _activations(trainer: Trainer) -> int:
    """What the layers keep of a batch, from one image's and two images'. Running statistics are put back."""
    model, batch = trainer.model, trainer.history.batch_size
    before = {name: array.copy() for name, array in model.buffers().items()}
    with trainer.device.activate():
        one, two = (_kept(trainer, images) for images in (1, 2))
    for name, array in model.buffers().items():
        array[...] = before[name]
    return one + (two - one) * (batch - 1)


def _kept(trainer: Trainer, images: int) -> int:
    model = trainer.model
    model.forward(model.prepare(trainer.images[:images]), training=True)
    kept = model.activation_bytes()
    for leaf in model.leaves():
        leaf.forget()
    return kept
