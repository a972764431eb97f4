"""Label maps drawn over photographs: colours, contours and class names."""

import colorsys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2  # albumentations' own dependency
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vocseg.data.labels import VOC_PALETTE
from vocseg.errors import VocsegError

_LARGE = 0.01
"""Share of the image from which a region gets its class's name."""
_PLACING_SIDE = 512
"""Longer side, in pixels, of the label map in which places for names are searched."""


def _bright(colour: Sequence[int]) -> list[int]:
    """A colour of about the same hue that is seen on a dark photograph; a darker colour stays the darker one."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(int(part) / 255 for part in colour))
    rgb = np.array(colorsys.hls_to_rgb(hue, 0.22 + 0.85 * lightness, saturation)) * 255
    luma = float(rgb @ (0.299, 0.587, 0.114))
    return (rgb + (255 - rgb) * max(0.0, (80 - luma) / (255 - luma))).round().astype(int).tolist()


OVERLAY_COLOURS = np.array([_bright(colour) for colour in VOC_PALETTE], dtype=np.uint8)
"""uint8 [256, 3]: RGB of each label in an overlay: VOC's colours, made brighter."""


def overlay(image: Any, labels: Any, opacity: float = 0.4, class_names: Sequence[str] = ()) -> np.ndarray:
    """Draws labels over an image: a light fill and a contour in ``OVERLAY_COLOURS``, and names on the larger regions.

    Pixels of the background (label 0) are unchanged. Contours and names lie inside of their regions, and grow with the
    image.

    Args:
        image: RGB uint8 [H, W, 3].
        labels: label map, integers [H, W] from 0 to 255.
        opacity: of the fill, from 0 (contours only) to 1.
        class_names: name of each label from 0 on; empty: no names are drawn.

    Returns:
        RGB uint8 [H, W, 3].

    Raises:
        VocsegError: the arrays have other shapes or types, or the opacity is not in 0 to 1.
    """
    image, labels = _checked(image, labels)
    if not 0 <= opacity <= 1:
        raise VocsegError(f"The opacity of an overlay must be from 0 to 1; got {opacity}.")
    if not labels.any():  # also an image without pixels, which OpenCV refuses
        return image.copy()
    colours = cv2.applyColorMap(labels, OVERLAY_COLOURS[:, None])
    mixed = cv2.addWeighted(image, 1 - opacity, colours, opacity, 0)
    thickness = max(1, round(min(labels.shape) / 200))
    square = np.ones((2 * thickness + 1, 2 * thickness + 1), np.uint8)
    cv2.copyTo(colours, cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, square), mixed)
    cv2.copyTo(image, (labels == 0).view(np.uint8), mixed)
    for name in _placed_names(labels, class_names):
        _draw_name(mixed, labels, name)
    return mixed


class _Name(NamedTuple):
    text: str
    label: int
    centre: tuple[int, int]  # x, y
    size: tuple[int, int]  # of the text with a margin
    font: Any
    stroke: int


def _checked(image: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    image, labels = np.asarray(image), np.asarray(labels)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise VocsegError(f"An overlay needs an RGB image uint8 [H, W, 3]; got {image.dtype} {list(image.shape)}.")
    if labels.dtype.kind not in "iub" or labels.shape != image.shape[:2]:
        raise VocsegError(
            f"An overlay needs integer labels of the image's size, {list(image.shape[:2])}; got {labels.dtype} "
            f"{list(labels.shape)}."
        )
    if labels.dtype != np.uint8 and labels.size and not (labels.min() >= 0 and labels.max() <= 255):
        raise VocsegError(f"The labels of an overlay must be from 0 to 255; got {labels.min()} to {labels.max()}.")
    return np.ascontiguousarray(image), np.ascontiguousarray(labels, dtype=np.uint8)


def _placed_names(labels: np.ndarray, class_names: Sequence[str]) -> Iterator[_Name]:
    """Places the name of each large region's class where it lies inside of the region, farthest from its border."""
    step = -(-max(labels.shape) // _PLACING_SIDE)
    small = np.ascontiguousarray(labels[::step, ::step])
    usual = max(12, round(min(labels.shape) / 20))
    for label in [label for label in np.unique(small).tolist() if 0 < label < len(class_names)]:
        count, regions, stats, _ = cv2.connectedComponentsWithStats((small == label).astype(np.uint8), connectivity=4)
        for number in range(1, count):
            if stats[number, cv2.CC_STAT_AREA] < _LARGE * small.size:
                continue
            region = np.pad((regions == number).astype(np.uint8), 1)  # the border of the image is one of the region
            distance = cv2.distanceTransform(region, cv2.DIST_L2, 3)
            for text_size in (usual, max(12, round(0.75 * usual)), max(12, round(0.55 * usual))):
                font, stroke = ImageFont.load_default(text_size), max(1, text_size // 9)
                left, top, right, bottom = font.getbbox(class_names[label], stroke_width=stroke)
                size = int(right - left) + 2 * stroke, int(bottom - top) + 2 * stroke
                box = np.ones((-(-size[1] // step), -(-size[0] // step)), np.uint8)
                fits = cv2.erode(region, box, borderType=cv2.BORDER_CONSTANT, borderValue=0)
                if fits.any():
                    y, x = np.unravel_index(int((distance * fits).argmax()), fits.shape)
                    centre = int(x - 1) * step, int(y - 1) * step
                    yield _Name(class_names[label], label, centre, size, font, stroke)
                    break


def _draw_name(image: np.ndarray, labels: np.ndarray, name: _Name) -> None:
    """Draws a name in white with a dark border, on pixels of its class only."""
    left, top = (max(0, middle - side // 2) for middle, side in zip(name.centre, name.size, strict=True))
    part = np.s_[top : top + name.size[1], left : left + name.size[0]]
    patch = Image.fromarray(image[part])
    draw = ImageDraw.Draw(patch)
    middle = (name.centre[0] - left, name.centre[1] - top)
    draw.text(middle, name.text, "white", name.font, "mm", stroke_width=name.stroke, stroke_fill=(20, 20, 20))
    np.copyto(image[part], np.array(patch), where=(labels[part] == name.label)[..., None])
