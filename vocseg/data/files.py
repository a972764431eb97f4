"""Image and mask files: reading and checking them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vocseg.data.labels import VOID
from vocseg.errors import VocsegError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


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


def read_image(path: Path) -> np.ndarray:
    """Reads an image as RGB uint8 [H, W, 3], rotated as its EXIF orientation says.

    Raises:
        VocsegError: the file is missing, damaged, or not an image.
    """
    return np.array(_decode(path, "image", lambda image: ImageOps.exif_transpose(image).convert("RGB")))


def as_rgb(image: Any) -> np.ndarray:
    """Converts an image given as a path, a PIL image or an array to RGB uint8 [H, W, 3].

    Raises:
        VocsegError: the file cannot be read, or the array has another shape or type.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    array = np.asarray(image)
    if array.dtype == np.uint8 and array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return array
    raise VocsegError(
        f"An image must be a path, a PIL image, or an array of uint8 [H, W, 3] or [H, W]; got {array.dtype} "
        f"{list(array.shape)}."
    )


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask as labels, uint8 [H, W]: the palette indices of a palette PNG, not its colours.

    Raises:
        VocsegError: the file is missing, damaged, not an image, or holds colours instead of labels.
    """
    mask = _decode(path, "mask", lambda image: image)
    if mask.mode not in ("P", "L"):
        raise VocsegError(
            f"The mask {path} has mode {mask.mode}: a mask must be a palette (P) or grey (L) PNG of labels."
        )
    return np.array(mask)


def read_sample(sample: Sample, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image and its mask, and checks that their sizes agree and that every label is known.

    Returns:
        RGB uint8 [H, W, 3] and labels uint8 [H, W] with values 0 to num_classes - 1 and 255.

    Raises:
        VocsegError: a file cannot be read (see ``read_image`` and ``read_mask``), the sizes differ, or a label is
            neither a class nor void.
    """
    image, mask = read_image(sample.image), read_mask(sample.mask)
    if image.shape[:2] != mask.shape:
        raise VocsegError(
            f"Image and mask differ in size: {sample.image} is {image.shape[1]}x{image.shape[0]}, "
            f"{sample.mask} is {mask.shape[1]}x{mask.shape[0]}."
        )
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    unexpected = [int(label) for label in present if label >= num_classes and label != VOID]
    if unexpected:
        raise VocsegError(
            f"The mask {sample.mask} has label {unexpected[0]}, but there are {num_classes} classes "
            f"(0 to {num_classes - 1}, and {VOID} for void). If the masks have other classes, name them with "
            "--data.class_names."
        )
    return image, mask


def check_samples(samples: Sequence[Sample], num_classes: int, *, keep: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reads every sample once, so that a broken file is reported before training starts.

    Args:
        samples: the files to read.
        num_classes: the number of classes; larger labels except 255 are errors.
        keep: return the decoded samples.

    Returns:
        The image and mask of each sample, as ``read_sample`` gives them; an empty list if ``keep`` is False.

    Raises:
        VocsegError: files are broken; the message names the first five and counts the others.
    """

    def read(sample: Sample) -> tuple[np.ndarray, np.ndarray] | VocsegError | None:
        try:
            arrays = read_sample(sample, num_classes)
        except VocsegError as error:
            return error
        return arrays if keep else None

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        outcomes = list(pool.map(read, samples))
    errors = [str(outcome) for outcome in outcomes if isinstance(outcome, VocsegError)]
    if errors:
        more = f"\n... and {len(errors) - 5} more broken files" if len(errors) > 5 else ""
        raise VocsegError("\n".join(errors[:5]) + more)
    return [outcome for outcome in outcomes if isinstance(outcome, tuple)]


def count_pixels(samples: Sequence[Sample], masks: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Counts the pixels of each label over all masks.

    Args:
        samples: the samples whose masks are read.
        masks: the decoded masks of all samples if they are in memory, else empty.

    Returns:
        int64 [256], pixels by label.
    """

    def count(mask: np.ndarray) -> np.ndarray:
        return np.bincount(mask.ravel(), minlength=256)

    total = np.zeros(256, dtype=np.int64)
    if masks:
        for mask in masks:
            total += count(mask)
        return total
    with ThreadPoolExecutor() as pool:
        for counts in pool.map(lambda sample: count(read_mask(sample.mask)), samples):
            total += counts
    return total


def _decode(path: Path, kind: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Loads an image file completely and converts it; ``kind`` names the file in error messages."""
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                image.verify()  # load() skips the checksums of a PNG's pixel data
        with Image.open(path) as image:
            image.load()
            return convert(image)
    except FileNotFoundError as error:
        raise VocsegError(f"The {kind} {path} does not exist.") from error
    except UnidentifiedImageError as error:
        raise VocsegError(f"The {kind} {path} is not an image.") from error
    except Image.DecompressionBombError as error:
        raise VocsegError(f"The {kind} {path} is refused: {error}.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # what Pillow raises for broken files
        raise VocsegError(f"The {kind} {path} cannot be read: {error}.") from error
