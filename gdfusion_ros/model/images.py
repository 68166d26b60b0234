"""The network's view of a camera image: resized, cropped, normalised as the published weights were trained (spec 1)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from gdfusion_ros.frame import CameraView, Image, ImageTransform
from gdfusion_ros.kernels import resize as kernel
from gdfusion_ros.model.config import ImageConfig

MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])
"""ImageNet's, for red, green, blue."""
_NORMALISED = ((np.arange(256) - MEAN[:, None]) / STD[:, None]).astype(np.float32)
"""(3, 256): what each byte becomes. In float64 until the end: so the training images were made, to the last bit."""


def prepare_view(view: CameraView, config: ImageConfig) -> CameraView:
    """The view with its image at the network's size, uint8, and the transform that says how it got there.

    The image is resized (bicubic) until it covers the network's size and loses its upper rows. A view that already
    has the size is given back as it is.
    """
    height, width = view.image.shape[:2]
    if (height, width) == (config.height, config.width):
        return view
    if view.missing and not view.image.size:
        return replace(view, image=np.zeros((config.height, config.width, 3), np.uint8))
    scale = max(config.width / width, config.height / height)
    # The small number keeps 703.9999 from becoming 703.
    size = (max(int(width * scale + 1e-6), config.width), max(int(height * scale + 1e-6), config.height))
    left, top = (size[0] - config.width) // 2, size[1] - config.height
    if size == (width, height):
        cropped = view.image[top:, left : left + config.width]
    elif kernel.usable(view.image):
        cropped = kernel.resize(view.image, size, (left, top), (config.width, config.height))
    else:
        resized = Pillow.fromarray(view.image).resize(size, Pillow.Resampling.BICUBIC)
        cropped = np.asarray(resized.crop((left, top, left + config.width, top + config.height)))
    before = view.image_transform
    transform = ImageTransform(before.scale * scale, before.left * scale + left, before.top * scale + top)
    return replace(view, image=np.ascontiguousarray(cropped), image_transform=transform)


def network_image(image: Image, config: ImageConfig) -> npt.NDArray[np.float32]:
    """(3, H, W) float32 of a prepared image (height, width, 3) uint8 RGB: normalised, then padded where wanted."""
    if config.normalisation == "caffe":
        # MEAN in the order of the channels, blue first: unlike the networks below.
        normalised = image[..., ::-1].astype(np.float32) - MEAN[::-1].astype(np.float32)
        normalised = np.ascontiguousarray(normalised.transpose(2, 0, 1))
    else:
        normalised = normalise_image(image)
    height, width = config.network_size
    rows, columns = height - normalised.shape[1], width - normalised.shape[2]
    # Zero after the mean was taken off: the padding has the mean colour, not black.
    return np.pad(normalised, ((0, 0), (0, rows), (0, columns))) if rows or columns else normalised


def normalise_image(image: Image) -> npt.NDArray[np.float32]:
    """(3, H, W) float32 of an image (H, W, 3) uint8 RGB."""
    # Oddity (spec 12.5): the channels are blue, green, red, but the constants stay in the order red, green, blue.
    return np.stack([table[image[..., 2 - channel]] for channel, table in enumerate(_NORMALISED)])
