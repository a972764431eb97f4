"""A plain loop as in torchvision's references/segmentation."""

import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from contenders.shared import CLASSES, MEAN, STD, VOID, Settings, images_per_second, save_mask
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms import RandomCrop
from torchvision.transforms import functional as TF

from vocseg import MobileNetV2, SkipDecoder
from vocseg.network import SegmentationNetwork


class Torchvision:
    """A loop as in torchvision's references/segmentation: PIL transforms, SGD, one confusion matrix, batches of one.

    The network is that of vocseg's ``mobilenet.yaml``.
    """

    def __init__(self, settings: Settings) -> None:
        backbone = MobileNetV2(output_stride=16)
        decoder = SkipDecoder(backbone.channels, backbone.strides, CLASSES)
        self.network = SegmentationNetwork(backbone, decoder, channels_last=False)
        self.settings = settings
        train, val = (PILPhotographs(settings.files(split), settings, split == "train") for split in ("train", "val"))
        self.train_loader = settings.loader(train, trains=True, collate_fn=pad_and_stack)
        self.val_loader = settings.loader(val, trains=False, batch_size=1, collate_fn=pad_and_stack)

    def epoch(self) -> float:
        """Trains one epoch, then evaluates."""
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=self.settings.limit, power=0.9)
        started = time.perf_counter()
        self.network.train()
        for image, mask in islice(self.train_loader, self.settings.limit):
            loss = F.cross_entropy(self.network(image), mask, ignore_index=VOID)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss.item()  # the reference logs it at every step
        self.evaluation()
        torch.save(self.network.state_dict(), Path(self.settings.folder) / "torchvision.pth")
        return time.perf_counter() - started

    def evaluation(self) -> float:
        """One confusion matrix at the input's size, then the scores."""
        started = time.perf_counter()
        self.network.eval()
        matrix = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
        with torch.inference_mode():
            for image, mask in islice(self.val_loader, self.settings.limit * self.settings.batch):
                truth, prediction = mask.flatten(), self.network(image).argmax(1).flatten()
                valid = (truth >= 0) & (truth < CLASSES)
                cells = truth[valid] * CLASSES + prediction[valid]
                matrix += torch.bincount(cells, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
        hits = matrix.diag()
        (hits / (matrix.sum(0) + matrix.sum(1) - hits)).nanmean().item()
        return time.perf_counter() - started

    def data(self) -> float:
        """The loader of the training."""
        return images_per_second((image for image, _ in self.train_loader), self.settings)

    def prediction(self) -> float:
        """A loop over the photographs, one by one."""
        started = time.perf_counter()
        self.network.eval()
        for path in self.settings.to_predict():
            with Image.open(path) as file:
                image = file.convert("RGB")
            with torch.inference_mode():
                logits = self.network(to_tensor(to_longest(image, self.settings.longest))[None])
            save_mask(logits, (image.height, image.width), path, self.settings)
        return time.perf_counter() - started


class PILPhotographs(Dataset):
    """Training: random size (half to twice the crop), flip, crop. Validation: the longest side at its size."""

    def __init__(self, files: list[tuple[Path, Path]], settings: Settings, trains: bool) -> None:
        self.files, self.settings, self.trains = files, settings, trains

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = Image.open(self.files[index][0]).convert("RGB"), Image.open(self.files[index][1])
        if self.trains:
            image, mask = self._crop(image, mask)
        else:
            image = to_longest(image, self.settings.longest)
            mask = TF.resize(mask, [image.height, image.width], TF.InterpolationMode.NEAREST)
        return to_tensor(image), torch.from_numpy(np.array(mask)).long()

    def _crop(self, image: Image.Image, mask: Image.Image) -> tuple[Image.Image, Image.Image]:
        crop = self.settings.crop
        size = int(torch.randint(crop // 2, 2 * crop + 1, ()))
        image = TF.resize(image, [size])
        mask = TF.resize(mask, [size], TF.InterpolationMode.NEAREST)
        if torch.rand(()) < 0.5:
            image, mask = TF.hflip(image), TF.hflip(mask)
        missing = [0, 0, max(crop - image.width, 0), max(crop - image.height, 0)]
        image, mask = TF.pad(image, missing, fill=0), TF.pad(mask, missing, fill=VOID)
        place = RandomCrop.get_params(image, (crop, crop))
        return TF.crop(image, *place), TF.crop(mask, *place)


def to_longest(image: Image.Image, longest: int) -> Image.Image:
    """Resizes so that the longest side has a size in pixels."""
    scale = longest / max(image.size)
    return TF.resize(image, [round(image.height * scale), round(image.width * scale)])


def to_tensor(image: Image.Image) -> Tensor:
    """A normalised float32 [3, H, W]."""
    return TF.normalize(TF.convert_image_dtype(TF.pil_to_tensor(image)), MEAN, STD)


def pad_and_stack(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch of images of different sizes, padded on the right and at the bottom."""
    height, width = (max(mask.shape[side] for _, mask in items) for side in (0, 1))

    def pad(tensor: Tensor, value: int) -> Tensor:
        return F.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]), value=value)

    return torch.stack([pad(image, 0) for image, _ in items]), torch.stack([pad(mask, VOID) for _, mask in items])
