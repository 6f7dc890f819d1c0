"""The seventeen networks of the published tables.

>>> from benchmarks import models
>>> module, inputs = models.load("resnet50", batch=8)

Importing this package is cheap: torch and transformers are imported when a network is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.models.inputs import Inputs

__all__ = ["NETWORKS", "Network", "load", "names"]

Family = Literal["cnn", "vision", "language"]


def _lazy(target: str) -> Callable[..., Any]:
    """The function ``module:name`` of this package, imported when it is first called."""
    module, _, name = target.partition(":")

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)(*args, **kwargs)

    return call


@dataclass(frozen=True)
class Network:
    """One network of a published table.

    Attributes:
        name: its key in :data:`NETWORKS`.
        title: how a report spells it, with the checkpoint it stands for.
        family: ``cnn`` (written here, torchvision's names), ``vision`` or ``language`` (from
            transformers).
        build: makes the module, in training mode, from torch's global random state.
        make_inputs: ``(batch, seed[, image_size])`` -> inputs; see :meth:`example_inputs`.
        image_size: ``(height, width)`` that the checkpoint's preprocessing gives for the published
            image (480 x 640); None for a network that takes no image.
        reference_table: the stem of the table's JSON file.
        reference_key: its name in that table; None where the table is about one network only.
        pretrained_options: what ``build`` needs to match the published weights.
    """

    name: str
    title: str
    family: Family
    build: Callable[..., nn.Module]
    make_inputs: Callable[..., Inputs]
    image_size: tuple[int, int] | None
    reference_table: str
    reference_key: str | None
    pretrained_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def example_inputs(
        self, batch: int = 1, seed: int = 0, image_size: tuple[int, int] | None = None
    ) -> Inputs:
        """Random inputs that depend on ``seed`` alone: a tuple (positional) or a dict (by name).

        ``image_size`` overrides the published size, for networks whose architecture allows it.
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}; it must be at least 1.")
        if self.image_size is None:
            if image_size is not None:
                raise ValueError(f"{self.name!r} takes no image, so image_size cannot be set.")
            return self.make_inputs(batch, seed)
        return self.make_inputs(batch, seed, image_size or self.image_size)


def _cnn(name: str, title: str, module: str, size: int, **pretrained: Any) -> Network:
    return Network(
        name=name,
        title=title,
        family="cnn",
        build=_lazy(f"{module}:{name}"),
        make_inputs=_lazy("inputs:image"),
        image_size=(size, size),
        reference_table="cnn_inference_tensorrt",
        reference_key=name,
        pretrained_options=MappingProxyType(pretrained),
    )


def _vision(
    name: str, key: str, checkpoint: str, size: tuple[int, int], inputs: str = "pixels"
) -> Network:
    return Network(
        name=name,
        title=f"{key} ({checkpoint})",
        family="vision",
        build=_lazy(f"transformers:{name}"),
        make_inputs=_lazy(f"inputs:{inputs}"),
        image_size=size,
        reference_table="torch_compile_inference",
        reference_key=key,
    )


_ALL = (
    _cnn("alexnet", "AlexNet", "alexnet", 224),
    _cnn("vgg16", "VGG-16", "vgg", 224),
    _cnn("resnet50", "ResNet-50", "resnet", 224),
    _cnn("inception_v3", "Inception-v3", "inception", 299, transform_input=True),
    _vision("vit", "ViT", "google/vit-base-patch16-224", (224, 224)),
    _vision("beit", "BeiT", "microsoft/beit-base-patch16-224-pt22k-ft22k", (224, 224)),
    _vision("convnext", "ConvNeXT", "facebook/convnext-large-224", (224, 224)),
    _vision("resnet50_hf", "ResNet", "microsoft/resnet-50", (224, 224)),
    _vision("segformer", "Segformer", "nvidia/segformer-b0-finetuned-ade-512-512", (512, 512)),
    _vision(
        "mask2former", "Mask2former", "facebook/mask2former-swin-tiny-coco-panoptic", (384, 384)
    ),
    # Shortest side 640, then padded to a multiple of 32.
    _vision("maskformer", "Maskformer", "facebook/maskformer-swin-base-ade", (640, 864)),
    _vision("mobilenet_deeplab", "MobileNet", "google/deeplabv3_mobilenet_v2_1.0_513", (513, 513)),
    _vision("owlvit", "OwlViT", "google/owlvit-base-patch32", (768, 768), "owlvit"),
    _vision("detr_resnet50", "DETR", "facebook/detr-resnet-50", (800, 1066), "detection"),
    _vision("detr_resnet101", "Resnet-101", "facebook/detr-resnet-101", (800, 1066), "detection"),
    _vision(
        "conditional_detr",
        "Conditional-DETR",
        "microsoft/conditional-detr-resnet-50",
        (800, 1066),
        "detection",
    ),
    Network(
        name="bert",
        title="BERT-base (MLM and NSP heads, sequence 128)",
        family="language",
        build=_lazy("transformers:bert"),
        make_inputs=_lazy("inputs:bert"),
        image_size=None,
        reference_table="bert_training_xla",
        reference_key=None,
    ),
)

NETWORKS: dict[str, Network] = {network.name: network for network in _ALL}


def names() -> tuple[str, ...]:
    """The names that :func:`load` knows, in the order of the published tables."""
    return tuple(NETWORKS)


def load(
    name: str,
    *,
    batch: int = 1,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    randomize: bool = True,
    image_size: tuple[int, int] | None = None,
) -> tuple[nn.Module, Inputs]:
    """Build a network in eval mode, with example inputs for it.

    Args:
        name: one of :func:`names`.
        batch: the number of images or sequences in the inputs.
        seed: decides weights and inputs; torch's global random state is left as it was.
        checkpoint: a state dict file, or a transformers folder; loaded strictly.
        randomize: without a checkpoint, give BatchNorm and everything that starts as a constant
            the statistics of a trained network, so that folding has something to fold
            (:func:`benchmarks.models.weights.randomize`); False keeps the initial weights.
        image_size: ``(height, width)`` of the example images in place of the published size.
    """
    if name not in NETWORKS:
        raise ValueError(f"Network {name!r} is unknown. Known networks: {', '.join(NETWORKS)}.")
    network = NETWORKS[name]
    import torch

    from benchmarks.models import weights

    options = {} if checkpoint is None else dict(network.pretrained_options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = network.build(**options).eval()
    if checkpoint is not None:
        weights.load_checkpoint(module, Path(checkpoint))
    elif randomize:
        # Calibrated at batch 1 and the published size, so that weights depend on the seed alone.
        weights.randomize(module, network.example_inputs(seed=seed), seed)
    return module, network.example_inputs(batch, seed, image_size)
