"""Writers of predictions: palette PNG files, overlays, probabilities, and pages that show them all."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2  # albumentations' own dependency
import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from vocseg.callbacks.base import (
    check_in_all_processes,
    class_names_of,
    datamodule_of,
    labelled_images,
    owned_test_files,
    run_folder_of,
    test_samples_of,
    to_arrays,
)
from vocseg.data.files import ImageReader
from vocseg.data.lists import expand
from vocseg.errors import VocsegError
from vocseg.metrics import all_gather_objects
from vocseg.overlays import overlay
from vocseg.plots import coloured
from vocseg.prediction_page import Shown, page_paths, thumbnail_paths, write_pages
from vocseg.run_folder import RunFolder
from vocseg.saving import OwnedFolder, sample_names, unique_names, write_mask

THUMBNAIL = (480, 360)
"""Largest width and height of a thumbnail in pixels."""
VISIBLE = 0.002
"""Share of an image's pixels from which the page names a class."""


class PredictionWriter(BasePredictionWriter):
    """Writes each image's label map as a palette PNG at the image's own size, as VOC's masks are, and pictures of it.

    ``<folder>/<name>.png`` is the mask, ``overlays/<name>.jpg`` the image with the mask's colours over it, and
    ``probabilities/<name>.npz`` the class probabilities. ``index.html`` shows them all, with small images from
    ``thumbnails``; from 500 images on it continues in ``index_2.html``, ... The name is the image's path relative to
    the given folder, without its ending. Only files that an earlier prediction wrote are replaced.

    Predictions are written as they come. ``trainer.predict`` also returns them all, and so keeps them in memory, unless
    it is called with ``return_predictions=False``, as ``vocseg predict`` does.

    Args:
        output_dir: folder to write; ``predictions`` in the run's folder if None.
        overlays: write overlays.
        probabilities: write probabilities, float16 [C, H, W] under ``probabilities``, with ``class_names``.
        contact_sheet: write ``index.html`` and the thumbnails.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        overlays: bool = True,
        probabilities: bool = False,
        contact_sheet: bool = True,
    ) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = output_dir
        self.overlays, self.probabilities, self.contact_sheet = overlays, probabilities, contact_sheet
        self.folder = Path(output_dir or "predictions").expanduser()
        self.written: dict[str, str] = {}
        self.unreadable: list[str] = []
        self._shown: list[Shown] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Chooses the folder and the files' names; asks the task for probabilities where they are wanted.

        Raises:
            VocsegError: a file of another origin has the name of one that would be written.
        """
        if stage != "predict":
            return
        pl_module.predict_probabilities = self.probabilities  # type: ignore[assignment]  # a flag of the task
        if self.output_dir is None:
            self.folder = (run_folder_of(trainer) or RunFolder(Path(trainer.default_root_dir))).predictions
        data = datamodule_of(trainer)
        paths = getattr(getattr(data, "datasets", {}).get("predict"), "paths", None)
        if paths is None:
            raise VocsegError("PredictionWriter needs a data module with images to predict, such as VOCDataModule.")
        self._images = getattr(data, "image_reader", None) or ImageReader()
        self._names = unique_names(_relative_names(paths, getattr(data, "predict_path", None)))
        advice = "Name another folder: --predictions.output_dir"
        self._owned = OwnedFolder(self.folder, "predict", advice, getattr(trainer, "global_rank", 0))
        files = [path for name in self._names.values() for path in self._files(name).values()]
        files += page_paths(self.folder, len(paths)) if self.contact_sheet else []
        check_in_all_processes(self._owned, files, paths)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes one batch."""
        self.unreadable += batch["unreadable"]
        # probabilities one image at a time: a second copy of a whole batch may not fit into the device's memory
        probabilities = prediction if self.probabilities else [None] * len(prediction)
        maps = to_arrays([each.argmax(0) for each in prediction] if self.probabilities else prediction)
        for path, labels, scores in zip(batch["path"], maps, probabilities, strict=True):
            self._write(path, labels, scores, class_names_of(pl_module))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collects the other processes' results; rank 0 writes the pages."""
        shares = all_gather_objects((self.written, self.unreadable, self._shown))
        self.written = {name: path for written, _, _ in shares for name, path in written.items()}
        self.unreadable = sorted(problem for _, problems, _ in shares for problem in problems)
        shown = [one for _, _, some in shares for one in some]
        if self.contact_sheet and shown and trainer.is_global_zero:
            checkpoint = Path(getattr(trainer, "ckpt_path", None) or "")
            write_pages(
                self.folder,
                shown,
                class_names_of(pl_module),
                self._owned.write,
                "/".join(checkpoint.parts[-4:]),  # <name>/version_N/checkpoints/best.ckpt
                self.unreadable,
                self.overlays,
            )

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

    def _write(self, path: str, labels: np.ndarray, probabilities: Tensor | None, class_names: Sequence[str]) -> None:
        name = self._names[Path(path)]
        files = self._files(name)
        self.written[name] = path
        write_mask(files["mask"], labels, self._owned.write)
        if probabilities is not None:
            arrays = {
                "probabilities": probabilities.cpu().numpy().astype(np.float16),
                "class_names": np.array(list(class_names)),
            }
            self._owned.write(
                files["probabilities"], lambda file: np.savez_compressed(file, allow_pickle=False, **arrays)
            )
        if not (self.overlays or self.contact_sheet):
            return
        image = self._images.read(Path(path))  # again: kept from the loader, the images of some batches would add up
        if self.overlays:
            self._write_jpeg(files["overlay"], overlay(image, labels, class_names=class_names), 92)
        if self.contact_sheet:
            self._write_thumbnails(path, image, labels, class_names)

    def _write_thumbnails(self, path: str, image: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
        height, width = labels.shape
        scale = min(1.0, THUMBNAIL[0] / width, THUMBNAIL[1] / height)
        size = max(1, round(scale * width)), max(1, round(scale * height))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        small_labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        # drawn at this size: in a reduced overlay, contours and names would be too small
        pictures = (small, overlay(small, small_labels, class_names=class_names), coloured(small_labels))
        name = self._names[Path(path)]
        for file, picture in zip(thumbnail_paths(self.folder, name).values(), pictures, strict=True):
            self._write_jpeg(file, picture, 85)
        shares = np.bincount(labels.ravel(), minlength=256) / labels.size
        visible = np.flatnonzero(shares >= VISIBLE).tolist()
        self._shown.append(Shown(path, name, size, {label: float(shares[label]) for label in visible}))

    def _write_jpeg(self, path: Path, picture: np.ndarray, quality: int) -> None:
        self._owned.write(path, lambda file: Image.fromarray(picture).save(file, format="JPEG", quality=quality))


class TestMasks(L.Callback):
    """Writes the predicted mask of each test image, ``<run folder>/test_masks/<name>.png``.

    The name is the image's entry in the split's list, which may have folders in it. VOC's evaluation server takes these
    files, and a report shows some of them.
    """

    __test__ = False  # pytest: this is not a test

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Deletes the masks of an earlier test, which may have been of another split.

        Raises:
            VocsegError: a file of another origin has the name of one that would be written.
        """
        self._paths: list[Path] = []
        folder, owned = run_folder_of(trainer), owned_test_files(trainer)
        if folder is None or owned is None:
            return
        self._owned = owned
        self._paths = [folder.test_masks / f"{name}.png" for name in sample_names(test_samples_of(trainer))]
        check_in_all_processes(owned, self._paths)
        if trainer.is_global_zero:
            owned.delete_own(folder.test_masks)
        trainer.strategy.barrier("earlier test masks are deleted")

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes one batch's."""
        for index, _, labels in labelled_images(outputs) if self._paths else ():
            write_mask(self._paths[index], labels, self._owned.write)


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
