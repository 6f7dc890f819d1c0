"""Programs that take pixels give what programs that take normalized images give."""

import numpy as np
import pytest

import xrt
from tests.support import assert_close, model
from tests.xrt_data.images import photo, write
from xrt.data import IMAGENET_MEAN, IMAGENET_STD, ImageFolder
from xrt.errors import InputError, OptionError

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (2, 3, 12, 10), np.uint8)
NORMALIZATION = xrt.InputNormalization(mean=IMAGENET_MEAN, std=IMAGENET_STD)
NETWORK = """
    g (float[N,3,H,W] x) => (float[N,4,p,q] y) <float[5,3,3,3] v, float[4,5,3,3] w>
    { h = Conv <pads = [1,1,1,1]> (x, v) r = Relu (h) y = Conv (r, w) }
"""
WEIGHTS = {"v": rng.normal(size=(5, 3, 3, 3)), "w": rng.normal(size=(4, 5, 3, 3))}


def normalized(pixels):
    mean, std = (np.array(n, np.float32).reshape(3, 1, 1) for n in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels / np.float32(255) - mean) / std


def rows(pixels):
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def options(tmp_path, normalization=NORMALIZATION, **others):
    return xrt.CompileOptions(cache_dir=tmp_path, normalization=normalization, **others)


@pytest.mark.parametrize("engine", ["auto", "host"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_an_onnx_model(tmp_path, engine, layout):
    network = model(NETWORK, **WEIGHTS)
    want = xrt.compile(network, engine=engine, options=options(tmp_path, None))(normalized(PIXELS))
    wanted = xrt.InputNormalization(mean=IMAGENET_MEAN, std=IMAGENET_STD, layout=layout)
    program = xrt.compile(network, engine=engine, options=options(tmp_path, wanted))
    assert_close(program(PIXELS if layout == "NCHW" else rows(PIXELS)), want)


def test_the_factor_is_in_the_weights(tmp_path):
    program = xrt.compile(model(NETWORK, **WEIGHTS), (PIXELS,), options=options(tmp_path))
    (cluster,) = program.clusters
    operators = [node.op_type for node in cluster.nodes]
    assert operators == ["Cast", "Sub", "Conv", "Relu", "Conv"]


def test_all_of_it_is_in_the_weights_without_padding(tmp_path):
    network = model(NETWORK.replace("<pads = [1,1,1,1]>", ""), **WEIGHTS)
    program = xrt.compile(network, (PIXELS,), options=options(tmp_path))
    (cluster,) = program.clusters
    assert [node.op_type for node in cluster.nodes] == ["Cast", "Conv", "Relu", "Conv"]
    want = xrt.compile(network, options=options(tmp_path, None))(normalized(PIXELS))
    assert_close(program(PIXELS), want)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_other_precisions(tmp_path, precision):
    network = model(NETWORK, **WEIGHTS)
    calibration = [(PIXELS,)] if precision == "int8" else None
    program = xrt.compile(
        network, (PIXELS,), precision=precision, calibration=calibration, options=options(tmp_path)
    )
    want = xrt.compile(network, options=options(tmp_path, None))(normalized(PIXELS))
    error = np.abs(program(PIXELS).astype(np.float32) - want).max() / np.abs(want).max()
    assert error < {"fp16": 2e-3, "bf16": 2e-2, "int8": 4e-2}[precision]


def test_floats_are_refused(tmp_path):
    program = xrt.compile(model(NETWORK, **WEIGHTS), options=options(tmp_path))
    with pytest.raises(InputError, match="'x' has dtype float32; the model takes uint8"):
        program(normalized(PIXELS))


# --- torch ----------------------------------------------------------------------------------------


@pytest.fixture
def module():
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, scale, image):
            return {"scores": self.conv(image).mean((2, 3)) * scale}

    return Network().eval()


def torch_options(tmp_path, **others):
    wanted = xrt.InputNormalization(
        mean=IMAGENET_MEAN, std=IMAGENET_STD, input="image", layout="NHWC", **others
    )
    return options(tmp_path, wanted)


def test_a_torch_module(tmp_path, module):
    import torch

    scale = torch.tensor([2.0])
    with torch.no_grad():
        want = module(scale, torch.from_numpy(normalized(PIXELS)))["scores"]
    program = xrt.compile(module, options=torch_options(tmp_path))
    for _ in range(2):
        got = program(scale, image=torch.from_numpy(rows(PIXELS)))
        assert isinstance(got["scores"], torch.Tensor)
        assert_close(got["scores"].numpy(), want.numpy())


def test_a_torch_module_of_half_precision(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Conv2d(3, 4, 3).half().eval()
    with torch.no_grad():
        want = module(torch.from_numpy(normalized(PIXELS)).half())
    got = xrt.compile(module, (PIXELS,), options=options(tmp_path))(PIXELS)
    assert_close(got, want.numpy())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (rows(PIXELS).astype(np.float32), r"'image' is 'float32 \[2, 12, 10, 3\]'.*must be uint8"),
        (PIXELS, r"uint8 \[N, H, W, C\] of 3 channels"),
        ([1, 2], "must be uint8"),
    ],
)
def test_images_that_do_not_fit_a_module(tmp_path, module, image, message):
    program = xrt.compile(module, options=torch_options(tmp_path))
    with pytest.raises(InputError, match=message):
        program(np.ones(1, np.float32), image)


