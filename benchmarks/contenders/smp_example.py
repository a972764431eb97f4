"""The Lightning example of segmentation_models.pytorch for several classes."""

import time
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import lightning as L
import numpy as np
import segmentation_models_pytorch as smp
import torch
from contenders.shared import CLASSES, MEAN, STD, VOID, Settings, WithLightning, images_per_second, save_mask
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset


class SMP(WithLightning):
    """The multi-class example of segmentation_models.pytorch, with the crops of vocseg's ``mobilenet.yaml``."""

    def __init__(self, settings: Settings, loss: nn.Module | None = None) -> None:
        loss = loss or smp.losses.DiceLoss(smp.losses.MULTICLASS_MODE, from_logits=True, ignore_index=VOID)
        super().__init__(settings, SMPTask(loss, steps=settings.limit))
        crop, longest = settings.crop, settings.longest
        train = A.Compose(
            [
                A.RandomResizedCrop((crop, crop), scale=(0.25, 1.0)),
                A.HorizontalFlip(p=0.5),
                A.ColorJitter(0.3, 0.3, 0.3, 0.05, p=0.8),
            ]
        )
        self.resize = A.Compose([A.LongestMaxSize(longest), A.PadIfNeeded(longest, longest, border_mode=0)])
        val = A.Compose([A.LongestMaxSize(longest), A.PadIfNeeded(longest, longest, border_mode=0, fill_mask=VOID)])
        self.train_loader = settings.loader(ArrayPhotographs(settings.files("train"), train), trains=True)
        self.val_loader = settings.loader(ArrayPhotographs(settings.files("val"), val), trains=False)

    def epoch(self) -> float:
        """``trainer.fit``."""
        self.trainer().fit(self.task, self.train_loader, self.val_loader)
        return self.timer.seconds

    def evaluation(self) -> float:
        """``trainer.validate``, from the first batch to the scores."""
        self.trainer().validate(self.task, self.val_loader, verbose=False)
        return self.timer.validation_seconds

    def data(self) -> float:
        """The loader of the fit."""
        return images_per_second((image for image, _ in self.train_loader), self.settings)

    def prediction(self) -> float:
        """A loop over the photographs, one by one, as the example shows its predictions."""
        started = time.perf_counter()
        self.task.eval()
        for path in self.settings.to_predict():
            image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            with torch.no_grad():
                logits = self.task(torch.from_numpy(self.resize(image=image)["image"].transpose(2, 0, 1))[None])
            save_mask(logits.softmax(dim=1), image.shape[:2], path, self.settings)
        return time.perf_counter() - started


class SMPFairLoss(SMP):
    """The same with cross-entropy, as the other contenders have it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, nn.CrossEntropyLoss(ignore_index=VOID))


class SMPTask(L.LightningModule):
    """FPN, the loss, and statistics of each image that are joined at the end of an epoch, as in the example."""

    def __init__(self, loss: nn.Module, steps: int) -> None:
        super().__init__()
        self.model = smp.create_model("FPN", "mobilenet_v2", encoder_weights=None, in_channels=3, classes=CLASSES)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.loss_fn, self.steps = loss, steps
        self.statistics: dict[str, list[tuple[Tensor, ...]]] = {"train": [], "valid": []}

    def forward(self, image: Tensor) -> Tensor:
        """Logits of uint8 images."""
        return self.model((image - self.mean) / self.std)

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        image, mask = batch[0], batch[1].long()
        logits = self(image).contiguous()
        loss = self.loss_fn(logits, mask)
        prediction = logits.softmax(dim=1).argmax(dim=1)
        counts = smp.metrics.get_stats(prediction, mask, "multiclass", ignore_index=VOID, num_classes=CLASSES)
        self.statistics[stage].append(counts)
        return loss

    def _end(self, stage: str) -> None:
        counts = [torch.cat(parts) for parts in zip(*self.statistics[stage], strict=True)]
        reductions = {"per_image_iou": "micro-imagewise", "dataset_iou": "micro"}
        scores = {f"{stage}_{name}": smp.metrics.iou_score(*counts, reduction=how) for name, how in reductions.items()}
        self.log_dict(scores, prog_bar=True)
        self.statistics[stage].clear()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One batch."""
        return self._step(batch, "valid")

    def on_train_epoch_end(self) -> None:
        """Logs the scores."""
        self._end("train")

    def on_validation_epoch_end(self) -> None:
        """Logs the scores."""
        self._end("valid")

    def configure_optimizers(self) -> Any:
        """Adam with a cosine schedule by step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.steps, eta_min=1e-5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ArrayPhotographs(Dataset):
    """Reads with OpenCV, as the example does; palette masks need Pillow."""

    def __init__(self, files: list[tuple[Path, Path]], transforms: A.Compose) -> None:
        self.files, self.transforms = files, transforms

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image = cv2.cvtColor(cv2.imread(str(self.files[index][0])), cv2.COLOR_BGR2RGB)
        sample = self.transforms(image=image, mask=np.array(Image.open(self.files[index][1])))
        return sample["image"].transpose(2, 0, 1), sample["mask"]
