"""Decoding an image: now, on demand, or in a pool of threads, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gdfusion_ros.assembly.codec import decode_compressed, decode_raw
from gdfusion_ros.assembly.messages import Message, payload
from gdfusion_ros.frame import Image, ImageTransform


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image, perhaps resized and cropped already."""

    image: Image
    image_transform: ImageTransform = field(default_factory=ImageTransform)
    encoded: bytes | None = None
    missing: bool = False


class Loading(Protocol):
    """A decoding under way, as concurrent.futures.Future."""

    def result(self) -> LoadedImage:
        """The image; raises ImageError when it cannot be decoded."""
        ...


class Loader(Protocol):
    """Decodes an image message of a camera; ``raw`` tells Image from CompressedImage."""

    def __call__(self, camera: str, message: Message, raw: bool, /) -> LoadedImage:
        """Raises ImageError when it cannot be decoded."""
        ...


def load_image(camera: str, message: Message, raw: bool) -> LoadedImage:
    """The image as the camera gave it, with the bytes it was decoded from."""
    if raw:
        return LoadedImage(decode_raw(message))
    return LoadedImage(decode_compressed(message), encoded=payload(message.data).tobytes())


class LoadOnDemand:
    """Decodes when the result is asked for: what an offline run wants, which never decodes an image in vain."""

    def __init__(self, work: Callable[[], LoadedImage]) -> None:
        self._work = work

    def result(self) -> LoadedImage:
        """The image; raises ImageError when it cannot be decoded."""
        return self._work()
