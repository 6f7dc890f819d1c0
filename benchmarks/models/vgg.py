"""The VGG family, with torchvision's parameter names and initial scales."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["VGG", "vgg11", "vgg16"]


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each ended by a 2x2 max pooling, then three dense layers.

    Args:
        depths: the number of convolutions in each of the five stages.
    """

    widths = (64, 128, 256, 512, 512)

    def __init__(
        self, depths: Sequence[int], num_classes: int = 1000, dropout: float = 0.5
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, depth in zip(self.widths, depths, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, H, W]`` (``H, W >= 32``) -> logits, float ``[N, num_classes]``."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def vgg11(num_classes: int = 1000) -> VGG:
    """VGG-11, configuration A."""
    return VGG((1, 1, 2, 2, 2), num_classes)


def vgg16(num_classes: int = 1000) -> VGG:
    """VGG-16, configuration D."""
    return VGG((2, 2, 3, 3, 3), num_classes)
