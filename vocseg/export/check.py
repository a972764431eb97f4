"""Whether an exported file computes what its task does."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vocseg.data.transforms import normalise
from vocseg.errors import VocsegError
from vocseg.export.model import ExportedModel
from vocseg.task import SegmentationTask

LEAST_EQUAL = 0.9999
"""Share of the pixels whose label must be the task's."""
LARGEST_DIFFERENCE = 1e-3
"""How far logits may be from the task's; of logits above 100, 1e-5 of the largest."""


@dataclass(frozen=True)
class Check:
    """A comparison of an exported file with its task, on images of one size.

    Attributes:
        shape: images, height and width.
        equal: share of the pixels with the same label.
        difference: the largest one between logits.
    """

    shape: tuple[int, int, int]
    equal: float
    difference: float

    def __str__(self) -> str:
        images, height, width = self.shape
        size = f"{images} image{'s' * (images > 1)} of {height}x{width}"
        return f"{size:<24} labels equal {100 * self.equal:.4f} %   logits differ by at most {self.difference:.1e}"


def verify(model: ExportedModel, task: SegmentationTask, size: tuple[int, int] | None) -> list[Check]:
    """Compares a file with its task on images of several sizes.

    Raises:
        VocsegError: they do not compute the same.
    """
    side, other = example_sides(task.network.stride)
    shapes = [(1, *size), (2, *size)] if size else [(1, side, other), (1, side + 5, other + 11), (2, other, side)]
    checks = []
    for images, height, width in shapes:
        pixels = _test_images(images, height, width)
        with torch.no_grad():
            image = normalise(pixels)
            expected = task(image).numpy()
        found = model((pixels if model.metadata["input"] == "uint8" else image).numpy())
        logits = found["logits"]
        labels = found.get("labels", found.get("probabilities", logits).argmax(1))
        difference = float(np.abs(logits - expected).max())
        check = Check((images, height, width), float((labels == expected.argmax(1)).mean()), difference)
        allowed = max(LARGEST_DIFFERENCE, 1e-5 * float(np.abs(expected).max()))
        if not (check.equal >= LEAST_EQUAL and check.difference <= allowed):  # NaN fails, too
            raise VocsegError(
                f"The exported network does not compute what the checkpoint does, and no file is left: {check}. A "
                "network of your own may change its result with the image's size: try --size HEIGHT WIDTH."
            )
        checks.append(check)
    return checks


def example_sides(stride: int) -> tuple[int, int]:
    """A multiple of the stride of about 100 pixels, and one that is larger by a stride."""
    side = max(-(-96 // stride), 3) * stride
    return side, side + max(stride, 16)


def _test_images(images: int, height: int, width: int) -> Tensor:
    """Coarse and fine patterns, uint8 [B, 3, H, W]; always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(images, 3, 6, 6, generator=generator)
    fine = torch.rand(images, 3, height, width, generator=generator)
    mixed = 0.8 * F.interpolate(coarse, size=(height, width), mode="bilinear") + 0.2 * fine
    return (255 * mixed).to(torch.uint8)
