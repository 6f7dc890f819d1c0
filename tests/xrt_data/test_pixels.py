"""What an image becomes: torchvision's numbers, and what torchvision does not define."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.xrt_data.images import flat, normalized, photo, torchvision, write
from xrt.data import IMAGENET_MEAN, IMAGENET_STD, ImageFolder
from xrt.data.geometry import Geometry


def only(path, **options):
    """The one image in a folder, as the only one of a batch."""
    options = {"dtype": "uint8", "layout": "NHWC", "batch_size": 1, "workers": 1, **options}
    folder = ImageFolder(path, **options)
    ((images,),) = list(folder)
    assert not folder.corrupt
    return images[0]


SIZES = [(500, 375), (375, 500), (256, 256), (300, 300), (257, 1000), (120, 90), (640, 427)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("crop", "resize"), [(224, 256), (96, 96), (224, 232), (299, 342)])
def test_exact_pixels_are_torchvisions(tmp_path, size, crop, resize):
    path = write(tmp_path / "a.png", photo(*size))
    got = only(tmp_path, size=crop, resize=resize, exact=True)
    np.testing.assert_array_equal(got, torchvision(Image.open(path), crop, resize))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_other_pixels_differ_by_one_level_at_most(tmp_path, size):
    path = write(tmp_path / "a.jpg", photo(*size), quality=90)
    got = only(tmp_path)
    want = torchvision(Image.open(path), 224, 256)
    difference = np.abs(got.astype(int) - want)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
def test_interpolation(tmp_path, name):
    path = write(tmp_path / "a.png", photo(500, 375))
    got = only(tmp_path, interpolation=name, exact=True)
    kernel = Image.Resampling[name.upper()]
    np.testing.assert_array_equal(got, torchvision(Image.open(path), 224, 256, kernel))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    crop=st.integers(1, 40),
    more=st.integers(0, 24),
)
def test_exact_geometry_of_any_size(width, height, crop, more):
    image = photo(width, height)
    geometry = Geometry((crop, crop), crop + more, Image.Resampling.BILINEAR, exact=True)
    got = np.asarray(geometry.apply(image, image.size))
    np.testing.assert_array_equal(got, torchvision(image, crop, crop + more))


def test_a_resize_of_both_sides(tmp_path):
    path = write(tmp_path / "a.png", photo(90, 50))
    got = only(tmp_path, size=(20, 30), resize=(24, 36), exact=True)
    resized = Image.open(path).resize((36, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(got, np.asarray(resized.crop((3, 2, 33, 22))))


def test_floats_are_torchvisions(tmp_path):
    path = write(tmp_path / "a.png", photo(120, 90))
    want = normalized(torchvision(Image.open(path), 64, 73), IMAGENET_MEAN, IMAGENET_STD)
    planes = only(tmp_path, size=64, dtype="float32", layout="NCHW", exact=True)
    np.testing.assert_array_equal(planes, want)
    rows = only(tmp_path, size=64, dtype="float32", layout="NHWC", exact=True)
    np.testing.assert_array_equal(rows, want.transpose(1, 2, 0))


def test_layouts_hold_the_same_pixels(tmp_path):
    write(tmp_path / "a.png", photo(120, 90))
    np.testing.assert_array_equal(
        only(tmp_path, size=(48, 64), layout="NCHW").transpose(1, 2, 0),
        only(tmp_path, size=(48, 64), layout="NHWC"),
    )


# --- JPEG at a reduced scale ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(2048, 1536), (1365, 1023), (1500, 2251)], ids=str)
def test_a_large_jpeg_is_reduced_within_tolerance(tmp_path, size):
    path = write(tmp_path / "a.jpg", photo(*size), quality=95)
    want = torchvision(Image.open(path), 96, 110).astype(int)
    reduced = only(tmp_path, size=96)
    exact = only(tmp_path, size=96, exact=True)
    np.testing.assert_array_equal(exact, want)
    assert not np.array_equal(reduced, want), "nothing was reduced"
    assert np.abs(reduced - want).mean() < 1
    assert np.abs(reduced - want).max() <= 8


def test_a_jpeg_of_less_than_four_times_the_size_is_not_reduced(tmp_path):
    path = write(tmp_path / "a.jpg", photo(1000, 750), quality=90)
    got = only(tmp_path)
    assert np.abs(got.astype(int) - torchvision(Image.open(path), 224, 256)).max() <= 1


# --- kinds of images ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "a.png"), ("L", "a.jpg"), ("1", "a.png"), ("LA", "a.png"), ("P", "a.png"),
        ("P", "a.gif"), ("RGBA", "a.png"), ("RGBA", "a.webp"), ("CMYK", "a.jpg"),
        ("RGB", "a.ppm"), ("RGB", "a.bmp"), ("RGB", "a.tiff"), ("YCbCr", "a.jpg"),
    ],
)  # fmt: skip
def test_everything_becomes_rgb_as_pillow_converts_it(tmp_path, mode, name):
    path = write(tmp_path / name, photo(60, 50).convert(mode))
    got = only(tmp_path, size=32, exact=True)
    np.testing.assert_array_equal(got, torchvision(Image.open(path), 32, 37))


def test_sixteen_bits_of_grey_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    write(tmp_path / "a.png", Image.fromarray(ramp))
    got = only(tmp_path, size=64, resize=64)
    np.testing.assert_array_equal(got, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, 2))


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [flat(value) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert set(np.unique(only(tmp_path, size=8, resize=8))) == {10}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tiff", "a.webp"])
def test_upright_photographs(tmp_path, orientation, name):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "a.webp" else {}
    path = write(tmp_path / name, photo(80, 50), exif=exif, **options)
    turned = ImageOps.exif_transpose(Image.open(path))
    np.testing.assert_array_equal(
        only(tmp_path, size=(40, 32), resize=(46, 36), exact=True),
        only_of(turned, (32, 40), (36, 46)),
    )
    if name != "a.tiff":  # which Pillow itself turns
        np.testing.assert_array_equal(
            only(tmp_path, size=32, upright=False, exact=True),
            torchvision(Image.open(path), 32, 37),
        )


def only_of(image, size, resize):
    resized = image.resize(resize, Image.Resampling.BILINEAR)
    left, top = (round((a - b) / 2) for a, b in zip(resize, size, strict=True))
    return np.asarray(resized.crop((left, top, left + size[0], top + size[1])))


def test_a_reduced_photograph_is_turned_too(tmp_path):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = 6
    path = write(tmp_path / "a.jpg", photo(1200, 900), exif=exif, quality=95)
    want = torchvision(ImageOps.exif_transpose(Image.open(path)), 64, 73).astype(int)
    assert np.abs(only(tmp_path, size=64) - want).mean() < 1
