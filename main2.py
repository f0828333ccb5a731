"""Train the convolutional network on the CPU, by the plan; show what it says of four images, and print the time."""

import sys

try:
    import bareconv as bc
    from bareconv.training import Progress
except ModuleNotFoundError:
    sys.exit("bareconv is not installed for this Python: run ./run.sh once, then .venv/bin/python main2.py")


def tell(now: Progress) -> None:
    """How far it is, where somebody watches."""
    if sys.stdout.isatty():
        print(f"  step {now.step} of {now.total_steps}, loss {now.loss:.3f} ", end="\r", flush=True)


def main(device: str, picture: str) -> int:
    """Train on ``device``; exit code 2 and the reason where that cannot be."""
    try:
        place = bc.get_device(device)
        data = bc.data.default()
        data = data if data.test else data.hold_out(1000, seed=0)
        model = bc.models.basic(data.image_shape, data.classes)
        print(f"Training {model.name} on {place.description}, {len(data.train):,} images of {data.name}", flush=True)
        optimizer = bc.optim.SGD(0.05, momentum=0.9)
        history = bc.train(model, data, optimizer=optimizer, epochs=1, device=place, on_progress=tell)
        print(f"{place.name}: {history.train_seconds:.2f} s, {history.images_per_second:,.0f} images/s")
        print(f"Accuracy on images it has not seen: {history.test_accuracy:.2%}")
        split = data.test or data.validation
        assert split is not None
        predicted = bc.show_predictions(model, split, picture)
        print(f"Four of them: predicted {predicted}, in truth {split.labels[:4].tolist()}; see {picture}")
    except (bc.BareconvError, OSError) as error:
        print(error, file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main("cpu", "predictions-cpu.png"))
