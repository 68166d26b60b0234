"""Images out of messages: sensor_msgs/CompressedImage (JPEG, PNG) and sensor_msgs/Image, always to RGB uint8.

Everything a header claims is checked before memory is asked for: a message from the network may lie about
its size. cv2 decodes JPEGs to the same values as PIL does (a test compares them), which the published weights
were trained on.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from gdfusion_ros.assembly.messages import Message, payload
from gdfusion_ros.frame import Image

MAX_PIXELS = 40_000_000
"""Images beyond this are refused before they are decoded: no camera of a car gives more."""
MAX_SIDE = 16_384
MAX_ENCODED_BYTES = 64_000_000


class ImageError(ValueError):
    """An image that is refused. The message says what is wrong with it."""


@dataclass(frozen=True)
class _Encoding:
    dtype: str
    channels: int
    to_rgb: int | None
    """cv2's conversion code; None when the pixels are RGB already."""


# Bayer names: ROS names the first row's first two pixels, OpenCV the second row's second and third.
_ENCODINGS = {
    "rgb8": _Encoding("u1", 3, None),
    "bgr8": _Encoding("u1", 3, cv2.COLOR_BGR2RGB),
    "rgba8": _Encoding("u1", 4, cv2.COLOR_RGBA2RGB),
    "bgra8": _Encoding("u1", 4, cv2.COLOR_BGRA2RGB),
    "8UC3": _Encoding("u1", 3, cv2.COLOR_BGR2RGB),
    "mono8": _Encoding("u1", 1, cv2.COLOR_GRAY2RGB),
    "8UC1": _Encoding("u1", 1, cv2.COLOR_GRAY2RGB),
    "rgb16": _Encoding("u2", 3, None),
    "bgr16": _Encoding("u2", 3, cv2.COLOR_BGR2RGB),
    "mono16": _Encoding("u2", 1, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": _Encoding("u1", 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": _Encoding("u1", 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": _Encoding("u1", 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": _Encoding("u1", 1, cv2.COLOR_BayerGB2RGB),
    "yuv422": _Encoding("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": _Encoding("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": _Encoding("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": _Encoding("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
}

RAW_ENCODINGS = tuple(_ENCODINGS)
"""The encodings of sensor_msgs/Image that are understood."""


def check_compressed(message: Message) -> tuple[int, int]:
    """Width and height that a CompressedImage's own header declares, without decoding it.

    Raises ImageError for anything but a whole JPEG or PNG of a size within the caps.
    """
    data = payload(message.data)
    if len(data) > MAX_ENCODED_BYTES:
        raise ImageError(f"compressed image of {len(data)} bytes, more than {MAX_ENCODED_BYTES}")
    head = data[:8].tobytes()
    if head[:2] == b"\xff\xd8":
        width, height = _jpeg_size(data)
    elif head == b"\x89PNG\r\n\x1a\n":
        width, height = _png_size(data)
    else:
        raise ImageError(f"the data is neither JPEG nor PNG (its format: {str(message.format)[:40]!r})")
    return _within_caps(width, height)


def check_raw(message: Message) -> tuple[int, int]:
    """Width and height of a sensor_msgs/Image whose fields agree with each other.

    Raises ImageError for an unknown encoding, a size beyond the caps, or data that contradicts height * step.
    """
    encoding = _ENCODINGS.get(message.encoding)
    if encoding is None:
        raise ImageError(f"encoding {str(message.encoding)[:40]!r} is not one of {', '.join(RAW_ENCODINGS)}")
    width, height = _within_caps(int(message.width), int(message.height))
    row = width * encoding.channels * np.dtype(encoding.dtype).itemsize
    if message.step < row:
        raise ImageError(f"step {message.step} is less than the {row} bytes of a row")
    if len(message.data) != height * message.step:
        raise ImageError(f"{len(message.data)} bytes of data, but height * step is {height * message.step}")
    if encoding.to_rgb in (cv2.COLOR_YUV2RGB_UYVY, cv2.COLOR_YUV2RGB_YUY2) and width % 2:
        raise ImageError(f"{message.encoding} needs an even width, not {width}")
    return width, height


def decode_compressed(message: Message) -> Image:
    """(H, W, 3) RGB of a CompressedImage; ImageError when it cannot be decoded."""
    width, height = check_compressed(message)
    # The orientation tag of EXIF is ignored, as calibrations are made on the stored pixels.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(payload(message.data), flags)
    except cv2.error as error:
        raise ImageError(f"cannot be decoded: {error.err}") from None
    if image is None:
        raise ImageError("cannot be decoded")
    if image.shape[:2] != (height, width):
        raise ImageError(f"decoded to {image.shape[1]}x{image.shape[0]}, but declares {width}x{height}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def decode_raw(message: Message) -> Image:
    """(H, W, 3) RGB of a sensor_msgs/Image; ImageError when its fields contradict each other."""
    width, height = check_raw(message)
    encoding = _ENCODINGS[message.encoding]
    dtype = np.dtype(encoding.dtype).newbyteorder(">" if message.is_bigendian else "<")
    rows = payload(message.data).reshape(height, int(message.step))
    pixels = rows[:, : width * encoding.channels * dtype.itemsize]
    pixels = np.ascontiguousarray(pixels).view(dtype).reshape(height, width, encoding.channels)
    if dtype.itemsize == 2:
        pixels = (pixels >> 8).astype(np.uint8)
    if encoding.to_rgb is None:
        return pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint8)
    if encoding.to_rgb != cv2.COLOR_GRAY2RGB and encoding.channels == 1 and min(width, height) < 2:
        raise ImageError(f"a Bayer image of {width}x{height} has no colours")
    return np.asarray(cv2.cvtColor(pixels, encoding.to_rgb), dtype=np.uint8)


def encode_png(image: Image) -> bytes:
    """Lossless PNG bytes of an (H, W, 3) RGB image."""
    done, data = cv2.imencode(
        ".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1]
    )
    if not done:
        raise ImageError("cannot be encoded as PNG")
    return data.tobytes()


def _within_caps(width: int, height: int) -> tuple[int, int]:
    if width < 1 or height < 1:
        raise ImageError(f"image of {width}x{height} pixels")
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageError(f"image of {width}x{height} pixels is beyond the cap of {MAX_PIXELS}")
    return width, height


def _png_size(data: npt.NDArray[np.uint8]) -> tuple[int, int]:
    head = data[:24].tobytes()
    if len(head) < 24 or head[12:16] != b"IHDR":
        raise ImageError("PNG without a header")
    if b"IEND" not in data[-64:].tobytes():
        raise ImageError("PNG is truncated")
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def _jpeg_size(data: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Walk the markers up to the frame header (ITU-T T.81, annex B)."""
    content = data.data
    size: tuple[int, int] | None = None
    position = 2
    while position + 4 <= len(content):
        if content[position] != 0xFF:
            raise ImageError("JPEG with a broken header")
        marker = content[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            position += 2
            continue
        length = (content[position + 2] << 8) | content[position + 3]
        if length < 2 or position + 2 + length > len(content):
            raise ImageError("JPEG is truncated")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if length < 8:
                raise ImageError("JPEG with a broken frame header")
            height, width = struct.unpack(">HH", content[position + 5 : position + 9])
            size = (width, height)
        if marker == 0xDA:  # the scan begins: pixels up to the end marker
            if size is None:
                raise ImageError("JPEG without a frame header")
            if bytes(content[position + 2 + length :]).rfind(b"\xff\xd9") < 0:
                raise ImageError("JPEG is truncated")
            return size
        position += 2 + length
    raise ImageError("JPEG is truncated")
