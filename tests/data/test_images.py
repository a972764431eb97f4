"""Images: every mode, depth and orientation becomes RGB of 8 bits."""

import logging
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vocseg.data.datasets import PredictionDataset, SegmentationDataset
from vocseg.data.files import Sample
from vocseg.data.images import ImageReader, as_rgb, read_image
from vocseg.data.transforms import MEAN, STD, Pipeline, normalise
from vocseg.errors import VocsegError


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "LA"])
def test_images_of_every_mode_are_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode).save(path)
    assert read_image(path).shape == (6, 8, 3)
    assert (read_image(path) == 255).all()


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (8, 6, 3)


# deep images --------------------------------------------------------------------------------------------------------

SHADES = np.linspace(0, 1, 48 * 64).reshape(48, 64) ** 2  # brightness from 0 to 1; the mean is 1/3
COLOURED = np.stack([SHADES, SHADES / 2, SHADES / 4], axis=2)
MEAN_GREY, MEAN_COLOURED = 255 / 3, 255 / 3 * 1.75 / 3


def whole(values, top, dtype=np.uint16):
    return np.rint(values * top).astype(dtype)


def cv2_write(path, pixels):
    cv2.imwrite(str(path), pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1]))


def pillow_write(path, pixels):
    Image.fromarray(pixels).save(path)


def with_alpha(pixels):
    return np.dstack([np.full(pixels.shape[:2], 65535, np.uint16), pixels])  # cv2_write turns the order around


DEEP = {
    "16-bit grey PNG": ("x.png", cv2_write, whole(SHADES, 65535), {}),
    "16-bit grey TIFF": ("x.tif", cv2_write, whole(SHADES, 65535), {}),
    "16-bit grey TIFF, not compressed": ("x.tiff", pillow_write, whole(SHADES, 65535), {}),
    "16-bit big-endian TIFF": ("x.tif", pillow_write, whole(SHADES, 65535).astype(">u2"), {}),
    "signed 16-bit TIFF": ("x.tif", cv2_write, whole(SHADES, 32767, np.int16), {}),
    "16-bit RGB PNG": ("x.png", cv2_write, whole(COLOURED, 65535), {}),
    "16-bit RGB TIFF": ("x.tif", cv2_write, whole(COLOURED, 65535), {}),
    "16-bit RGBA PNG": ("x.png", cv2_write, with_alpha(whole(COLOURED, 65535)), {}),
    "12 bits in a PNG": ("x.png", cv2_write, whole(SHADES, 4095), {"bit_depth": 12}),
    "12 bits in a TIFF": ("x.tif", cv2_write, whole(SHADES, 4095), {"bit_depth": 12}),
    "12 bits in an RGB PNG": ("x.png", cv2_write, whole(COLOURED, 4095), {"bit_depth": 12}),
    "10 bits in an RGB TIFF": ("x.tif", cv2_write, whole(COLOURED, 1023), {"bit_depth": 10}),
    "8 bits in a 16-bit PNG": ("x.png", cv2_write, whole(SHADES, 255), {"bit_depth": 8}),
    "14 bits in a 32-bit TIFF": ("x.tif", pillow_write, whole(SHADES, 16383, np.int32), {"bit_depth": 14}),
    "float TIFF": ("x.tif", cv2_write, SHADES.astype(np.float32), {}),
    "float TIFF, not compressed": ("x.tif", pillow_write, SHADES.astype(np.float32), {}),
    "float64 TIFF": ("x.tif", cv2_write, SHADES, {}),
    "float RGB TIFF": ("x.tif", cv2_write, COLOURED.astype(np.float32), {}),
    "float TIFF of 0 to 255": ("x.tif", cv2_write, (SHADES * 255).astype(np.float32), {"bit_depth": 8}),
}


