"""ResNets, and the neck that merges the two coarsest maps of a ResNet-50 (spec 3.1)."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor, nn

from gdfusion_ros.model.blocks.deformable import DeformableConv2d


class ImageFeatures(NamedTuple):
    """What the image encoder gives for each image."""

    features: Tensor
    """(B * N, 256, H / 16, W / 16)."""
    quarter: Tensor
    """(B * N, 256, H / 4, W / 4): the output of the first stage, which stereo matching compares."""


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut.

    The stride lies on the 3x3 convolution, or with ``stride_first`` on the first one (the older, "caffe" form: the
    same entries, other features). ``deformable`` moves the taps of the 3x3, which then must have no stride.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int = 1,
        project: bool = False,
        stride_first: bool = False,
        deformable: bool = False,
    ) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, stride if stride_first else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = (
            DeformableConv2d(width, width)
            if deformable
            else nn.Conv2d(width, width, 3, 1 if stride_first else stride, 1, bias=False)
        )
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


class ResNet(nn.Module):
    """A ResNet of four stages of bottlenecks."""

    def __init__(
        self, blocks: tuple[int, int, int, int], stride_first: bool = False, deformable_from: int = 5
    ) -> None:
        """``deformable_from``: the first stage, counted from 1, with deformable convolutions; 5 for none."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(
                inputs=64 if stage == 1 else 256 * 2 ** (stage - 2),
                width=64 * 2 ** (stage - 1),
                blocks=blocks[stage - 1],
                stride=1 if stage == 1 else 2,
                stride_first=stride_first,
                deformable=stage >= deformable_from,
            )
            for stage in (1, 2, 3, 4)
        )

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) to the maps at 1/4 (256 channels), 1/8 (512), 1/16 (1024) and 1/32 (2048)."""
        quarter = self.layer1(self.maxpool(self.bn1(self.conv1(images)).relu_()))
        eighth = self.layer2(quarter)
        sixteenth = self.layer3(eighth)
        return quarter, eighth, sixteenth, self.layer4(sixteenth)


class ResNet50(ResNet):
    """ResNet-50 with the stride on the 3x3 convolution."""

    def __init__(self) -> None:
        super().__init__((3, 4, 6, 3))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) to the maps at 1/4 (256 channels), 1/16 (1024) and 1/32 (2048)."""
        quarter, _, sixteenth, thirty_second = self.maps(images)
        return quarter, sixteenth, thirty_second


def _stage(
    inputs: int, width: int, blocks: int, stride: int, stride_first: bool, deformable: bool
) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride, True, stride_first, deformable)
    rest = (Bottleneck(4 * width, width, deformable=deformable) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


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
