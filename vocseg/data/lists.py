"""Where samples are: VOC trees, text lists, and the images to predict."""

import glob
from pathlib import Path

from vocseg.data.files import IMAGE_SUFFIXES, Sample
from vocseg.errors import VocsegError, nearest


def find_tree(root: Path, year: str) -> Path | None:
    """Finds the folder that holds ``ImageSets/Segmentation``: a VOC tree below ``root``, or ``root`` itself."""
    for candidate in candidate_trees(root, year):
        if (candidate / "ImageSets" / "Segmentation").is_dir():
            return candidate
    return None


def candidate_trees(root: Path, year: str) -> list[Path]:
    """Lists the folders in which ``find_tree`` looks, in order."""
    return [root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root]


def read_split(tree: Path, split: str) -> list[Sample]:
    """Reads an image-set list.

    Args:
        tree: a folder with ``ImageSets/Segmentation``, ``JPEGImages`` and ``SegmentationClass``.
        split: the name of the list, for example ``train``.

    Returns:
        The samples in the order of the list. Their files are not checked; see ``check_samples``.

    Raises:
        VocsegError: the list does not exist, is empty, or names files outside the tree.
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
            raise VocsegError(f"{path} names {name!r}, which lies outside the tree. vocseg does not read it.")
        suffix = next(
            (suffix for suffix in IMAGE_SUFFIXES if (tree / "JPEGImages" / f"{name}{suffix}").is_file()), ".jpg"
        )
        samples.append(
            Sample(tree / "JPEGImages" / f"{name}{suffix}", tree / "SegmentationClass" / f"{name}.png", name)
        )
    return samples


def find_images(path: str | None) -> list[Path]:
    """Finds the image files that a path, a folder or a glob pattern names, sorted.

    Raises:
        VocsegError: no path is given, or no image is found.
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
