"""albumentations, kept in one file: named pipelines, random draws that can be repeated, masks that stay honest."""

import os
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the network for a newer version

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from vocseg.components import factory_from_config
from vocseg.data.labels import VOID
from vocseg.errors import VocsegError, nearest

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's RGB values in [0, 1]; every image is normalised with them."""


def _resize(height: int, width: int) -> A.BasicTransform:
    return A.Resize(height, width, area_for_downscale="image")


def _affine() -> A.BasicTransform:
    return A.Affine(scale=(0.8, 1.25), translate_percent=(-0.1, 0.1), rotate=(-15, 15), shear=(-5, 5), p=1.0)


def _random_part(height: int, width: int) -> A.BasicTransform:
    return A.RandomResizedCrop((height, width), scale=(0.25, 1.0), area_for_downscale="image")


TRAIN_PIPELINES = {
    "resize": lambda height, width: [_resize(height, width)],
    "flip": lambda height, width: [_resize(height, width), A.HorizontalFlip(p=0.5)],
    "flip_both": lambda height, width: [_resize(height, width), A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)],
    "affine": lambda height, width: [_affine(), _resize(height, width)],
    "crop": lambda height, width: [
        _random_part(height, width),
        A.HorizontalFlip(p=0.5),
        A.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05, p=0.8),
    ],
    "paper": lambda height, width: [
        _affine(),
        _random_part(height, width),
        A.HorizontalFlip(p=0.5),
        A.VerticalFlip(p=0.5),
    ],
}
"""What ``train_transforms`` may name.

resize: to the image size, the ratio of the sides given up (the paper's baseline); flip: the same, mirrored half the
time; flip_both: also turned upside down half the time; affine: turned by up to 15 degrees, sheared by up to 5, scaled
by 0.8 to 1.25 and moved by up to 10 %, then resized; crop: a random part of 25 to 100 % of the area, mirrored half the
time, colours jittered; paper: affine, a random part, both flips (the kinds of augmentation that the paper names; their
strengths are ours). Images are made smaller by averaging areas, as photographs should be; masks always take the nearest
label.
"""

EVAL_PIPELINES = {
    "resize": lambda height, width: [_resize(height, width)],
    "keep_ratio": lambda height, width: [A.LongestMaxSize(max(height, width), area_for_downscale="image")],
}
"""What ``eval_transforms`` may name.

resize: to the image size, the ratio of the sides given up (the paper); keep_ratio: the longer side to the larger number
of the image size.
"""


def make_transforms(
    wanted: str | Sequence[Any], pipelines: Mapping[str, Any], image_size: tuple[int, int], role: str
) -> list[A.BasicTransform | A.BaseCompose]:
    """A list of albumentations transforms from a pipeline's name, or from transforms or descriptions of them.

    Raises:
        VocsegError: there is no such pipeline, or a transform that normalises (the data module does so itself).
    """
    if isinstance(wanted, str):
        if wanted not in pipelines:
            raise VocsegError(
                f"There are no {role} {wanted!r}; there are {', '.join(pipelines)}, or a list of albumentations "
                "classes." + nearest(wanted, pipelines)
            )
        return pipelines[wanted](*image_size)
    transforms = [
        _built(transform, role) if isinstance(transform, str | Mapping) else transform for transform in wanted
    ]
    for transform in transforms:
        if isinstance(transform, A.Normalize | A.ToFloat | A.ToTensorV2):
            raise VocsegError(
                f"{role} holds {type(transform).__name__}: take it out. Images are normalised with ImageNet's mean and "
                "deviation and made tensors after the transforms."
            )
    return transforms


def _built(transform: str | Mapping[str, Any], role: str) -> A.BasicTransform | A.BaseCompose:
    description = {"class_path": transform} if isinstance(transform, str) else dict(transform)
    if "." not in description.get("class_path", "."):
        description["class_path"] = f"albumentations.{description['class_path']}"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a misspelt setting is only worth a warning to albumentations
        try:
            return factory_from_config(description, role, (A.BasicTransform, A.BaseCompose))()
        except (UserWarning, TypeError, ValueError) as error:
            if isinstance(error, VocsegError):
                raise
            raise VocsegError(f"{role}: {description['class_path']}: {' '.join(str(error).split())}") from error


