"""The files of a prediction: palette PNG masks, overlays, probabilities, and pages that show them all."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2  # albumentations' own dependency
import numpy as np
from PIL import Image

from vocseg.data.images import ImageReader
from vocseg.data.lists import expand
from vocseg.overlays import overlay
from vocseg.plots import coloured
from vocseg.prediction_page import Shown, page_paths, thumbnail_paths, write_pages
from vocseg.saving import OwnedFolder, unique_names, write_mask

THUMBNAIL = (480, 360)
"""Largest width and height of a thumbnail in pixels."""
VISIBLE = 0.002
"""Share of an image's pixels from which the page names a class."""


class PredictionFiles:
    """Writes what was predicted about some images; only files that an earlier prediction wrote are replaced.

    It needs neither torch nor Lightning.

    Args:
        folder: to write.
        images: paths of the images to predict.
        given: what was to be predicted: a path or a glob pattern, or a list of them. An image below it is named by its
            path relative to it, without the ending.
        overlays: write overlays.
        probabilities: write probabilities.
        contact_sheet: write pages and thumbnails.
        reader: how image files become RGB.
        rank: of this process; each writes its own images.

    Attributes:
        names: of what is written about each image, by its path.
        owned: the folder, in which a prediction replaces only its own files.
        written: path of each image that was written, by its name.
        shown: what the pages show of each.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[Path],
        given: Any,
        *,
        overlays: bool = True,
        probabilities: bool = False,
        contact_sheet: bool = True,
        reader: ImageReader | None = None,
        rank: int = 0,
    ) -> None:
        self.folder, self.images = folder, images
        self.overlays, self.probabilities, self.contact_sheet = overlays, probabilities, contact_sheet
        self.reader = reader or ImageReader()
        self.owned = OwnedFolder(folder, "predict", "Name another folder: --predictions.output_dir", rank)
        self.written: dict[str, str] = {}
        self.shown: list[Shown] = []
        self.names = unique_names(_relative_names(images, given))

    @property
    def paths(self) -> list[Path]:
        """All files that may be written."""
        files = [path for name in self.names.values() for path in self._files(name).values()]
        return files + (page_paths(self.folder, len(self.images)) if self.contact_sheet else [])

    def write(
        self, path: str, labels: np.ndarray, class_names: Sequence[str], probabilities: np.ndarray | None = None
    ) -> None:
        """Writes the files of an image.

        Args:
            path: of the image.
            labels: its label map, uint8 [H, W].
            class_names: name of each label.
            probabilities: floats [C, H, W], where they are to be written.

        Raises:
            VocsegError: a file of another origin has the name of one of them, or the image cannot be read.
        """
        name = self.names[Path(path)]
        files = self._files(name)
        self.written[name] = path
        write_mask(files["mask"], labels, self.owned.write)
        if probabilities is not None:
            arrays = {"probabilities": probabilities.astype(np.float16), "class_names": np.array(list(class_names))}
            self.owned.write(
                files["probabilities"], lambda file: np.savez_compressed(file, allow_pickle=False, **arrays)
            )
        if not (self.overlays or self.contact_sheet):
            return
        image = self.reader.read(Path(path))  # again: kept from the loader, the images of some batches would add up
        if self.overlays:
            self._write_jpeg(files["overlay"], overlay(image, labels, class_names=class_names), 92)
        if self.contact_sheet:
            self._write_thumbnails(path, image, labels, class_names)

    def write_pages(
        self, shown: Sequence[Shown], class_names: Sequence[str], checkpoint: str, problems: Sequence[str] = ()
    ) -> None:
        """Writes the pages; see :func:`vocseg.prediction_page.write_pages`."""
        write_pages(self.folder, shown, class_names, self.owned.write, checkpoint, problems, self.overlays)

    def _files(self, name: str) -> dict[str, Path]:
        """The files of an image, by kind."""
        files = {"mask": self.folder / f"{name}.png"}
        if self.overlays:
            files["overlay"] = self.folder / "overlays" / f"{name}.jpg"
        if self.probabilities:
            files["probabilities"] = self.folder / "probabilities" / f"{name}.npz"
        if self.contact_sheet:
            files |= {f"thumbnail {kind}": path for kind, path in thumbnail_paths(self.folder, name).items()}
        return files

    def _write_thumbnails(self, path: str, image: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
        height, width = labels.shape
        scale = min(1.0, THUMBNAIL[0] / width, THUMBNAIL[1] / height)
        size = max(1, round(scale * width)), max(1, round(scale * height))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        small_labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        # drawn at this size: in a reduced overlay, contours and names would be too small
        pictures = (small, overlay(small, small_labels, class_names=class_names), coloured(small_labels))
        name = self.names[Path(path)]
        for file, picture in zip(thumbnail_paths(self.folder, name).values(), pictures, strict=True):
            self._write_jpeg(file, picture, 85)
        shares = np.bincount(labels.ravel(), minlength=256) / labels.size
        visible = np.flatnonzero(shares >= VISIBLE).tolist()
        self.shown.append(Shown(path, name, size, {label: float(shares[label]) for label in visible}))

    def _write_jpeg(self, path: Path, picture: np.ndarray, quality: int) -> None:
        self.owned.write(path, lambda file: Image.fromarray(picture).save(file, format="JPEG", quality=quality))


def _relative_names(paths: Iterable[Path], given: Any) -> list[tuple[str, Path]]:
    """Pairs of a name and a path: ``one/photo`` below a given folder or in a list; ``photo`` for all other images.

    Args:
        paths: of the images.
        given: what was to be predicted: a path or a glob pattern, or a list of them.
    """
    order: dict[Path, int] = {}  # folders in the order given; each file may be given, and lie in one of its own
    for path in map(expand, [given] if isinstance(given, str | Path) else given or []):
        folders = [path.parent, *[Path()] * (path.suffix.lower() == ".txt")] if path.is_file() else [path]
        for folder in folders:
            order.setdefault(folder, len(order))
    names = []
    for path in paths:
        folder = min((parent for parent in path.parents if parent in order), key=order.__getitem__, default=path.parent)
        name = path.relative_to(folder).with_name(path.stem)
        names.append((path.stem if ".." in name.parts else name.as_posix(), path))
    return names
