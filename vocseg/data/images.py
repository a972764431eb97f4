"""Image files, PIL images and arrays: decoded, and converted to RGB.

Neither torch nor Lightning is imported here: an exported network needs none of them.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2  # albumentations' own dependency
import numpy as np
from PIL import Image, UnidentifiedImageError

from vocseg.data.messages import say_once
from vocseg.errors import VocsegError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

ROTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
"""What the values of EXIF's orientation tag ask for; 1 is the image as stored."""
ORIENTATION = 0x0112


@dataclass(frozen=True)
class ImageReader:
    """How image files, PIL images and arrays become RGB uint8 [H, W, 3].

    8-bit images keep their values. Deeper ones are scaled to 0 to 255: integers from the range of their type (16-bit
    data are divided by 256), floats from 0 to 1.

    Args:
        bit_depth: the bits that deep images really use, for example 12 where 16-bit files hold 0 to 4095. Images are
            scaled from 0 to 2**bit_depth - 1, floats too. None: all bits of their type.
        exif_rotation: rotate images as their EXIF orientation says.

    Raises:
        VocsegError: ``bit_depth`` is not 8 to 32.
    """

    bit_depth: int | None = None
    exif_rotation: bool = True
    _said: set[str] = field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.bit_depth is not None and not 8 <= self.bit_depth <= 32:
            raise VocsegError(f"bit_depth must be 8 to 32, or null for all bits of the files; got {self.bit_depth}.")

    def read(self, source: Path | bytes) -> np.ndarray:
        """Reads an image file, given by its path or as its content.

        Raises:
            VocsegError: the file is missing, damaged, not an image, or has values that cannot be scaled.
        """
        stored = decode(source, "image", self.exif_rotation, rgb=True)
        return self._to_rgb(stored.pixels, _name(source, "image"), _value_bits(stored.raw_mode))

    def convert(self, image: Any) -> np.ndarray:
        """Converts an image: a path, the bytes of a file, a PIL image, or an array, [H, W, 3] (RGB) or [H, W] (grey).

        Raises:
            VocsegError: the file cannot be read, or the array has another shape or type.
        """
        if isinstance(image, str | Path):
            return self.read(Path(image))
        if isinstance(image, bytes):
            return self.read(image)
        if isinstance(image, Image.Image):
            orientation = image.getexif().get(ORIENTATION, 1) if self.exif_rotation else 1
            return self._to_rgb(_rotated(_pixels(image, rgb=True), orientation), "PIL image", _value_bits(image.mode))
        array = np.asarray(image)
        known_type = array.dtype == np.uint8 or (array.dtype.kind in "iuf" and array.dtype.itemsize > 1)
        if not known_type or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
            raise VocsegError(
                "An image must be a path, the bytes of a file, a PIL image, or an array [H, W, 3] or [H, W] of uint8, "
                f"uint16 or floats; got {array.dtype} {list(array.shape)}."
            )
        return self._to_rgb(array, f"array of {array.dtype}")

    def _to_rgb(self, pixels: np.ndarray, name: str, bits: int | None = None) -> np.ndarray:
        """Scales to uint8 and repeats or drops channels.

        Args:
            pixels: numbers [H, W] or [H, W, 3 or more].
            name: of the image, for messages.
            bits: the bits that the file stores for each value; None: those of the array's type.
        """
        if pixels.dtype != np.uint8:
            pixels = self._scaled(pixels, name, bits)
        if pixels.ndim == 2:
            return np.repeat(pixels[..., None], 3, axis=2)
        return np.ascontiguousarray(pixels[..., :3])

    def _scaled(self, pixels: np.ndarray, name: str, bits: int | None) -> np.ndarray:
        setting = "--data.bit_depth (in Python bit_depth)"
        low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
        if pixels.dtype.kind == "f":
            top = 1.0 if self.bit_depth is None else 2.0**self.bit_depth - 1
            if not (low >= -0.001 * top and high <= 1.001 * top):  # resampling may overshoot a little; NaN fails too
                raise VocsegError(
                    f"The {name} has floats from {low:g} to {high:g}, and they must lie in 0 to {top:g}. If white is "
                    f"another number, 2**bits - 1, give the bits with {setting}; else store 0 to 1, or 8 or 16 bits."
                )
            return np.rint(pixels.clip(0, top) * (255 / top)).astype(np.uint8)
        if bits is None:
            bits = 8 * pixels.dtype.itemsize - (pixels.dtype.kind == "i")
        depth = self.bit_depth or bits
        if depth > 16 and self.bit_depth is None:
            raise VocsegError(
                f"The {name} has integers of 32 bits or more, from {low} to {high}: which of them is white is not "
                f"known. Give the bits that they use with {setting}, or store 8 or 16 bits."
            )
        if low < 0 or high >= 2**depth:
            raise VocsegError(
                f"The {name} has values from {low} to {high}, and they must lie in 0 to {2**depth - 1} ({depth} bits). "
                f"Store 8 or 16 bits without a sign, or give the bits with {setting}."
            )
        used = max(int(high).bit_length(), 8)
        if self.bit_depth is None and used <= bits - 4 and high > 0:
            say_once(
                self._said,
                f"The {name} has {bits}-bit values, and none is larger than {high}: it is read as almost black. If "
                f"white is {2**used - 1} in these images, set --data.bit_depth {used}.",
            )
        return (pixels >> (depth - 8)).astype(np.uint8)


