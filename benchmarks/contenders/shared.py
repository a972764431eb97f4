"""What the contenders of peers.py share.

The lists of VOC2007, MobileNetV2 without pretrained weights as the encoder, batches of 8 crops of 256x256 pixels for
training, validation with the longest side at 320 pixels, and full precision. What differs is what each library does by
itself: its transforms, its network, its loss, its statistics and its loop.

Each contender is a class with four measurements. They return seconds, or images per second for the data alone.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from vocseg.data.lists import find_tree, read_split

CLASSES, VOID = 21, 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Settings:
    """What all contenders share.

    Attributes:
        root: the folder of VOC2007.
        folder: an empty folder to write.
        limit: at most so many batches of training and of validation.
        workers: processes that load data, in each loader.
        photographs: images to predict.
    """

    root: str
    folder: str
    limit: int
    workers: int
    photographs: int
    batch: int = 8
    crop: int = 256
    longest: int = 320

    def files(self, split: str) -> list[tuple[Path, Path]]:
        """Image and mask of each entry of a list."""
        tree = find_tree(Path(self.root), "2007")
        assert tree is not None, f"no VOC2007 in {self.root}"
        return [(sample.image, sample.mask) for sample in read_split(tree, split)]

    def to_predict(self) -> list[Path]:
        """The photographs to predict."""
        return [image for image, _ in self.files("test")][: self.photographs]

    def loader(self, dataset: Dataset, trains: bool, **more: Any) -> DataLoader:
        """A loader of batches, shuffled and without an incomplete batch for training."""
        more = {"batch_size": self.batch, "shuffle": trains, "drop_last": trains, **more}
        return DataLoader(dataset, num_workers=self.workers, **more)


class Timer(L.Callback):
    """Seconds of training with its validation, and of a validation alone."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts after the sanity check."""
        self.started = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops."""
        self.seconds = time.perf_counter() - self.started

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts."""
        self.validation_started = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops."""
        self.validation_seconds = time.perf_counter() - self.validation_started


class WithLightning:
    """What the contenders with a LightningModule of their own, the task, have in common."""

    def __init__(self, settings: Settings, task: L.LightningModule) -> None:
        self.settings, self.task, self.timer = settings, task, Timer()

    def trainer(self, **more: Any) -> L.Trainer:
        """A trainer with Lightning's default logger and checkpoints."""
        return L.Trainer(
            max_epochs=1,
            default_root_dir=self.settings.folder,
            limit_train_batches=self.settings.limit,
            limit_val_batches=self.settings.limit,
            log_every_n_steps=1,
            callbacks=[self.timer],
            enable_progress_bar=False,
            enable_model_summary=False,
            **more,
        )


def images_per_second(batches: Iterable[Tensor], settings: Settings) -> float:
    """Reads the batches of one epoch."""
    started = time.perf_counter()
    read = sum(len(batch) for batch in islice(batches, settings.limit))
    return read / (time.perf_counter() - started)


def save_mask(scores: Tensor, size: tuple[int, int], path: Path, settings: Settings) -> None:
    """Writes the label map of one image at the photograph's own size; ``scores`` may be padded to a square."""
    scale = settings.longest / max(size)
    height, width = (round(side * scale) for side in size)
    top, left = (scores.shape[-2] - height) // 2, (scores.shape[-1] - width) // 2
    scores = F.interpolate(scores[..., top : top + height, left : left + width], size, mode="bilinear")
    folder = Path(settings.folder) / "predictions"
    folder.mkdir(exist_ok=True)
    Image.fromarray(scores.argmax(1)[0].to(torch.uint8).numpy()).save(folder / f"{path.stem}.png")
