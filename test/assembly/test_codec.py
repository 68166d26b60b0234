"""Images come out of messages as RGB, whatever they are packed in; what lies about itself is refused unread."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from driving import compressed, jpeg, picture, raw
from PIL import Image

from gdfusion_ros.assembly.codec import (
    ImageError,
    check_compressed,
    check_raw,
    decode_compressed,
    decode_raw,
    encode_png,
)


def test_a_jpeg_decodes_to_the_values_that_pil_gives():
    data = jpeg(picture(1, (90, 160)))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_compressed(compressed(1, data)), expected)


def test_real_jpegs_decode_to_the_values_that_pil_gives(shared_dir):
    files = sorted((shared_dir / "data" / "nuscenes_scene0103" / "images").glob("0_*.jpg"))
    assert len(files) == 6
    for file in files:
        expected = np.asarray(Image.open(file).convert("RGB"))
        assert np.array_equal(decode_compressed(compressed(1, file.read_bytes())), expected)


def test_a_png_comes_back_without_loss():
    image = picture(2)
    assert np.array_equal(decode_compressed(compressed(1, encode_png(image), kind="png")), image)


def test_a_grey_jpeg_becomes_rgb():
    data = cv2.imencode(".jpg", picture(3)[:, :, 0])[1].tobytes()
    assert decode_compressed(compressed(1, data)).shape == (96, 160, 3)


def test_a_jpegs_orientation_tag_does_not_turn_it():
    image = Image.fromarray(picture(4))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    image.save(data, "jpeg", exif=exif)
    assert decode_compressed(compressed(1, data.getvalue())).shape == (96, 160, 3)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", lambda rgb: rgb),
        ("bgr8", lambda rgb: rgb[:, :, ::-1]),
        ("rgba8", lambda rgb: np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)])),
        ("bgra8", lambda rgb: np.dstack([rgb[:, :, ::-1], np.full(rgb.shape[:2], 7, np.uint8)])),
    ],
)
def test_raw_encodings_become_rgb(encoding, pixels):
    rgb = picture(5)
    assert np.array_equal(decode_raw(raw(1, pixels(rgb), encoding)), rgb)


def test_a_grey_image_has_three_equal_channels():
    grey = picture(6)[:, :, 0]
    assert np.array_equal(decode_raw(raw(1, grey, "mono8")), np.repeat(grey[:, :, None], 3, axis=2))


def test_the_end_of_each_row_is_skipped():
    rgb = picture(7, (10, 7))
    padded = np.zeros((10, 32), np.uint8)
    padded[:, :21] = rgb.reshape(10, 21)
    message = raw(1, rgb, "rgb8")
    message.step, message.data = 32, padded.ravel()
    assert np.array_equal(decode_raw(message), rgb)


@pytest.mark.parametrize("bigendian", [False, True])
def test_sixteen_bits_are_read_in_the_order_that_the_message_names(bigendian):
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    data = values.astype(">u2" if bigendian else "<u2")
    decoded = decode_raw(raw(1, data, "mono16", bigendian=bigendian))
    assert np.array_equal(decoded[:, :, 0], values >> 8)


@pytest.mark.parametrize(
    ("encoding", "first_pixel"),
    [("bayer_rggb8", 0), ("bayer_bggr8", 2), ("bayer_grbg8", 1), ("bayer_gbrg8", 1)],
)
def test_a_bayer_mosaic_of_one_colour_is_that_colour(encoding, first_pixel):
    pattern = {"r": 0, "g": 1, "b": 2}
    names = encoding.removeprefix("bayer_").removesuffix("8")
    rgb = (200, 100, 50)
    mosaic = np.zeros((16, 16), np.uint8)
    for i, name in enumerate(names):
        mosaic[i // 2 :: 2, i % 2 :: 2] = rgb[pattern[name]]
    assert mosaic[0, 0] == rgb[first_pixel]
    decoded = decode_raw(raw(1, mosaic, encoding))
    assert decoded[4:12, 4:12].reshape(-1, 3).std(axis=0).max() == 0
    assert decoded[8, 8].tolist() == list(rgb)


def test_yuv422_becomes_rgb():
    uyvy = np.zeros((4, 8, 2), np.uint8)
    uyvy[:, :, 0], uyvy[:, :, 1] = 128, 200
    decoded = decode_raw(raw(1, uyvy, "uyvy"))
    assert np.ptp(decoded[0, 0]) == 0
    with pytest.raises(ImageError, match="even width"):
        check_raw(raw(1, uyvy[:, :7], "uyvy"))


def test_an_unknown_encoding_is_refused_by_its_name():
    with pytest.raises(ImageError, match="32FC1"):
        check_raw(raw(1, picture(8), "32FC1"))


def test_an_unknown_format_is_refused_by_its_name():
    with pytest.raises(ImageError, match="webp"):
        check_compressed(compressed(1, b"RIFF0000WEBPVP8 ", kind="webp"))


def test_data_that_contradicts_height_and_step_is_refused():
    message = raw(1, picture(9), "rgb8")
    message.height += 1
    with pytest.raises(ImageError, match="height \\* step"):
        check_raw(message)
    message = raw(1, picture(9), "rgb8")
    message.step = 10
    with pytest.raises(ImageError, match="step 10"):
        check_raw(message)


def test_a_declared_size_beyond_the_cap_is_refused_before_decoding():
    bomb = bytearray(encode_png(picture(10)))
    bomb[16:24] = struct.pack(">II", 60000, 60000)
    with pytest.raises(ImageError, match="60000x60000"):
        check_compressed(compressed(1, bytes(bomb)))
    data = bytearray(jpeg(picture(10)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(ImageError, match="65000x65000"):
        check_compressed(compressed(1, bytes(data)))


@pytest.mark.parametrize("encode", [jpeg, encode_png])
def test_a_truncated_image_is_refused_wherever_it_was_cut(encode):
    data = encode(picture(11))
    for length in (0, 1, 2, 3, 10, 24, len(data) // 2, len(data) - 12):
        with pytest.raises(ImageError):
            decode_compressed(compressed(1, data[:length]))


def test_bytes_after_a_jpegs_end_do_no_harm():
    data = jpeg(picture(12))
    assert np.array_equal(
        decode_compressed(compressed(1, data + b"\0" * 100)), decode_compressed(compressed(1, data))
    )