def read_image(path: Path, bit_depth: int | None = None, exif_rotation: bool = True) -> np.ndarray:
    """Reads an image as RGB uint8 [H, W, 3]; see :class:`ImageReader`.

    Raises:
        VocsegError: the file is missing, damaged, not an image, or has values that cannot be scaled.
    """
    return _image_reader(bit_depth, exif_rotation).read(path)


def as_rgb(image: Any, bit_depth: int | None = None, exif_rotation: bool = True) -> np.ndarray:
    """Converts a path, the bytes of a file, a PIL image or an array to RGB uint8 [H, W, 3]; see :class:`ImageReader`.

    Raises:
        VocsegError: the file cannot be read, or the array has another shape or type.
    """
    return _image_reader(bit_depth, exif_rotation).convert(image)


@lru_cache
def _image_reader(bit_depth: int | None, exif_rotation: bool) -> ImageReader:
    return ImageReader(bit_depth, exif_rotation)  # kept, as it remembers what it has logged


class StoredPixels(NamedTuple):
    """The pixels of an image file.

    Attributes:
        pixels: [H, W] or [H, W, channels], of the file's own type where Pillow or OpenCV can read it: 16-bit colours
            stay 16-bit.
        mode: Pillow's mode of the image, for example ``RGB``.
        raw_mode: Pillow's name for the stored bits, for example ``RGB;16B`` or ``L;4``.
        palette: uint8 [n, 3], the stored palette; empty if there is none.
        format: of the file, for example ``PNG``.
    """

    pixels: np.ndarray
    mode: str
    raw_mode: str
    palette: np.ndarray
    format: str


