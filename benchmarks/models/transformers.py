"""The networks of the torch.compile table and BERT-base, built from transformers configurations.

Each builder spells out what its published checkpoint's ``config.json`` sets and the library's
defaults do not, downloads nothing, and draws its weights from torch's global random state. The
detectors take the library's own ResNet as backbone, so timm is not needed; it computes the same
network as the timm backbone of their checkpoints.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn

__all__ = [
    "beit",
    "bert",
    "conditional_detr",
    "convnext",
    "detr_resnet50",
    "detr_resnet101",
    "mask2former",
    "maskformer",
    "mobilenet_deeplab",
    "owlvit",
    "resnet50_hf",
    "segformer",
    "vit",
]

# Untyped, because configurations take keywords that their signatures do not list.
hf: Any = transformers

_COCO_DETECTION_LABELS = 91
_COCO_PANOPTIC_LABELS = 133
_ADE_LABELS = 150
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def vit() -> nn.Module:
    """google/vit-base-patch16-224: ``pixel_values [N, 3, 224, 224] -> logits [N, 1000]``."""
    return _network(hf.ViTForImageClassification, hf.ViTConfig(num_labels=1000))


def beit() -> nn.Module:
    """microsoft/beit-base-patch16-224-pt22k-ft22k: ``[N, 3, 224, 224] -> logits [N, 21841]``."""
    config = hf.BeitConfig(num_labels=21841, use_relative_position_bias=True)
    return _network(hf.BeitForImageClassification, config)


def convnext() -> nn.Module:
    """facebook/convnext-large-224: ``pixel_values [N, 3, 224, 224] -> logits [N, 1000]``."""
    config = hf.ConvNextConfig(
        num_labels=1000, depths=[3, 3, 27, 3], hidden_sizes=[192, 384, 768, 1536]
    )
    return _network(hf.ConvNextForImageClassification, config)


def resnet50_hf() -> nn.Module:
    """microsoft/resnet-50: ``pixel_values [N, 3, 224, 224] -> logits [N, 1000]``."""
    return _network(hf.ResNetForImageClassification, hf.ResNetConfig(num_labels=1000))


def segformer() -> nn.Module:
    """nvidia/segformer-b0-finetuned-ade-512-512: ``[N, 3, H, W] -> logits [N, 150, H/4, W/4]``."""
    config = hf.SegformerConfig(num_labels=_ADE_LABELS)
    return _network(hf.SegformerForSemanticSegmentation, config)


def mask2former() -> nn.Module:
    """facebook/mask2former-swin-tiny-coco-panoptic.

    ``pixel_values [N, 3, H, W]`` (the processor resizes to 384 x 384) ->
    ``class_queries_logits [N, 100, 134]``, ``masks_queries_logits [N, 100, H/4, W/4]`` and the last
    hidden states.
    """
    backbone = hf.SwinConfig(drop_path_rate=0.3, out_features=_STAGES)
    config = hf.Mask2FormerConfig(backbone_config=backbone, num_labels=_COCO_PANOPTIC_LABELS)
    return _network(hf.Mask2FormerForUniversalSegmentation, config)


def maskformer() -> nn.Module:
    """facebook/maskformer-swin-base-ade.

    ``pixel_values [N, 3, H, W]`` (sides divisible by 32) -> ``class_queries_logits
    [N, 100, 151]``, ``masks_queries_logits [N, 100, H/4, W/4]`` and the last hidden states.
    """
    backbone = hf.SwinConfig(
        image_size=384,
        embed_dim=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=12,
        drop_path_rate=0.3,
        out_features=_STAGES,
    )
    config = hf.MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=hf.DetrConfig(backbone_config=_resnet([3, 4, 6, 3])),
        num_labels=_ADE_LABELS,
    )
    return _network(hf.MaskFormerForInstanceSegmentation, config)


def mobilenet_deeplab() -> nn.Module:
    """google/deeplabv3_mobilenet_v2_1.0_513: ``[N, 3, 513, 513] -> logits [N, 21, 65, 65]``."""
    config = hf.MobileNetV2Config(num_labels=21, image_size=513, output_stride=8)
    return _network(hf.MobileNetV2ForSemanticSegmentation, config)


def owlvit() -> nn.Module:
    """google/owlvit-base-patch32.

    ``pixel_values [N, 3, 768, 768]`` with Q text queries an image, ``input_ids`` and
    ``attention_mask`` int64 ``[N*Q, 16]`` -> ``logits [N, 576, Q]``, ``pred_boxes [N, 576, 4]`` and
    the embeddings.
    """
    # Without a range at the top level, transformers draws the heads from N(0, 1): boxes saturate.
    return _network(hf.OwlViTForObjectDetection, hf.OwlViTConfig(initializer_range=0.02))


def detr_resnet50() -> nn.Module:
    """facebook/detr-resnet-50; see :func:`_detection`."""
    return _detection(hf.DetrForObjectDetection, hf.DetrConfig, [3, 4, 6, 3])


def detr_resnet101() -> nn.Module:
    """facebook/detr-resnet-101; see :func:`_detection`."""
    return _detection(hf.DetrForObjectDetection, hf.DetrConfig, [3, 4, 23, 3])


def conditional_detr() -> nn.Module:
    """microsoft/conditional-detr-resnet-50, with 300 queries; see :func:`_detection`."""
    return _detection(hf.ConditionalDetrForObjectDetection, hf.ConditionalDetrConfig, [3, 4, 6, 3])


def bert() -> nn.Module:
    """BERT-base, uncased, with both pre-training heads.

    ``input_ids``, ``attention_mask``, ``token_type_ids``, int64 ``[N, L]`` (``L <= 512``) ->
    ``prediction_logits [N, L, 30522]`` and ``seq_relationship_logits [N, 2]``.
    """
    return _network(hf.BertForPreTraining, hf.BertConfig())


def _resnet(depths: list[int]) -> Any:
    return hf.ResNetConfig(depths=depths, out_features=["stage4"])


def _detection(model: Any, config: Any, depths: list[int]) -> nn.Module:
    """A set-prediction detector for COCO.

    ``pixel_values [N, 3, H, W]`` and ``pixel_mask`` int64 ``[N, H, W]`` -> ``logits [N, Q, 91]``
    (DETR adds a 92nd column for "no object"), ``pred_boxes [N, Q, 4]`` and the last hidden states.
    """
    settings = config(backbone_config=_resnet(depths), num_labels=_COCO_DETECTION_LABELS)
    return _network(model, settings)


def _network(model: Any, config: Any) -> nn.Module:
    network: nn.Module = model(config)
    return network
