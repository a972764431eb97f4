"""Writes predictions: palette PNG files, overlays, probabilities, and a page that shows them all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from vocseg import html
from vocseg.data.files import read_image
from vocseg.data.labels import VOC_PALETTE
from vocseg.drawing import legend_of, overlay

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
        self.written: dict[str, str] = {}
        self.unreadable: list[str] = []
        self._shown: list[str] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Asks the task for probabilities where they are wanted."""
        if stage == "predict" and self.probabilities:
            pl_module.predict_probabilities = True

    def folder(self, trainer: L.Trainer) -> Path:
        """The folder that the files go to."""
        if self.output_dir:
            return Path(self.output_dir)
        has_run_folder = trainer.loggers and not trainer.fast_dev_run
        return Path(trainer.loggers[0].log_dir if has_run_folder else trainer.default_root_dir) / "predictions"

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
        folder = self.folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        self.unreadable += batch["unreadable"]
        for path, predicted in zip(batch["path"], prediction, strict=True):
            self._write(folder, Path(path), predicted, pl_module.class_names)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the contact sheet."""
        if self.contact_sheet and self._shown:
            problems = [f'<p class="problem">{html.text(problem)}</p>' for problem in self.unreadable]
            sheet = html.page(f"Predictions: {len(self._shown)} images", [*problems, *self._shown])
            (self.folder(trainer) / "index.html").write_text(sheet, encoding="utf-8")

    def _write(self, folder: Path, path: Path, predicted: Tensor, class_names: Sequence[str]) -> None:
        name = self._name(path)
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
        mixed = overlay(read_image(path), labels)
        if self.overlays:
            (folder / "overlays").mkdir(exist_ok=True)
            Image.fromarray(mixed).save(folder / "overlays" / f"{name}.jpg", quality=92)
        if self.contact_sheet:
            thumbnail = Image.fromarray(mixed)
            thumbnail.thumbnail(THUMBNAIL)
            found = ", ".join(entry for entry, _ in legend_of([labels], class_names)[1:]) or class_names[0]
            self._shown.append(html.picture(np.array(thumbnail), f"{path.name}: {found}", kind="JPEG"))

    def _name(self, path: Path) -> str:
        """``photo`` for ``photo.jpg``; ``photo.webp`` when another file of this run took that name."""
        name = path.stem
        if self.written.setdefault(name, str(path)) != str(path):
            name = path.name
            self.written[name] = str(path)
        return name


class TestMasks(L.Callback):
    """Writes the predicted mask of each test image, ``<run folder>/test_masks/<photograph's name>.png``.

    They are what VOC's evaluation server takes, and what a report shows.
    """

    __test__ = False  # pytest: no test

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes away those of an earlier test, which may have been of another split."""
        if trainer.loggers and trainer.is_global_zero and not trainer.fast_dev_run:
            for old in (Path(trainer.loggers[0].log_dir) / "test_masks").glob("*.png"):
                old.unlink()

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
        if samples is None or not trainer.loggers or trainer.fast_dev_run or not isinstance(outputs, Mapping):
            return
        folder = Path(trainer.loggers[0].log_dir) / "test_masks"
        folder.mkdir(parents=True, exist_ok=True)
        for index, labels in outputs.items():
            save_mask(labels.cpu().numpy(), folder / f"{samples[index].image.stem}.png")


def save_mask(labels: np.ndarray, path: Path) -> None:
    """Writes labels uint8 [H, W] as a PNG with VOC's palette; its values are the labels."""
    image = Image.fromarray(labels.astype(np.uint8), mode="L")
    image.putpalette(VOC_PALETTE.ravel().tolist())
    image.save(path)
