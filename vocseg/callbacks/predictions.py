"""Writes predictions as palette PNG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from vocseg.data.labels import VOC_PALETTE


class PredictionWriter(BasePredictionWriter):
    """Writes each image's label map as a palette PNG at the photograph's own size, VOC's way.

    Args:
        output_dir: where to; ``predictions`` in the run's folder if None.
    """

    def __init__(self, output_dir: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = output_dir
        self.written: dict[str, str] = {}

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
        for path, label_map in zip(batch["path"], prediction, strict=True):
            save_mask(label_map.cpu().numpy(), folder / self._name(Path(path)))

    def _name(self, path: Path) -> str:
        """``photo.png`` for ``photo.jpg``; ``photo.webp.png`` when another file of this run took that name."""
        name = f"{path.stem}.png"
        if self.written.setdefault(name, str(path)) != str(path):
            name = f"{path.name}.png"
            self.written[name] = str(path)
        return name


def save_mask(labels: np.ndarray, path: Path) -> None:
    """Writes labels uint8 [H, W] as a PNG with VOC's palette; its values are the labels."""
    image = Image.fromarray(labels.astype(np.uint8), mode="L")
    image.putpalette(VOC_PALETTE.tobytes())
    image.save(path)
