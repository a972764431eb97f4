"""Samples, an image file and its mask: reading and checking them.

Neither torch nor Lightning is imported here: an exported network needs none of them.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vocseg.data.images import ImageReader, decode, image_orientation
from vocseg.errors import VocsegError

if TYPE_CHECKING:
    from vocseg.data.masks import MaskReader


@dataclass(frozen=True)
class Sample:
    """The paths of an image and of its mask.

    Attributes:
        image: of the image.
        mask: of the mask.
        name: of the sample in its list, without a file ending, for example ``one/0004``: what is written about the
            sample gets this name. Empty: the name of the image file.
    """

    image: Path
    mask: Path
    name: str = ""


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask that vocseg or VOC wrote, as labels, uint8 [H, W]: the values of a palette or grey PNG.

    The masks of other data are read with :class:`vocseg.data.masks.MaskReader`.

    Raises:
        VocsegError: the file is missing, damaged, not an image, or holds colours instead of labels.
    """
    stored = decode(path, "mask", exif_rotation=False)
    if stored.mode not in ("P", "L") or stored.pixels.dtype != np.uint8:
        raise VocsegError(
            f"The mask {path} has mode {stored.mode}: a mask must be a palette (P) or grey (L) PNG of labels."
        )
    return stored.pixels


def read_sample(
    sample: Sample, masks: "MaskReader", images: ImageReader | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image and its mask, and checks that their sizes agree and that every label is known.

    Args:
        sample: the files.
        masks: reads the mask.
        images: reads the image; None: ``ImageReader()``.

    Returns:
        RGB uint8 [H, W, 3] and labels uint8 [H, W] with values 0 to C - 1 and 255.

    Raises:
        VocsegError: a file cannot be read, or the sizes differ.
    """
    images = images or ImageReader()
    image, mask = images.read(sample.image), masks.read(sample.mask)
    _check_sizes(sample, image, mask, images)
    return image, mask


@dataclass(frozen=True)
class CheckedSample:
    """What :func:`check_samples` found in a sample's files.

    Attributes:
        size: height and width in pixels.
        labels: the distinct labels of the mask, ascending; 255 is void.
        pixels: how many pixels have each of these labels.
        read_by: what the mask was read by: ``value`` (of grey or palette pixels) or ``colour``.
        values: the distinct values in the mask file, int or (red, green, blue).
        arrays: the decoded image and mask, or None if they were not kept.
    """

    size: tuple[int, int]
    labels: tuple[int, ...]
    pixels: tuple[int, ...]
    read_by: str
    values: tuple[Any, ...]
    arrays: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def counts(self) -> np.ndarray:
        """Pixels by label, int64 [256]."""
        counts = np.zeros(256, np.int64)
        counts[list(self.labels)] = self.pixels
        return counts


def examine_samples(
    samples: Sequence[Sample], masks: "MaskReader", images: ImageReader | None = None, *, keep: bool = False
) -> list[CheckedSample | VocsegError]:
    """Reads every sample once, several at a time.

    Args:
        samples: the files to read.
        masks: reads the masks.
        images: reads the images; None: ``ImageReader()``.
        keep: return the decoded samples too.

    Returns:
        For each sample what was found, or why it cannot be read.
    """
    reader = images or ImageReader()

    def examine(sample: Sample) -> CheckedSample | VocsegError:
        try:
            image, mask = reader.read(sample.image), masks.examine(sample.mask)
            _check_sizes(sample, image, mask.labels, reader)
        except VocsegError as error:
            return error
        counts = np.bincount(mask.labels.ravel(), minlength=256)
        height, width = mask.labels.shape
        labels = np.flatnonzero(counts)
        arrays = (image, mask.labels) if keep else None
        return CheckedSample(
            (height, width), tuple(labels.tolist()), tuple(counts[labels].tolist()), mask.read_by, mask.values, arrays
        )

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        return list(pool.map(examine, samples))


def check_samples(
    samples: Sequence[Sample], masks: "MaskReader", images: ImageReader | None = None, *, keep: bool = False
) -> list[CheckedSample]:
    """Reads every sample once, so that a broken file is reported before training starts.

    The arguments are those of :func:`examine_samples`.

    Returns:
        What was found in each sample.

    Raises:
        VocsegError: files are broken; the message names the first five and counts the others.
    """
    return raise_broken(examine_samples(samples, masks, images, keep=keep))


def raise_broken(outcomes: Iterable[CheckedSample | VocsegError]) -> list[CheckedSample]:
    """Returns the outcomes of :func:`examine_samples` if none is an error.

    Raises:
        VocsegError: files are broken; the message names the first five and counts the others.
    """
    checked, errors = [], []
    for outcome in outcomes:
        if isinstance(outcome, VocsegError):
            errors.append(str(outcome))
        else:
            checked.append(outcome)
    if errors:
        more = f"\n... and {len(errors) - 5} more broken files" if len(errors) > 5 else ""
        raise VocsegError("\n".join(errors[:5]) + more)
    return checked


def _check_sizes(sample: Sample, image: np.ndarray, mask: np.ndarray, images: ImageReader) -> None:
    if image.shape[:2] == mask.shape:
        return
    message = (
        f"Image and mask differ in size: {sample.image} is {image.shape[1]}x{image.shape[0]}, "
        f"{sample.mask} is {mask.shape[1]}x{mask.shape[0]}."
    )
    if image.shape[:2] == mask.shape[::-1] and image_orientation(sample.image) in (5, 6, 7, 8):
        if images.exif_rotation:
            message += (
                " The image is rotated as its EXIF orientation says, the mask is not. If the masks were drawn on the "
                "pixels as stored, read the images so too: --data.exif_rotation false"
            )
        else:
            message += (
                " The mask is rotated as the image's EXIF orientation says, and exif_rotation is false. Read the "
                "images rotated: --data.exif_rotation true"
            )
    raise VocsegError(message)