def transform_to_config(transform: A.BasicTransform | A.BaseCompose) -> dict[str, Any]:
    """``{"class_path", "init_args"}`` of an albumentations transform, for a checkpoint."""
    init_args = (
        {**transform.get_base_init_args(), **transform.get_transform_init_args()}
        if isinstance(transform, A.BasicTransform)
        else {"p": transform.p, "transforms": [transform_to_config(inner) for inner in transform.transforms]}
    )
    return {
        "class_path": f"{type(transform).__module__}.{type(transform).__qualname__}",
        "init_args": {key: _plain(value) for key, value in init_args.items()},
    }


class Pipeline:
    """Transforms, then normalisation, with draws that follow from (seed, epoch, sample) alone.

    albumentations' own generators repeat themselves over epochs and worker processes; new ones for each sample make a
    draw the same whatever the number of workers, and after resuming. All transforms of a pipeline share them: given the
    same seed each, as ``Compose.set_random_seed`` does, two flips would always come together.

    Args:
        transforms: albumentations transforms, applied in order.
        num_classes: labels 0..num_classes-1 are classes.
        seed: of all draws.
        void_label: what the masks' void becomes; pixels that a transform invents are void (255) all the same.
    """

    def __init__(self, transforms: Sequence[Any], num_classes: int, seed: int = 0, void_label: int = VOID) -> None:
        self.compose = A.Compose(list(transforms))
        self.num_classes = num_classes
        self.seed = seed
        self.void_label = void_label

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None = None, epoch: int = 0, index: int = 0
    ) -> dict[str, Tensor]:
        """Transforms one sample.

        Args:
            image: RGB uint8 [H, W, 3].
            mask: labels uint8 [H, W], 255 = void, or None.
            epoch: counted from 0.
            index: the sample's place in the split's list.

        Returns:
            ``image`` float32 [3, h, w], normalised, and ``mask`` int64 [h, w] if there was one.
        """
        seeds = np.random.SeedSequence([self.seed, epoch, index]).generate_state(2)
        self.compose.set_random_state(np.random.default_rng(seeds[0]), random.Random(int(seeds[1])))
        if mask is None:
            return {"image": to_tensor(self.compose(image=image)["image"])}
        if self.void_label != VOID:
            mask = np.where(mask == VOID, np.uint8(self.void_label), mask)
        # Transforms fill new mask pixels with 0 unless told otherwise, and 0 is background. With every label moved up
        # by one (and 255 round to 0) their filling is void.
        moved = self.compose(image=image, mask=mask + np.uint8(1))
        labels = moved["mask"] - np.uint8(1)
        labels[labels >= self.num_classes] = VOID
        return {"image": to_tensor(moved["image"]), "mask": torch.from_numpy(labels.astype(np.int64))}


def to_tensor(image: np.ndarray) -> Tensor:
    """RGB uint8 [H, W, 3] to float32 [3, H, W], normalised with :data:`MEAN` and :data:`STD`."""
    scale = 1.0 / (255.0 * np.array(STD, dtype=np.float32))
    offset = np.array(MEAN, dtype=np.float32) / np.array(STD, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray((image * scale - offset).astype(np.float32).transpose(2, 0, 1)))


def check_only_resizes(transforms: Sequence[Any]) -> None:
    """Makes sure that evaluation transforms move no pixel, by sending two ramps through them.

    Predictions are brought back to each photograph's own size by a plain resize; were the input cropped, padded,
    mirrored or turned, the scores would silently be wrong.

    Raises:
        VocsegError: a pixel came out elsewhere than a resize would put it.
    """
    rows, columns = (ramp.astype(np.uint8) for ramp in np.mgrid[0:180, 0:240])
    for ramp in (rows, columns):
        moved = A.Compose(list(transforms))(image=np.zeros((180, 240, 3), np.uint8), mask=ramp)["mask"]
        expected = A.Resize(*moved.shape)(image=np.zeros((180, 240, 3), np.uint8), mask=ramp)["mask"]
        tolerance = 1 + max(180 / moved.shape[0], 240 / moved.shape[1])  # one pixel of the result, for rounding
        if np.abs(moved.astype(int) - expected.astype(int)).max() > tolerance:
            raise VocsegError(
                "The eval_transforms move pixels (they crop, pad, mirror, turn or warp). Predictions could not be "
                "compared with the untouched masks: evaluation transforms may only resize and change colours."
            )


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
