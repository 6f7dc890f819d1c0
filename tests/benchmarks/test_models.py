"""The benchmark networks: torchvision's names and sizes, the registry, seeds and checkpoints."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks import models
from benchmarks.models import weights
from benchmarks.models.alexnet import alexnet
from benchmarks.models.inception import InceptionOutput, InceptionV3, inception_v3
from benchmarks.models.inputs import Inputs, image
from benchmarks.models.resnet import resnet18, resnet50
from benchmarks.models.vgg import vgg16

# Published name in each reference table -> our name.
CNN_TABLE = {name: name for name in ("alexnet", "vgg16", "resnet50", "inception_v3")}
COMPILE_TABLE = {
    "ViT": "vit",
    "BeiT": "beit",
    "ConvNeXT": "convnext",
    "ResNet": "resnet50_hf",
    "Segformer": "segformer",
    "Mask2former": "mask2former",
    "Maskformer": "maskformer",
    "MobileNet": "mobilenet_deeplab",
    "OwlViT": "owlvit",
    "DETR": "detr_resnet50",
    "Resnet-101": "detr_resnet101",
    "Conditional-DETR": "conditional_detr",
}

# Of the published checkpoints; for the transformers networks it is the configuration under test.
PARAMETERS = {
    "vit": 86_567_656,
    "convnext": 197_767_336,
    "segformer": 3_752_694,
    "resnet50_hf": 25_557_032,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On shared cores the barriers between threads cost more than the threads gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(module: nn.Module, inputs: Inputs) -> Any:
    with torch.no_grad():
        return module(**inputs) if isinstance(inputs, dict) else module(*inputs)


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build_on_meta(build: Any) -> nn.Module:
    """Shapes without memory or initialisation."""
    with torch.device("meta"):
        module: nn.Module = build()
    return module


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


class TestTorchvisionNetworks:
    @pytest.mark.parametrize(
        ("build", "count"),
        [
            (alexnet, 61_100_840),
            (vgg16, 138_357_544),
            (resnet18, 11_689_512),
            (resnet50, 25_557_032),
            (inception_v3, 27_161_264),
        ],
    )
    def test_parameter_count_is_torchvisions(self, build: Any, count: int) -> None:
        assert parameter_count(build_on_meta(build)) == count

    @pytest.mark.parametrize(
        ("build", "tensors", "shapes"),
        [
            (
                alexnet,
                16,
                {
                    "features.0.weight": (64, 3, 11, 11),
                    "features.10.bias": (256,),
                    "classifier.1.weight": (4096, 9216),
                    "classifier.6.weight": (1000, 4096),
                },
            ),
            (
                vgg16,
                32,
                {
                    "features.0.weight": (64, 3, 3, 3),
                    "features.28.weight": (512, 512, 3, 3),
                    "classifier.0.weight": (4096, 25088),
                    "classifier.6.bias": (1000,),
                },
            ),
            (
                resnet18,
                122,
                {"layer1.1.bn2.weight": (64,), "layer2.0.downsample.0.weight": (128, 64, 1, 1)},
            ),
            (
                resnet50,
                320,
                {
                    "conv1.weight": (64, 3, 7, 7),
                    "bn1.num_batches_tracked": (),
                    "layer1.0.downsample.1.running_mean": (256,),
                    "layer2.0.conv2.weight": (128, 128, 3, 3),
                    "layer4.2.conv3.weight": (2048, 512, 1, 1),
                    "fc.weight": (1000, 2048),
                },
            ),
            (
                inception_v3,
                580,
                {
                    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
                    "Mixed_5b.branch_pool.bn.running_var": (32,),
                    "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
                    "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
                    "AuxLogits.conv1.conv.weight": (768, 128, 5, 5),
                    "AuxLogits.fc.bias": (1000,),
                    "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
                    "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
                    "fc.weight": (1000, 2048),
                },
            ),
        ],
    )
    def test_names_and_shapes_are_torchvisions(
        self, build: Any, tensors: int, shapes: dict[str, tuple[int, ...]]
    ) -> None:
        state = build_on_meta(build).state_dict()
        assert len(state) == tensors
        assert {name: tuple(state[name].shape) for name in shapes} == shapes

    def test_initial_scales(self) -> None:
        torch.manual_seed(0)
        conv = resnet18().get_submodule("layer4.1.conv2")
        assert isinstance(conv, nn.Conv2d)
        assert conv.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
        network = inception_v3()
        state = network.state_dict()
        for name, std in [
            ("Mixed_7c.branch3x3_1.conv.weight", 0.1),
            ("AuxLogits.conv1.conv.weight", 0.1),
            ("AuxLogits.fc.weight", 0.001),
            ("fc.weight", 0.1),
        ]:
            assert state[name].std().item() == pytest.approx(std, rel=0.02), name

    def test_inception_returns_both_heads_only_while_training(self) -> None:
        network = inception_v3(num_classes=5)
        images = torch.randn(2, 3, 299, 299)  # the auxiliary head needs a 17 x 17 grid
        with torch.no_grad():
            out = network(images)
            assert isinstance(out, InceptionOutput)
            assert [tuple(head.shape) for head in out] == [(2, 5), (2, 5)]
            logits = network.eval()(images)
        assert isinstance(logits, Tensor)
        assert logits.shape == (2, 5)

    def test_inception_transform_turns_imagenet_normalisation_into_symmetric_range(self) -> None:
        pixels = torch.rand(1, 3, 75, 75)
        mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
        network = inception_v3(num_classes=3).eval()
        with torch.no_grad():
            expected = network(2 * pixels - 1)
            network.transform_input = True
            actual = network((pixels - mean) / std)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


class TestRegistry:
    def test_has_the_seventeen_networks(self) -> None:
        assert len(models.NETWORKS) == 17
        assert models.names() == (*CNN_TABLE.values(), *COMPILE_TABLE.values(), "bert")
        assert all(name == network.name for name, network in models.NETWORKS.items())

    @pytest.mark.parametrize(
        ("table", "keys"),
        [("cnn_inference_tensorrt", CNN_TABLE), ("torch_compile_inference", COMPILE_TABLE)],
    )
    def test_reference_keys_are_the_tables_own(self, table: str, keys: dict[str, str]) -> None:
        known = {
            network.reference_key: network.name
            for network in models.NETWORKS.values()
            if network.reference_table == table
        }
        assert known == keys

    def test_unknown_name_lists_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match=r"'resnet5' is unknown. Known .*resnet50, .*bert"):
            models.load("resnet5")

    def test_import_is_cheap(self) -> None:
        check = "import sys, benchmarks.models; print(*{'torch', 'transformers'} & {*sys.modules})"
        root = Path(models.__file__).parents[2]
        result = subprocess.run(
            [sys.executable, "-c", check], cwd=root, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == ""

    def test_example_inputs(self) -> None:
        networks = models.NETWORKS
        detection = networks["detr_resnet50"].example_inputs(batch=2, image_size=(64, 96))
        assert isinstance(detection, dict)
        assert {name: tuple(tensor.shape) for name, tensor in detection.items()} == {
            "pixel_values": (2, 3, 64, 96),
            "pixel_mask": (2, 64, 96),
        }
        (one,), (two,) = (image(batch, 5, (64, 96)) for batch in (1, 2))
        assert torch.equal(one[0], two[0])
        assert not torch.equal(two[0], two[1])
        queries = networks["owlvit"].example_inputs(batch=3, image_size=(32, 32))
        assert isinstance(queries, dict)
        assert queries["input_ids"].shape == queries["attention_mask"].shape == (6, 16)
        text = networks["bert"].example_inputs(batch=2)
        assert isinstance(text, dict)
        assert all(t.shape == (2, 128) and t.dtype == torch.int64 for t in text.values())

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("bert", {"image_size": (8, 8)}, "takes no image"),
            ("vit", {"batch": 0}, "batch is 0"),
        ],
    )
    def test_wrong_example_inputs(self, name: str, options: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            models.NETWORKS[name].example_inputs(**options)

    @pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
    def test_parameter_count_is_the_checkpoints(self, name: str, count: int) -> None:
        assert parameter_count(build_on_meta(models.NETWORKS[name].build)) == count


class TestLoad:
    def test_the_seed_decides_weights_and_inputs(self) -> None:
        before = torch.random.get_rng_state()
        first, inputs = models.load("resnet50_hf", seed=3)
        again, same_inputs = models.load("resnet50_hf", seed=3, batch=2)
        other, _ = models.load("resnet50_hf", seed=4)
        assert torch.equal(before, torch.random.get_rng_state())
        assert not first.training
        assert isinstance(inputs, dict)
        assert isinstance(same_inputs, dict)
        assert inputs["pixel_values"].shape == (1, 3, 224, 224)
        assert same_inputs["pixel_values"].shape == (2, 3, 224, 224)
        state, same, different = first.state_dict(), again.state_dict(), other.state_dict()
        assert all(torch.equal(state[name], same[name]) for name in state)
        assert not torch.equal(state["classifier.1.weight"], different["classifier.1.weight"])
        means = [name for name in state if name.endswith("running_mean")]
        assert not any(torch.equal(state[name], different[name]) for name in means)

    def test_randomized_weights_leave_nothing_to_chance(self) -> None:
        module, inputs = models.load("inception_v3")
        for layer in batch_norms(module):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                assert tensor.std() > 0
            assert layer.running_var.min() > 0
        scales = []
        for layer in batch_norms(module):
            layer.register_forward_hook(lambda _, __, out: scales.append(out.std().item()))
        logits = run(module, inputs)
        assert torch.isfinite(logits).all()
        assert 1e-3 < logits.abs().max() < 1e3
        assert len(scales) == 94  # every BatchNorm outside the auxiliary head
        assert 0.7 < min(scales) < max(scales) < 1.5

    def test_randomize_reaches_frozen_batch_norms(self) -> None:
        class Frozen(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                for name in ("weight", "bias", "running_mean", "running_var"):
                    self.register_buffer(name, torch.ones(8))

            def forward(self, x: Tensor) -> Tensor:
                return x

        layer = Frozen()
        x = 5 + 3 * torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
        weights.randomize(layer, (x,), seed=0)
        assert layer.get_buffer("running_mean").mean().item() == pytest.approx(5, abs=0.5)
        assert layer.get_buffer("running_var").min() > 0.4 * 9
        assert layer.get_buffer("running_var").max() < 1.6 * 9

    def test_initial_weights_on_request(self) -> None:
        module, _ = models.load("resnet50_hf", randomize=False)
        for layer in batch_norms(module):
            assert layer.running_var is not None
            assert torch.equal(layer.running_var, torch.ones_like(layer.running_var))

    def test_constants_become_noise_of_a_fitting_scale(self) -> None:
        class Constants(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bias = nn.Parameter(torch.zeros(1000))
                self.scale = nn.Parameter(torch.ones(1000))
                self.layer_scale = nn.Parameter(torch.full((1000,), 1e-6))
                self.drawn = nn.Parameter(torch.arange(1000.0))

        module = Constants()
        weights.randomize(module, (), seed=0)
        assert module.bias.std().item() == pytest.approx(0.02, rel=0.1)
        assert 0.8 <= module.scale.min() < module.scale.max() <= 1.2
        assert 0.05 <= module.layer_scale.min() < module.layer_scale.max() <= 0.25
        assert torch.equal(module.drawn, torch.arange(1000.0))


class TestCheckpoints:
    def test_file_round_trip_is_strict(self, tmp_path: Path) -> None:
        source, inputs = models.load("inception_v3", seed=1)
        path = tmp_path / "inception_v3.pth"
        torch.save(source.state_dict(), path)
        loaded, _ = models.load("inception_v3", checkpoint=path)
        # The published weights expect it, so a checkpoint turns it on.
        assert isinstance(loaded, InceptionV3)
        assert loaded.transform_input
        loaded.transform_input = False
        assert torch.equal(run(source, inputs), run(loaded, inputs))

        state = source.state_dict()
        state["fc.wieght"] = state.pop("fc.weight")
        torch.save(state, path)
        with pytest.raises(
            RuntimeError, match=r"(?s)Missing key.*fc.weight.*Unexpected.*fc.wieght"
        ):
            models.load("inception_v3", checkpoint=path)

    def test_transformers_folder(self, tmp_path: Path) -> None:
        source, inputs = models.load("segformer", seed=1)
        folder: Any = source
        folder.save_pretrained(tmp_path)
        loaded, _ = models.load("segformer", checkpoint=tmp_path)
        torch.testing.assert_close(run(source, inputs).logits, run(loaded, inputs).logits)

    def test_safetensors_file(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        source = resnet18(num_classes=3)
        path = tmp_path / "resnet18.safetensors"
        save_file(source.state_dict(), path)
        target = resnet18(num_classes=3)
        weights.load_checkpoint(target, path)
        assert torch.equal(source.fc.weight, target.fc.weight)

    def test_folder_for_a_network_that_is_not_transformers(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no transformers network"):
            weights.load_checkpoint(resnet18(), tmp_path)

    def test_folder_that_lacks_weights(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        source, _ = models.load("segformer", randomize=False)
        folder: Any = source
        folder.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        del state["decode_head.classifier.weight"]
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks 1 weights .*decode_head\.classifier\.weight"):
            models.load("segformer", checkpoint=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_every_network_answers_something(name: str) -> None:
    module, inputs = models.load(name)
    outputs = [leaf for leaf in pytree.tree_leaves(run(module, inputs)) if isinstance(leaf, Tensor)]
    assert outputs
    for output in outputs:
        assert torch.isfinite(output).all()
        assert 1e-3 < output.abs().max() < 1e3
        assert output.float().std() > 1e-4
