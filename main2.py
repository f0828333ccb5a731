"""Train the convolutional network on the CPU, with NumPy; show what it says of four images, and print the time."""

import sys

try:
    import bareconv as bc
except ModuleNotFoundError:
    sys.exit("bareconv is not installed for this Python: run ./run.sh once, then .venv/bin/python main2.py")


def main(device: str, picture: str) -> int:
    """Train on ``device``; exit code 2 and the reason where that cannot be."""
    try:
        place = bc.get_device(device)
        data = bc.data.default()
        data = data if data.test else data.hold_out(1000, seed=0)
        model = bc.models.basic(data.image_shape, data.classes)
        print(f"Training {model.name} on {place.description} ...")
        history = bc.train(model, data, optimizer=bc.optim.SGD(0.05, momentum=0.9), epochs=1, device=place)
    except bc.BareconvError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{place.name}: {history.train_seconds:.2f} s, {history.images_per_second:,.0f} images/s")
    print(f"Accuracy on images it has not seen: {history.test_accuracy:.2%}")
    split = data.test or data.validation
    print(f"Four of them: predicted {bc.show_predictions(model, split, picture)}, in truth {split.labels[:4].tolist()}")
    print(f"See {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main("cpu", "predictions-cpu.png"))
