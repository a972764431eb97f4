"""Writers of predictions: palette PNG files, overlays, probabilities, and a page that shows them all."""

from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from vocseg import pages
from vocseg.callbacks.base import class_names_of, labelled_images, run_folder_of
from vocseg.data.files import read_image
from vocseg.metrics import all_gather_objects
from vocseg.plots import legend_of, overlay
from vocseg.run_folder import RunFolder, write_atomically, write_mask, write_text

THUMBNAIL = (320, 240)


class PredictionWriter(BasePredictionWriter):
    """Writes each image's label map as a palette PNG at the image's own size, as VOC's masks are, and pictures of it.

    ``<folder>/<name>.png`` is the mask, ``overlays/<name>.jpg`` the image with the mask's colours over it,
    ``probabilities/<name>.npz`` the class probabilities, and ``index.html`` one page with all overlays inside.

    Args:
        output_dir: folder to write; ``predictions`` in the run's folder if None.
        overlays: write overlays.
        probabilities: write probabilities, float16 [C, H, W] under ``probabilities``, with ``class_names``.
        contact_sheet: write ``index.html``.
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
        self.folder = Path(output_dir or "predictions")
        self.written: dict[str, str] = {}
        self.unreadable: list[str] = []
        self._shown: list[tuple[str, str]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Chooses the folder and the files' names; asks the task for probabilities where they are wanted."""
        if stage != "predict":
            return
        pl_module.predict_probabilities = self.probabilities  # type: ignore[assignment]  # a flag of the task
        if self.output_dir is None:
            self.folder = (run_folder_of(trainer) or RunFolder(Path(trainer.default_root_dir))).predictions
        self._names = _unique_names(trainer.datamodule.datasets["predict"].paths)  # type: ignore[attr-defined]

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
        for path, predicted in zip(batch["path"], prediction, strict=True):
            self._write(path, predicted, class_names_of(pl_module))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collects the other processes' results; rank 0 writes the contact sheet."""
        shares = all_gather_objects((self.written, self.unreadable, self._shown))
        self.written = {name: path for written, _, _ in shares for name, path in written.items()}
        self.unreadable = sorted(problem for _, problems, _ in shares for problem in problems)
        shown = [picture for _, picture in sorted(pair for _, _, some in shares for pair in some)]
        if self.contact_sheet and shown and trainer.is_global_zero:
            problems = [f'<p class="problem">{pages.text(problem)}</p>' for problem in self.unreadable]
            sheet = pages.page(f"Predictions: {len(shown)} images", [*problems, *shown])
            write_text(self.folder / "index.html", sheet)

    def _write(self, path: str, predicted: Tensor, class_names: Sequence[str]) -> None:
        name = self._names[path]
        self.written[name] = path
        labels = (predicted.argmax(0) if self.probabilities else predicted).cpu().numpy().astype(np.uint8)
        write_mask(self.folder / f"{name}.png", labels)
        if self.probabilities:
            arrays = {
                "probabilities": predicted.cpu().numpy().astype(np.float16),
                "class_names": np.array(list(class_names)),
            }
            target = self.folder / "probabilities" / f"{name}.npz"
            write_atomically(target, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))
        if not (self.overlays or self.contact_sheet):
            return
        mixed = overlay(read_image(Path(path)), labels)
        if self.overlays:
            picture = Image.fromarray(mixed)
            write_atomically(
                self.folder / "overlays" / f"{name}.jpg", lambda file: picture.save(file, format="JPEG", quality=92)
            )
        if self.contact_sheet:
            thumbnail = Image.fromarray(mixed)
            thumbnail.thumbnail(THUMBNAIL)
            found = [entry for entry, _ in legend_of([labels], class_names) if entry != class_names[0]]
            caption = f"{Path(path).name}: {', '.join(found) or class_names[0]}"
            self._shown.append((path, pages.picture(np.array(thumbnail), caption, kind="JPEG")))


class TestMasks(L.Callback):
    """Writes the predicted mask of each test image, ``<run folder>/test_masks/<image's name>.png``.

    VOC's evaluation server takes these files, and a report shows some of them.
    """

    __test__ = False  # pytest: this is not a test

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Deletes the masks of an earlier test, which may have been of another split."""
        self._folder = run_folder_of(trainer)
        if self._folder is not None and trainer.is_global_zero:
            for old in self._folder.test_masks.glob("*.png"):
                old.unlink()
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
        samples = getattr(getattr(trainer.test_dataloaders, "dataset", None), "samples", None)
        if samples is None or self._folder is None:
            return
        for index, labels in labelled_images(outputs):
            write_mask(self._folder.test_masks / f"{samples[index].image.stem}.png", labels.cpu().numpy())


def _unique_names(paths: Sequence[Path]) -> dict[str, str]:
    """Path -> name: ``photo`` for ``photo.jpg``; ``photo.webp``, then ``photo_2``, when another file has that name."""
    taken: dict[str, str] = {}
    for path in paths:
        numbered = (f"{path.stem}_{number}" for number in count(2))
        taken[next(name for name in chain([path.stem, path.name], numbered) if name not in taken)] = str(path)
    return {path: name for name, path in taken.items()}
