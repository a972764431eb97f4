"""Files of a VOC tree: where they are, and reading them without surprises."""

import glob
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vocseg.data.labels import VOID
from vocseg.errors import VocsegError, nearest

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Sample:
    """One photograph and its mask on disk."""

    image: Path
    mask: Path


def find_tree(root: Path, year: str) -> Path | None:
    """The folder that holds ``JPEGImages`` and its siblings: VOC's own layout below ``root``, or ``root`` itself."""
    for candidate in candidate_trees(root, year):
        if (candidate / "ImageSets" / "Segmentation").is_dir():
            return candidate
    return None


def candidate_trees(root: Path, year: str) -> list[Path]:
    """Where :func:`find_tree` looks, in order."""
    return [root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root]


def read_split(tree: Path, split: str) -> list[Sample]:
    """Reads an image-set list.

    Args:
        tree: a folder with ``ImageSets/Segmentation``, ``JPEGImages`` and ``SegmentationClass``.
        split: the list's name, ``train`` for one.

    Returns:
        The samples in the list's order. That their files are sound is for :func:`check_samples` to say.

    Raises:
        VocsegError: no such list, an empty one, or one that names files outside the tree.
    """
    lists = tree / "ImageSets" / "Segmentation"
    path = lists / f"{split}.txt"
    if not path.is_file():
        known = sorted(file.stem for file in lists.glob("*.txt"))
        raise VocsegError(
            f"There is no split {split!r} in {lists}: it has {', '.join(known) or 'no lists'}." + nearest(split, known)
        )
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise VocsegError(f"The split {split!r} is empty: {path} lists no image.")
    samples = []
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise VocsegError(f"{path} names {name!r}, which lies outside the tree: not read.")
        suffix = next(
            (suffix for suffix in IMAGE_SUFFIXES if (tree / "JPEGImages" / f"{name}{suffix}").is_file()), ".jpg"
        )
        samples.append(Sample(tree / "JPEGImages" / f"{name}{suffix}", tree / "SegmentationClass" / f"{name}.png"))
    return samples


def read_image(path: Path) -> np.ndarray:
    """Reads a photograph as RGB uint8 [H, W, 3], turned as its EXIF data say.

    Raises:
        VocsegError: it is missing, truncated, or no image.
    """
    return np.array(_open(path, "image", lambda image: ImageOps.exif_transpose(image).convert("RGB")))


def as_rgb(image: Any) -> np.ndarray:
    """A photograph given as a path, a PIL image or an array, as RGB uint8 [H, W, 3].

    Raises:
        VocsegError: it cannot be read, or is an array of another shape or type.
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
    """Reads a mask as labels, uint8 [H, W]: the indices of a palette PNG, never its colours.

    Raises:
        VocsegError: it is missing, truncated, no image, or holds colours instead of labels.
    """
    mask = _open(path, "mask", lambda image: image)
    if mask.mode not in ("P", "L"):
        raise VocsegError(
            f"The mask {path} has mode {mask.mode}: a mask must be a palette (P) or grey (L) PNG of labels."
        )
    return np.array(mask)


def read_sample(sample: Sample, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads a photograph and its mask, and checks that they belong together.

    Returns:
        RGB uint8 [H, W, 3] and labels uint8 [H, W] with values 0..num_classes-1 and 255.

    Raises:
        VocsegError: as :func:`read_image` and :func:`read_mask`; unlike sizes; a label that is no class.
    """
    image, mask = read_image(sample.image), read_mask(sample.mask)
    if image.shape[:2] != mask.shape:
        raise VocsegError(
            f"Image and mask differ in size: {sample.image} is {image.shape[1]}x{image.shape[0]}, "
            f"{sample.mask} is {mask.shape[1]}x{mask.shape[0]}."
        )
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    strange = [int(label) for label in present if label >= num_classes and label != VOID]
    if strange:
        raise VocsegError(
            f"The mask {sample.mask} has label {strange[0]}, but there are {num_classes} classes "
            f"(0 to {num_classes - 1}, and {VOID} for void). Masks of other classes need --data.class_names."
        )
    return image, mask


def check_samples(samples: Sequence[Sample], num_classes: int, *, keep: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reads every sample once, so that a broken file shows before the first step and not after an hour.

    Args:
        samples: what to read.
        num_classes: how many labels are classes.
        keep: return what was read (else an empty list).

    Raises:
        VocsegError: naming the broken files, at most five of them.
    """

    def attempt(sample: Sample) -> tuple[np.ndarray, np.ndarray] | VocsegError | None:
        try:
            arrays = read_sample(sample, num_classes)
        except VocsegError as error:
            return error
        return arrays if keep else None

    with ThreadPoolExecutor() as pool:  # decoding runs outside the interpreter lock
        outcomes = list(pool.map(attempt, samples))
    errors = [str(outcome) for outcome in outcomes if isinstance(outcome, VocsegError)]
    if errors:
        more = f"\n... and {len(errors) - 5} more broken files" if len(errors) > 5 else ""
        raise VocsegError("\n".join(errors[:5]) + more)
    return outcomes if keep else []


def count_pixels(samples: Sequence[Sample], masks: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Counts the labels of all masks' pixels.

    Args:
        samples: whose masks are read.
        masks: the masks themselves where they are at hand; else empty.

    Returns:
        int64 [256], pixels by label.
    """

    def count(mask: np.ndarray) -> np.ndarray:
        return np.bincount(mask.ravel(), minlength=256)

    if masks:
        return sum(count(mask) for mask in masks)
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(lambda sample: count(read_mask(sample.mask)), samples))


def find_images(path: str | None) -> list[Path]:
    """The image files that a path, folder or glob names, sorted.

    Raises:
        VocsegError: there are none.
    """
    if path is None:
        raise VocsegError("Prediction needs images: --data.predict_path with an image, a folder or a glob.")
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        found = [file for file in sorted(given.iterdir()) if file.suffix.lower() in IMAGE_SUFFIXES]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(given), recursive=True)) if Path(name).is_file()]
    if not found:
        what = "holds no image" if given.is_dir() else "does not exist"
        raise VocsegError(f"Nothing to predict: {given} {what} (looked for {', '.join(IMAGE_SUFFIXES)}).")
    return found


def _open(path: Path, kind: str, finish) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                image.verify()  # loading alone would not notice damaged pixels: their check sums are skipped
        with Image.open(path) as image:
            image.load()
            return finish(image)
    except FileNotFoundError as error:
        raise VocsegError(f"The {kind} {path} does not exist.") from error
    except UnidentifiedImageError as error:
        raise VocsegError(f"The {kind} {path} is not an image.") from error
    except Image.DecompressionBombError as error:
        raise VocsegError(f"The {kind} {path} is refused: {error}.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # what Pillow raises for broken files
        raise VocsegError(f"The {kind} {path} cannot be read: {error}.") from error