def decode(source: Path | bytes, kind: str, exif_rotation: bool, rgb: bool = False) -> StoredPixels:
    """Loads an image file completely.

    Args:
        source: path of the file, or its content.
        kind: ``image`` or ``mask``, for error messages.
        exif_rotation: rotate the pixels as the file's EXIF orientation says.
        rgb: convert modes of 8 bits to RGB.

    Raises:
        VocsegError: the file is missing, damaged, or not an image.
    """
    name = _name(source, kind)
    try:
        # given a path, Pillow would map an uncompressed TIFF into memory, and garble it if it has an orientation
        with _opened(source) as file:
            image: Image.Image = Image.open(file)
            if image.format == "PNG":
                image.verify()  # load() skips the checksums of a PNG's pixel data
                file.seek(0)
                image = Image.open(file)
            mode, raw_mode, file_format = image.mode, _raw_mode(image), str(image.format)
            orientation = image.getexif().get(ORIENTATION, 1)
            image.load()
            # Pillow and OpenCV rotate TIFF files themselves
            if file_format == "TIFF" and image.getexif().get(ORIENTATION, 1) != orientation:
                orientation = 1 if exif_rotation else {6: 8, 8: 6}.get(orientation, orientation)
            elif not exif_rotation:
                orientation = 1
            palette = np.array(image.getpalette("RGB") if mode in ("P", "PA") else [], np.uint8).reshape(-1, 3)
            # of colours with 16 bits Pillow keeps only the upper 8
            is_deep = ";16" in raw_mode and mode in ("RGB", "RGBA")
            pixels = _opencv_pixels(source) if is_deep else _pixels(image, rgb)
    except FileNotFoundError as error:
        raise VocsegError(f"The {name} does not exist.") from error
    except UnidentifiedImageError as error:
        tiff = _tiff_pixels(source)
        if tiff is None:
            raise VocsegError(f"The {name} is not an image.") from error
        pixels = tiff
        mode = raw_mode = "L" if pixels.ndim == 2 else "RGB"
        palette, file_format, orientation = np.empty((0, 3), np.uint8), "TIFF", 1
    except Image.DecompressionBombError as error:
        raise VocsegError(f"The {name} is refused: {str(error).rstrip('.')}.") from error
    except (OSError, ValueError, SyntaxError, EOFError, cv2.error) as error:  # what broken files raise
        raise VocsegError(f"The {name} cannot be read: {' '.join(str(error).split())}.") from error
    return StoredPixels(_rotated(pixels, orientation), mode, raw_mode, palette, file_format)


def image_orientation(path: Path) -> int:
    """Reads the EXIF orientation of an image file, 1 to 8; 1 if it has none."""
    with Image.open(path) as image:
        return image.getexif().get(ORIENTATION, 1)


def _name(source: Path | bytes, kind: str) -> str:
    """What messages call a file."""
    return "file" if isinstance(source, bytes) else f"{kind} {source}"


def _opened(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _pixels(image: Image.Image, rgb: bool) -> np.ndarray:
    """The pixels of a PIL image; ``rgb``: those of modes with 8 bits converted to RGB."""
    is_deep = image.mode in ("I", "F") or image.mode.startswith("I;")
    pixels = np.array(image.convert("RGB") if rgb and not is_deep and image.mode != "RGB" else image)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _rotated(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(ROTATIONS[orientation](pixels)) if orientation in ROTATIONS else pixels


def _raw_mode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None)  # only images from a file have it
    arguments = tiles[0][3] if tiles else None
    if isinstance(arguments, tuple):
        arguments = arguments[0] if arguments else None
    return arguments if isinstance(arguments, str) else image.mode


def _value_bits(raw_mode: str) -> int | None:
    """The bits of a stored value; None: those of its array."""
    if raw_mode == "I;12":
        return 12
    return 15 if raw_mode in ("I;16S", "I;16BS") else None  # Pillow reads them into 32 bits


def _opencv_pixels(source: Path | bytes) -> np.ndarray:
    """Pixels as stored: grey, RGB or RGBA of any type.

    Raises:
        ValueError: OpenCV cannot read the file.
    """
    content = np.frombuffer(source, np.uint8) if isinstance(source, bytes) else np.fromfile(source, np.uint8)
    pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("neither Pillow nor OpenCV can read values of this type; store 8 bits")
    if pixels.ndim == 2:
        return pixels
    return np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def _tiff_pixels(source: Path | bytes) -> np.ndarray | None:
    """The pixels of a TIFF file of a type that Pillow does not know, for example float RGB; None if it is none."""
    with _opened(source) as file:
        if file.read(4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return None
    try:
        return _opencv_pixels(source)
    except (ValueError, cv2.error):
        return None
