"""ResNet-50 and the neck that merges its two coarsest maps (spec 3.1)."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor, nn


class ImageFeatures(NamedTuple):
    """What the image encoder gives for each image."""

    features: Tensor
    """(B * N, 256, H / 16, W / 16)."""
    quarter: Tensor
    """(B * N, 256, H / 4, W / 4): the output of the first stage, which stereo matching compares."""


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions around a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int = 1, project: bool = False) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if project
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, 4 * width, h / stride, w / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu_()
        x = self.bn2(self.conv2(x)).relu_()
        return cast(Tensor, (self.bn3(self.conv3(x)) + identity).relu_())


class ResNet50(nn.Module):
    """ResNet-50 with the stride on the 3x3 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(64, 64, 3, stride=1)
        self.layer2 = _stage(256, 128, 4, stride=2)
        self.layer3 = _stage(512, 256, 6, stride=2)
        self.layer4 = _stage(1024, 512, 3, stride=2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) to the maps at 1/4 (256 channels), 1/16 (1024) and 1/32 (2048)."""
        quarter = self.layer1(self.maxpool(self.bn1(self.conv1(images)).relu_()))
        sixteenth = self.layer3(self.layer2(quarter))
        return quarter, sixteenth, self.layer4(sixteenth)


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride, project=True)
    return nn.Sequential(first, *(Bottleneck(4 * width, width) for _ in range(blocks - 1)))


class ImageNeck(nn.Module):
    """A feature pyramid of two levels of which only the finer one is given."""

    def __init__(self, inputs: tuple[int, int] = (1024, 2048), outputs: int = 256) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, outputs, 1) for channels in inputs)
        self.smooth = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, sixteenth: Tensor, thirty_second: Tensor) -> Tensor:
        """(B, 1024, h, w) and (B, 2048, h / 2, w / 2) to (B, 256, h, w)."""
        fine, coarse = self.lateral[0](sixteenth), self.lateral[1](thirty_second)
        fine = fine + nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return cast(Tensor, self.smooth(fine))


class ImageEncoder(nn.Module):
    """Backbone and neck."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet50()
        self.neck = ImageNeck()

    def forward(self, images: Tensor) -> ImageFeatures:
        """Images (B, N, 3, H, W) to the features of all B * N images."""
        quarter, sixteenth, thirty_second = self.backbone(images.flatten(0, 1))
        return ImageFeatures(self.neck(sixteenth, thirty_second), quarter)
