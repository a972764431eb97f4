"""torchgeo's SemanticSegmentationTask, and VOC2007 as one of its data modules."""

import time
from typing import Any

import kornia.augmentation as K
import numpy as np
import segmentation_models_pytorch as smp
import torch
from contenders.shared import CLASSES, VOID, Settings, WithLightning, images_per_second, save_mask
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset
from torchgeo.trainers import SemanticSegmentationTask


class Torchgeo(WithLightning):
    """torchgeo's SemanticSegmentationTask with its U-Net (torchgeo has no FPN), and a small data module."""

    def __init__(self, settings: Settings, task: SemanticSegmentationTask | None = None) -> None:
        unet = SemanticSegmentationTask("unet", "mobilenet_v2", num_classes=CLASSES, ignore_index=VOID)
        super().__init__(settings, task or unet)
        self.datamodule = Photographs(settings)

    def epoch(self) -> float:
        """``trainer.fit``."""
        self.trainer().fit(self.task, datamodule=self.datamodule)
        return self.timer.seconds

    def evaluation(self) -> float:
        """``trainer.validate``, from the first batch to the scores."""
        self.trainer().validate(self.task, datamodule=self.datamodule, verbose=False)
        return self.timer.validation_seconds

    def data(self) -> float:
        """The loader of the fit, with the augmentations that torchgeo applies to whole batches after it."""
        batches = map(self.datamodule.train_aug, self.datamodule.train_dataloader())
        return images_per_second((batch["image"] for batch in batches), self.settings)

    def prediction(self) -> float:
        """``trainer.predict`` gives probabilities at the input's size; the files are left to the user."""
        started = time.perf_counter()
        paths = self.settings.to_predict()
        batches = self.trainer(logger=False, enable_checkpointing=False).predict(self.task, datamodule=self.datamodule)
        for path, scores in zip(paths, (image for batch in batches or () for image in batch), strict=True):
            with Image.open(path) as file:
                size = (file.height, file.width)
            save_mask(scores[None], size, path, self.settings)
        return time.perf_counter() - started


class TorchgeoWithFPN(Torchgeo):
    """The same with the network of segmentation_models.pytorch's example."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, TaskWithFPN(num_classes=CLASSES, ignore_index=VOID))


class TaskWithFPN(SemanticSegmentationTask):
    """The task, with a network that torchgeo does not offer."""

    def configure_models(self) -> None:
        """Builds FPN."""
        self.model = smp.FPN("mobilenet_v2", encoder_weights=None, classes=CLASSES)


class PhotographDataset(NonGeoDataset):
    """A list of VOC2007; each sample is a square with the photograph in its middle."""

    def __init__(self, split: str, settings: Settings) -> None:
        self.longest = settings.longest
        self.files: list[Any] = settings.files(split) if split in ("train", "val") else []
        if split == "predict":
            self.files = [(path, None) for path in settings.to_predict()]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, mask = self.files[index]
        with Image.open(image) as file:
            sample = {"image": self._square(file.convert("RGB"), Image.Resampling.BILINEAR, 0).permute(2, 0, 1).float()}
        if mask is not None:
            with Image.open(mask) as file:
                sample["mask"] = self._square(file, Image.Resampling.NEAREST, VOID).long()
        return sample

    def _square(self, image: Image.Image, resample: Image.Resampling, fill: int) -> Tensor:
        scale = self.longest / max(image.size)
        width, height = (round(side * scale) for side in image.size)
        pixels = torch.from_numpy(np.array(image.resize((width, height), resample)))
        left, top = (self.longest - width) // 2, (self.longest - height) // 2
        padding = [left, self.longest - width - left, top, self.longest - height - top]
        return F.pad(pixels, [0, 0, *padding] if pixels.ndim == 3 else padding, value=fill)


class Photographs(NonGeoDataModule):
    """The lists for training and validation, and the photographs to predict; augmentations by kornia."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(PhotographDataset, settings.batch, settings.workers, settings=settings)
        self.train_aug = K.AugmentationSequential(
            K.Normalize(mean=self.mean, std=self.std),
            K.RandomResizedCrop((settings.crop, settings.crop), scale=(0.25, 1.0), align_corners=False),
            K.RandomHorizontalFlip(p=0.5),
            K.ColorJitter(0.3, 0.3, 0.3, 0.05, p=0.8),
            data_keys=None,
            keepdim=True,
        )

    def setup(self, stage: str) -> None:
        """Adds the photographs to predict."""
        super().setup(stage)
        if stage == "predict":
            self.predict_dataset = self.dataset_class(split="predict", **self.kwargs)