def trained_mean(path, settings):
    """The mean brightness that a network sees, in 0 to 255, in training and in prediction."""
    images = ImageReader(**settings)
    height, width = images.read(path).shape[:2]
    Image.new("L", (width, height)).save(path.with_name("mask.png"))
    pipeline = Pipeline([], 2)
    sample = Sample(path, path.with_name("mask.png"))
    trains = SegmentationDataset([sample], pipeline, evaluates=False, images=images)[0]["image"]
    predicts = PredictionDataset([path], pipeline, images)[0]["image"]
    assert torch.equal(trains, predicts)
    trains = normalise(trains)
    return float(((trains * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255).mean())


@pytest.mark.parametrize("kind", DEEP)
def test_deep_images_keep_their_brightness(tmp_path, kind):
    name, write, pixels, settings = DEEP[kind]
    write(tmp_path / name, pixels)
    expected = pytest.approx(MEAN_GREY if pixels.ndim == 2 else MEAN_COLOURED, abs=0.7)
    image = read_image(tmp_path / name, **settings)
    assert image.shape == (48, 64, 3)
    assert image.mean() == expected
    assert np.array_equal(as_rgb(tmp_path / name, **settings), image)
    assert trained_mean(tmp_path / name, settings) == expected
    if pixels.ndim == 3:
        assert image[..., 0].mean() > image[..., 1].mean() > image[..., 2].mean()


@pytest.mark.parametrize("kind", DEEP)
def test_the_bytes_of_a_file_are_read_as_the_file(tmp_path, kind):
    name, write, pixels, settings = DEEP[kind]
    write(tmp_path / name, pixels)
    content = (tmp_path / name).read_bytes()
    assert np.array_equal(as_rgb(content, **settings), read_image(tmp_path / name, **settings))
    with pytest.raises(VocsegError, match=r"^The file (cannot be read|is not an image)"):
        as_rgb(content[: len(content) // 2], **settings)


@pytest.mark.parametrize("kind", [kind for kind in DEEP if "RGBA" not in kind])
def test_arrays_are_read_as_their_files(tmp_path, kind):
    name, write, pixels, settings = DEEP[kind]
    write(tmp_path / name, pixels)
    assert np.array_equal(as_rgb(pixels, **settings), read_image(tmp_path / name, **settings))


def test_pil_images_are_read_as_their_files(tmp_path):
    pillow_write(tmp_path / "x.tif", whole(SHADES, 65535))
    with Image.open(tmp_path / "x.tif") as image:
        assert np.array_equal(as_rgb(image), read_image(tmp_path / "x.tif"))
    with pytest.raises(VocsegError, match="PIL image has floats from 0 to 2"):
        as_rgb(Image.fromarray(SHADES.astype(np.float32) * 2))


REFUSED = {
    "floats above 1": (SHADES.astype(np.float32) * 255, {}, "floats from 0 to 255, .* 0 to 1.*bit_depth"),
    "negative floats": (SHADES.astype(np.float32) - 0.5, {}, "floats from -0.5 to 0.5"),
    "not a number": (np.full((4, 4), np.nan, np.float32), {}, "floats from nan"),
    "negative integers": (whole(SHADES, 9000, np.int16) - np.int16(1000), {}, "from -1000 to 8000"),
    "32-bit integers": (whole(SHADES, 255, np.int32), {}, "32 bits or more, from 0 to 255.*bit_depth"),
    "more than the bit depth": (whole(SHADES, 65535), {"bit_depth": 12}, r"must lie in 0 to 4095 \(12 bits\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_without_a_brightness_are_refused(tmp_path, case):
    pixels, settings, message = REFUSED[case]
    cv2_write(tmp_path / "x.tif", pixels)
    with pytest.raises(VocsegError, match=message) as error:
        read_image(tmp_path / "x.tif", **settings)
    assert str(tmp_path / "x.tif") in str(error.value)
    with pytest.raises(VocsegError, match=message):
        as_rgb(pixels, **settings)
    unreadable = PredictionDataset([tmp_path / "x.tif"], Pipeline([], 2), ImageReader(**settings))[0]["unreadable"]
    assert unreadable == str(error.value)


def test_almost_black_images_are_reported_once_with_the_setting(tmp_path, caplog):
    for name in ("a.png", "b.png"):
        cv2_write(tmp_path / name, whole(SHADES, 4000))
    images = ImageReader()
    with caplog.at_level(logging.INFO):
        for name in ("a.png", "b.png"):
            images.read(tmp_path / name)
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.search(r"a\.png has 16-bit values, and none is larger than 4000.*--data\.bit_depth 12", line)


def test_bit_depth_is_checked():
    with pytest.raises(VocsegError, match="bit_depth must be 8 to 32"):
        ImageReader(bit_depth=4)


@pytest.mark.parametrize("array", [np.zeros((4, 4), bool), np.zeros((4, 4), np.int8), np.zeros((4, 4, 4), np.uint8)])
def test_other_arrays_are_refused(array):
    with pytest.raises(VocsegError, match="An image must be"):
        as_rgb(array)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "grey16.tif", "rgb16.png"])
def test_every_orientation_is_applied_or_not(tmp_path, name, orientation):
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:8, :8] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[274] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    if name == "rgb16.png":
        cv2_write(tmp_path / name, pixels.astype(np.uint16) * 257)
        insert_exif(tmp_path / name, exif)
    else:
        deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        (deep if name == "grey16.tif" else image).save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / "x.png") as file:
        upright = np.array(ImageOps.exif_transpose(file))
    for exif_rotation, expected in ((True, upright), (False, pixels)):
        read = read_image(tmp_path / name, exif_rotation=exif_rotation)
        assert read.shape == expected.shape
        assert (read // 128 == expected // 128).all()


def insert_exif(path, exif):
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    png = path.read_bytes()
    path.write_bytes(png[:33] + chunk + png[33:])
