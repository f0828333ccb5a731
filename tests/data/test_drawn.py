"""Drawn digits become what MNIST's images are, whatever they were drawn with."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_files import damage, embedded, read_or_refused, refused, unreadable
from hypothesis import given
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bareconv.data import read_images
from bareconv.errors import UsageError

Grey = NDArray[np.uint8]


def save(folder: Path, image: Image.Image, name: str = "digit.png", **options: object) -> Path:
    path = folder / name
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def seven(size: int = 300, ink: int = 0, paper: int = 255) -> Image.Image:
    """A seven of strokes, left of the middle and above it."""
    image = Image.new("L", (size, size), paper)
    s = size / 300
    points = [(60 * s, 50 * s), (150 * s, 50 * s), (90 * s, 200 * s)]
    ImageDraw.Draw(image).line(points, fill=ink, width=max(1, round(16 * s)), joint="curve")
    return image


def read(path: Path) -> Grey:
    images = read_images([path])
    assert images.shape == (1, 28, 28, 1)
    assert images.dtype == np.uint8
    return images[0, :, :, 0]


def extent(image: Grey) -> tuple[int, int]:
    """Height and width of what is not black."""
    rows, columns = np.nonzero(image)
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def centre(image: Grey) -> tuple[float, float]:
    rows, columns = np.mgrid[:28, :28]
    return float((rows * image).sum() / image.sum()), float((columns * image).sum() / image.sum())


def is_like_mnist(image: Grey) -> bool:
    """The box of 20, and the centre of mass within half a pixel of 14, as in all 60,000 images of MNIST."""
    return max(extent(image)) == 20 and all(abs(at - 14) <= 0.5 for at in centre(image)) and image.max() == 255


def difference(a: Grey, b: Grey) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def difference_but_for_a_shift(a: Grey, b: Grey) -> float:
    """Where the centre of mass lies near the middle between two pixels, either is right: the same, shifted by one."""
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return min(difference(np.roll(a, shift, (0, 1)), b) for shift in shifts)


@pytest.mark.parametrize("size", [30, 100, 299, 640, 641, 1500])
@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0), (60, 180), (200, 120), (230, 255), (20, 0)])
def test_any_size_any_shades(size: int, ink: int, paper: int, tmp_path: Path) -> None:
    image = read(save(tmp_path, seven(size, ink, paper)))
    assert is_like_mnist(image)
    assert difference_but_for_a_shift(image, read(save(tmp_path, seven(600)))) < (25 if size < 100 else 8)


def test_where_it_is_drawn_makes_no_difference(tmp_path: Path) -> None:
    corner = seven().crop((50, 40, 300, 300))
    far = Image.new("L", (500, 400), 255)
    far.paste(seven().crop((40, 30, 170, 220)), (350, 190))
    expected = read(save(tmp_path, seven()))
    for image in (corner, far):
        np.testing.assert_array_equal(read(save(tmp_path, image)), expected)


def test_aspect_is_kept(tmp_path: Path) -> None:
    for box, expected in (((40, 20, 79, 219), (20, 4)), ((20, 40, 219, 79), (4, 20)), ((50, 50, 149, 149), (20, 20))):
        image = Image.new("L", (300, 300), 255)
        ImageDraw.Draw(image).rectangle(box, fill=0)  # both corners belong to it: 40 x 200, 200 x 40, 100 x 100
        assert extent(read(save(tmp_path, image))) == expected


def test_the_centre_of_mass_is_centred_not_the_box(tmp_path: Path) -> None:
    image = Image.new("L", (300, 300), 255)
    draw = ImageDraw.Draw(image)
    draw.rectangle((50, 50, 249, 69), fill=0)  # a bar of 200 x 20, and a block under its left end
    draw.rectangle((50, 70, 109, 249), fill=0)
    result = read(save(tmp_path, image))
    # Scaled by 1/10: 20 x 2 and 6 x 18 pixels. Mass 40 + 108, centres (9.5, 0.5) and (2.5, 10.5).
    x, y = (40 * 9.5 + 108 * 2.5) / 148, (40 * 0.5 + 108 * 10.5) / 148
    rows, columns = np.nonzero(result)
    assert (int(columns.min()), int(rows.min())) == (min(round(14 - x), 8), round(14 - y)) == (8, 6)


@pytest.mark.parametrize("resample", [Image.Resampling.NEAREST, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("invert", [True, False])
@pytest.mark.parametrize(("name", "bound"), [("digit.png", 1.0), ("digit.jpg", 2.0)])
def test_mnist_comes_back(resample: Image.Resampling, invert: bool, name: str, bound: float, tmp_path: Path) -> None:
    test = embedded().test
    assert test is not None
    differences = []
    for original in test.images[:60, :, :, 0]:
        large = Image.fromarray(255 - original if invert else original).resize((280, 280), resample)
        result = read(save(tmp_path, large, name))
        differences.append(difference_but_for_a_shift(result, original))
    if resample == Image.Resampling.NEAREST:
        assert np.median(differences) < bound  # of 255
        assert max(differences) < 4 * bound
    else:  # smoothing widens a stroke's edges, so that all comes back a little smaller
        assert max(differences) < 20


@pytest.mark.parametrize(("mode", "ink"), [("RGBA", (0, 0, 0)), ("RGBA", (255, 255, 255)), ("RGBA", (200, 30, 30))])
def test_transparency(mode: str, ink: tuple[int, int, int], tmp_path: Path) -> None:
    strokes = seven(300, 255, 0)
    image = Image.new(mode, strokes.size, (*ink, 0))
    image.putalpha(strokes)
    np.testing.assert_allclose(
        read(save(tmp_path, image)).astype(int), read(save(tmp_path, seven())).astype(int), atol=2
    )


def test_invisible_colours_are_not_seen(tmp_path: Path) -> None:
    """What lies under full transparency may hold anything: here, black under a black seven."""
    rgba = np.zeros((300, 300, 4), np.uint8)
    rgba[..., 3] = np.asarray(seven(300, 255, 0))
    np.testing.assert_array_equal(
        read(save(tmp_path, Image.fromarray(rgba))), read(save(tmp_path, seven(), "other.png"))
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_kinds_of_png(mode: str, tmp_path: Path) -> None:
    expected = read(save(tmp_path, seven()))
    deep = Image.fromarray(np.asarray(seven()).astype(np.uint16) * 257)
    image = deep if mode == "I;16" else seven().convert(mode)
    np.testing.assert_array_equal(read(save(tmp_path, image)), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_kinds_of_jpeg(mode: str, tmp_path: Path) -> None:
    expected = read(save(tmp_path, seven()))
    for quality in (30, 95):
        result = read(save(tmp_path, seven().convert(mode), "digit.jpg", quality=quality))
        assert is_like_mnist(result)
        assert difference(result, expected) < 8


@pytest.mark.parametrize(("orientation", "turn"), [(3, 180), (6, 90), (8, 270)])
def test_exif_orientation(orientation: int, turn: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = seven().rotate(turn)  # counter-clockwise; 6 says "turn me 90 degrees clockwise"
    result = read(save(tmp_path, lying, "digit.jpg", exif=exif, quality=95))
    expected = read(save(tmp_path, seven(), "upright.jpg", quality=95))
    assert difference(result, expected) < 2
    assert difference(read(save(tmp_path, lying, "digit.jpg", quality=95)), expected) > 20


@pytest.mark.parametrize("name", ["digit.png", "digit.jpg"])
@pytest.mark.parametrize(("contrast", "grain"), [(0.75, 0), (0.75, 6), (0.3, 3)])
def test_a_photograph_in_uneven_light(contrast: float, grain: float, name: str, tmp_path: Path) -> None:
    down, right = np.mgrid[:900, :1200] / 1000
    paper = 205 - 60 * down - 25 * right
    large = np.zeros((900, 1200))
    large[100:800, 300:1000] = np.asarray(seven(700, 255, 0)) / 255
    noise = np.random.default_rng(4).normal(0, 1, paper.shape) * grain
    photo = (paper * (1 - contrast * large) + noise).clip(0, 255).round().astype(np.uint8)
    result = read(save(tmp_path, Image.fromarray(photo), name))
    assert is_like_mnist(result)
    assert difference_but_for_a_shift(result, read(save(tmp_path, seven(700)))) < 5


def test_a_stroke_over_the_border(tmp_path: Path) -> None:
    image = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(image).rectangle((90, 0, 109, 199), fill=0)  # a one, from edge to edge
    result = read(save(tmp_path, image))
    assert extent(result) == (20, 2)
    assert result.max() == 255


def test_font_digits(tmp_path: Path) -> None:
    for digit in "0123456789":
        image = Image.new("RGB", (400, 300), "white")
        ImageDraw.Draw(image).text((150, 40), digit, fill="navy", font=ImageFont.load_default(150))
        assert is_like_mnist(read(save(tmp_path, image)))


def test_the_smallest_ink(tmp_path: Path) -> None:
    """One dark pixel is a blot of 20 x 20; two far apart are two faint dots, made visible."""
    dot = np.full((9, 9), 255, np.uint8)
    dot[4, 4] = 0
    result = read(save(tmp_path, Image.fromarray(dot)))
    assert extent(result) == (20, 20)
    dots = np.full((640, 640), 255, np.uint8)
    dots[1, 1] = dots[600, 600] = 0
    result = read(save(tmp_path, Image.fromarray(dots)))
    assert extent(result) == (20, 20)
    assert np.count_nonzero(result) == 2
    assert result.max() == 255


def test_order_and_count(tmp_path: Path) -> None:
    paths = [save(tmp_path, seven().rotate(90 * turn, fillcolor=255), f"{turn}.png") for turn in range(3)]
    images = read_images([paths[0], str(paths[1]), paths[2]])
    assert images.shape == (3, 28, 28, 1)
    assert images.flags.c_contiguous
    for image, path in zip(images, paths, strict=True):
        np.testing.assert_array_equal(image[..., 0], read(path))
    with pytest.raises(UsageError, match="at least one"):
        read_images([])


@pytest.mark.parametrize(("size", "value"), [((1, 1), 0), ((1, 1), 255), ((1, 9), 7), ((50, 40), 255), ((50, 40), 90)])
def test_blank_images_are_refused(size: tuple[int, int], value: int, tmp_path: Path) -> None:
    for mode in ("L", "RGBA"):
        path = save(tmp_path, Image.new("L", size, value).convert(mode))
        refused(lambda path=path: read_images([path]), str(path), "blank", f"{size[0]} x {size[1]}")  # type: ignore[misc]
    path = save(tmp_path, Image.new("RGBA", size, (0, 0, 0, 0)))
    refused(lambda: read_images([path]), str(path), "blank")


def test_blank_paper_is_refused(tmp_path: Path) -> None:
    down, right = np.mgrid[:600, :800] / 1000
    noise = np.random.default_rng(6).normal(0, 4, down.shape)
    paper = (200 - 50 * down - 20 * right + noise).round().astype(np.uint8)
    path = save(tmp_path, Image.fromarray(paper), "paper.jpg")
    refused(lambda: read_images([path]), str(path), "blank")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    good = save(tmp_path, seven(), "good.png")
    path = tmp_path / "bad.png"
    refused(lambda: read_images([good, path]), str(path), "no such file")
    refused(lambda: read_images([tmp_path]), str(tmp_path), "directory")
    gif = io.BytesIO()
    seven().save(gif, "GIF")
    for content, parts in (
        (b"", ["PNG or JPEG", "empty file"]),
        (b"hello world", ["PNG or JPEG", "0x68656c6c"]),
        (gif.getvalue(), ["PNG or JPEG", "0x47494638"]),
        (good.read_bytes()[:200], ["PNG or JPEG", "damaged"]),
    ):
        path.write_bytes(content)
        refused(lambda: read_images([good, path]), str(path), *parts)
    with unreadable(good):
        refused(lambda: read_images([good]), str(good), "permission")


@pytest.mark.parametrize("name", ["digit.png", "digit.jpg"])
@given(harm=damage())
def test_damage_is_refused_or_harmless(tmp_path: Path, name: str, harm: Callable[[bytes], bytes]) -> None:
    path = save(tmp_path, seven(60), name)
    path.write_bytes(harm(path.read_bytes()))
    read_or_refused(lambda: read_images([path]))