def test_an_input_that_a_module_does_not_have(tmp_path, module):
    wanted = xrt.InputNormalization(mean=IMAGENET_MEAN, std=IMAGENET_STD, input="img")
    with pytest.raises(InputError, match=r"input 'img' is unknown\. .* are scale, image"):
        xrt.compile(module, (np.ones(1, np.float32), PIXELS), options=options(tmp_path, wanted))


# --- options and folders --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"mean": (0.5,), "std": (0.5, 0.5)},
        {"mean": (), "std": ()},
        {"mean": (float("nan"),), "std": (1.0,)},
        {"mean": (0.5,), "std": (0.0,)},
        {"mean": [0.5], "std": (0.5,)},
        {"mean": (0.5,), "std": (0.5,), "layout": "CHW"},
        {"mean": (0.5,), "std": (0.5,), "input": 0},
    ],
)
def test_values_that_are_no_normalization(given):
    with pytest.raises(OptionError, match=r"InputNormalization\."):
        xrt.InputNormalization(**given)


def test_compile_options_take_nothing_else():
    with pytest.raises(OptionError, match="normalization must be of type InputNormalization"):
        xrt.CompileOptions(normalization=(0.5, 0.5))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_folder_of_pixels_gives_what_one_of_floats_gives(tmp_path, layout):
    for number in range(5):
        write(tmp_path / "images" / f"{number}.png", photo(30, 20, number))
    network = model(NETWORK, **WEIGHTS)
    floats = ImageFolder(tmp_path / "images", 16, 2)
    pixels = ImageFolder(tmp_path / "images", 16, 2, dtype="uint8", layout=layout)
    want = list(xrt.compile(network, options=options(tmp_path, None)).stream(floats))
    program = xrt.compile(network, options=options(tmp_path, pixels.normalization))
    got = list(program.stream(pixels))
    assert [len(each) for each in got] == [2, 2, 1]
    assert_close(got, want)


def test_a_saved_program_takes_pixels(tmp_path):
    program = xrt.compile(model(NETWORK, **WEIGHTS), options=options(tmp_path))
    want = program(PIXELS)
    program.save(tmp_path / "program.xrt")
    assert_close(xrt.load(tmp_path / "program.xrt")(PIXELS), want)


def test_a_program_that_takes_pixels_is_verified(tmp_path):
    program = xrt.compile(model(NETWORK, **WEIGHTS), options=options(tmp_path))
    assert xrt.verify(program, (PIXELS,))


def test_a_folder_calibrates(tmp_path):
    for number in range(6):
        write(tmp_path / "images" / f"{number}.png", photo(30, 20, number))
    folder = ImageFolder(tmp_path / "images", 16, 2, dtype="uint8")
    network = model(NETWORK, **WEIGHTS)
    program = xrt.compile(
        network,
        precision="int8",
        calibration=folder,
        options=options(tmp_path, folder.normalization),
    )
    full = xrt.compile(network, options=options(tmp_path, folder.normalization))
    for got, want in zip(program.stream(folder), full.stream(folder), strict=True):
        assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
