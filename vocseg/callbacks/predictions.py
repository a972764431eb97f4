"""Writes predictions: palette PNG files, overlays, probabilities, and a page that shows them all."""

from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from vocseg import pages
from vocseg.data.files import read_image
from vocseg.data.labels import VOC_PALETTE
from vocseg.metrics import all_gather_objects
from vocseg.plots import legend_of, overlay

THUMBNAIL = (320, 240)


class PredictionWriter(BasePredictionWriter):
    """Writes each image's label map as a palette PNG at the photograph's own size, VOC's way, and what shows it.

    ``<folder>/<name>.png`` is the mask, ``overlays/<name>.jpg`` the photograph with the mask's colours upon it,
    ``probabilities/<name>.npz`` the class probabilities, and ``index.html`` shows all images and needs nothing else.

    Args:
        output_dir: where to; ``predictions`` in the run's folder if None.
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
        """Settles the folder; asks the task for probabilities where they are wanted."""
        if stage != "predict":
            return
        pl_module.predict_probabilities = self.probabilities
        if self.output_dir is None:
            has_run_folder = trainer.loggers and not trainer.fast_dev_run
            self.folder = Path(trainer.log_dir if has_run_folder else trainer.default_root_dir) / "predictions"
        self._names = _unique_names(trainer.datamodule.datasets["predict"].paths)

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
        self.folder.mkdir(parents=True, exist_ok=True)
        self.unreadable += batch["unreadable"]
        for path, predicted in zip(batch["path"], prediction, strict=True):
            self._write(self.folder, path, predicted, pl_module.class_names)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gathers what other processes have done; writes the contact sheet."""
        shares = all_gather_objects((self.written, self.unreadable, self._shown))
        self.written = {name: path for written, _, _ in shares for name, path in written.items()}
        self.unreadable = sorted(problem for _, problems, _ in shares for problem in problems)
        shown = [picture for _, picture in sorted(pair for _, _, some in shares for pair in some)]
        if self.contact_sheet and shown and trainer.is_global_zero:
            problems = [f'<p class="problem">{pages.text(problem)}</p>' for problem in self.unreadable]
            sheet = pages.page(f"Predictions: {len(shown)} images", [*problems, *shown])
            (self.folder / "index.html").write_text(sheet, encoding="utf-8")

    def _write(self, folder: Path, path: str, predicted: Tensor, class_names: Sequence[str]) -> None:
        name = self._names[path]
        self.written[name] = path
        labels = predicted.argmax(0) if self.probabilities else predicted
        labels = labels.cpu().numpy().astype(np.uint8)
        save_mask(labels, folder / f"{name}.png")
        if self.probabilities:
            (folder / "probabilities").mkdir(exist_ok=True)
            np.savez_compressed(
                folder / "probabilities" / f"{name}.npz",
                probabilities=predicted.cpu().numpy().astype(np.float16),
                class_names=list(class_names),
            )
        if not (self.overlays or self.contact_sheet):
            return
        mixed = overlay(read_image(Path(path)), labels)
        if self.overlays:
            (folder / "overlays").mkdir(exist_ok=True)
            Image.fromarray(mixed).save(folder / "overlays" / f"{name}.jpg", quality=92)
        if self.contact_sheet:
            thumbnail = Image.fromarray(mixed)
            thumbnail.thumbnail(THUMBNAIL)
            found = [entry for entry, _ in legend_of([labels], class_names) if entry != class_names[0]]
            caption = f"{Path(path).name}: {', '.join(found) or class_names[0]}"
            self._shown.append((path, pages.picture(np.array(thumbnail), caption, kind="JPEG")))


class TestMasks(L.Callback):
    """Writes the predicted mask of each test image, ``<run folder>/test_masks/<photograph's name>.png``.

    They are what VOC's evaluation server takes, and what a report shows.
    """

    __test__ = False  # pytest: no test

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes away those of an earlier test, which may have been of another split."""
        self._folder = None
        if trainer.loggers and not trainer.fast_dev_run:
            self._folder = Path(trainer.log_dir) / "test_masks"
            if trainer.is_global_zero:
                for old in self._folder.glob("*.png"):
                    old.unlink()
            self._folder.mkdir(parents=True, exist_ok=True)
        trainer.strategy.barrier("old test masks are gone")

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
        samples = getattr(trainer.test_dataloaders.dataset, "samples", None)
        if samples is None or self._folder is None or not isinstance(outputs, Mapping):
            return
        for index, labels in outputs.items():
            save_mask(labels.cpu().numpy(), self._folder / f"{samples[index].image.stem}.png")


def _unique_names(paths: Sequence[Path]) -> dict[str, str]:
    """Path -> name: ``photo`` for ``photo.jpg``; ``photo.webp``, then ``photo_2``, when others took that name."""
    taken: dict[str, str] = {}
    for path in paths:
        numbered = (f"{path.stem}_{number}" for number in count(2))
        taken[next(name for name in chain([path.stem, path.name], numbered) if name not in taken)] = str(path)
    return {path: name for name, path in taken.items()}


def save_mask(labels: np.ndarray, path: Path) -> None:
    """Writes labels uint8 [H, W] as a PNG with VOC's palette; its values are the labels."""
    image = Image.fromarray(labels.astype(np.uint8), mode="L")
    image.putpalette(VOC_PALETTE.ravel().tolist())
    image.save(path)
