"""Image and mask transforms: named pipelines, reproducible random draws, void for new mask pixels.

No other module imports albumentations.
"""

import copy
import json
import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import looks for a newer version online

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor

from vocseg.data.labels import VOID
from vocseg.errors import VocsegError, nearest

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's RGB values in [0, 1]. Every image is normalised with them."""

PipelineFactory = Callable[[int, int], list[A.BasicTransform | A.BaseCompose]]


def _resize(height: int, width: int) -> A.BasicTransform:
    return A.Resize(height, width, area_for_downscale="image")


def _affine() -> A.BasicTransform:
    return A.Affine(scale=(0.8, 1.25), translate_percent=(-0.1, 0.1), rotate=(-15, 15), shear=(-5, 5), p=1.0)


def _random_crop(height: int, width: int) -> A.BasicTransform:
    return A.RandomResizedCrop((height, width), scale=(0.25, 1.0), area_for_downscale="image")


def _scale_jitter(height: int, width: int, low: float, high: float) -> list[A.BasicTransform]:
    fill = [round(255 * value) for value in MEAN]
    return [
        A.RandomScale(scale_limit=(low - 1, high - 1), area_for_downscale="image", p=1.0),
        A.PadIfNeeded(height, width, border_mode=cv2.BORDER_CONSTANT, fill=fill),
        A.RandomCrop(height, width),
        A.HorizontalFlip(p=0.5),
    ]


def _photometric_distortion() -> list[A.BasicTransform]:
    return [
        A.RandomBrightnessContrast(brightness_limit=32 / 255, contrast_limit=0.0, p=0.5),
        A.RandomBrightnessContrast(brightness_limit=0.0, contrast_limit=0.5, p=0.5),
        A.ColorJitter(brightness=0.0, contrast=0.0, saturation=0.5, hue=0.0, p=0.5),
        A.ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.1, p=0.5),
    ]


TRAIN_PIPELINES: dict[str, PipelineFactory] = {
    "resize": lambda height, width: [_resize(height, width)],
    "flip": lambda height, width: [_resize(height, width), A.HorizontalFlip(p=0.5)],
    "flip_both": lambda height, width: [_resize(height, width), A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)],
    "affine": lambda height, width: [_affine(), _resize(height, width)],
    "crop": lambda height, width: [
        _random_crop(height, width),
        A.HorizontalFlip(p=0.5),
        A.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05, p=0.8),
    ],
    "paper": lambda height, width: [
        _affine(),
        _random_crop(height, width),
        A.HorizontalFlip(p=0.5),
        A.VerticalFlip(p=0.5),
    ],
    "jitter": lambda height, width: [*_scale_jitter(height, width, 0.5, 2.0), *_photometric_distortion()],
    "jitter_strong": lambda height, width: [
        *_scale_jitter(height, width, 0.5, 1.5),
        A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        A.ToGray(p=0.1),
        A.GaussianBlur(blur_limit=(3, 7), p=0.2),
    ],
}
"""The pipelines that ``train_transforms`` can name, as functions of the image height and width.

- ``resize``: resize to the image size without keeping the aspect ratio (the paper's baseline).
- ``flip``: resize, then flip left to right with probability 0.5.
- ``flip_both``: as flip, then flip top to bottom with probability 0.5.
- ``affine``: rotate by up to 15 degrees, shear by up to 5 degrees, scale by 0.8 to 1.25 and translate by up to 10 %,
  then resize.
- ``crop``: crop 25 to 100 % of the area, resize, flip left to right with probability 0.5, jitter the colours.
- ``paper``: affine, crop, both flips: the kinds of augmentation that the paper names. It does not give their ranges.
- ``jitter``: scale by 0.5 to 2 of the file's size, keeping the aspect ratio, crop the image size out of it and pad what
  is missing (with ImageNet's mean colour; void in the mask), flip left to right with probability 0.5. Then, each with
  probability 0.5, change the brightness by up to 32 of 255, the contrast and the saturation by a factor of 0.5 to 1.5,
  and the hue by up to 36 degrees. The scales are those of DeepLab (Chen et al. 2018), the colours those of SSD (Liu et
  al. 2016).
- ``jitter_strong``: as jitter, but for little data: scale by 0.5 to 1.5, jitter the colours with probability 0.8, then
  turn 10 % of the images grey and blur 20 %.

Images are downscaled by area averaging, which avoids aliasing. Masks are resized with nearest-neighbour sampling.
"""

EVAL_PIPELINES: dict[str, PipelineFactory] = {
    "resize": lambda height, width: [_resize(height, width)],
    "keep_ratio": lambda height, width: [A.LongestMaxSize(max(height, width), area_for_downscale="image")],
}
"""The pipelines that ``eval_transforms`` can name, as functions of the image height and width.

- ``resize``: resize to the image size without keeping the aspect ratio (the paper).
- ``keep_ratio``: resize the longer side to the larger number of the image size and keep the aspect ratio.
"""


def make_transforms(
    transforms: str | Sequence[Any], pipelines: Mapping[str, PipelineFactory], image_size: tuple[int, int], role: str
) -> list[A.BasicTransform | A.BaseCompose]:
    """Builds a list of albumentations transforms.

    Args:
        transforms: the name of a pipeline, or a sequence of transforms, their class names, or their configurations
            ``{"class_path", "init_args"}``.
        pipelines: the pipelines that can be named: ``TRAIN_PIPELINES`` or ``EVAL_PIPELINES``.
        image_size: height and width in pixels, for named pipelines.
        role: the setting that the transforms belong to, named in error messages.

    Raises:
        VocsegError: the pipeline or class is unknown, an argument is wrong, or a transform normalises (the data module
            normalises itself).
    """
    if isinstance(transforms, str):
        if transforms not in pipelines:
            raise VocsegError(
                f"There are no {role} {transforms!r}; use one of {', '.join(pipelines)}, or a list of albumentations "
                "classes." + nearest(transforms, pipelines)
            )
        return pipelines[transforms](*image_size)
    built = [
        _build_transform(transform, role) if isinstance(transform, str | Mapping) else transform
        for transform in transforms
    ]
    for transform in built:
        if isinstance(transform, A.Normalize | A.ToFloat | A.ToTensorV2):
            raise VocsegError(
                f"{role} holds {type(transform).__name__}: take it out. After the transforms, images are normalised "
                "with ImageNet's mean and standard deviation and converted to tensors."
            )
    return built


def make_eval_transforms(data_settings: Mapping[str, Any]) -> list[A.BasicTransform | A.BaseCompose]:
    """Builds the evaluation transforms from a data module's hyperparameters; none where these do not name them."""
    if not {"eval_transforms", "image_size"} <= set(data_settings):
        return []
    height, width = data_settings["image_size"]
    return make_transforms(data_settings["eval_transforms"], EVAL_PIPELINES, (height, width), "eval_transforms")


def _build_transform(transform: str | Mapping[str, Any], role: str) -> A.BasicTransform | A.BaseCompose:
    from vocseg.components import factory_from_config  # brings Lightning, which an exported network does without

    config = {"class_path": transform} if isinstance(transform, str) else dict(transform)
    if "." not in config.get("class_path", "."):
        config["class_path"] = f"albumentations.{config['class_path']}"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # albumentations only warns of an unknown argument
        try:
            return factory_from_config(config, role, (A.BasicTransform, A.BaseCompose))()
        except (UserWarning, TypeError, ValueError) as error:
            if isinstance(error, VocsegError):
                raise
            raise VocsegError(f"{role}: {config['class_path']}: {' '.join(str(error).split())}") from error


def transform_to_config(transform: A.BasicTransform | A.BaseCompose) -> dict[str, Any]:
    """Returns the configuration ``{"class_path", "init_args"}`` of an albumentations transform, for checkpoints."""
    init_args = (
        {**transform.get_base_init_args(), **transform.get_transform_init_args()}
        if isinstance(transform, A.BasicTransform)
        else {"p": transform.p, "transforms": [transform_to_config(inner) for inner in transform.transforms]}
    )
    return {
        "class_path": f"{type(transform).__module__}.{type(transform).__qualname__}",
        "init_args": {key: _to_builtin(value) for key, value in init_args.items()},
    }


def describe_resizing(transforms: Sequence[A.BasicTransform | A.BaseCompose]) -> dict[str, Any]:
    """Describes transforms for :func:`vocseg.export.model.prepare`, as plain values.

    Raises:
        VocsegError: one of them cannot be written as text, such as a function.
    """
    if not transforms:
        return {}
    only: Any = transforms[0] if len(transforms) == 1 else None
    settings: dict[str, Any] = {}
    if type(only) is A.LongestMaxSize and isinstance(only.max_size, int):
        settings = {"longest_side": only.max_size}
    elif type(only) is A.Resize:
        settings = {"size": [only.height, only.width]}
    if only is None or not settings or only.p < 1:
        try:
            description = A.to_dict(A.Compose(list(transforms)))
            json.dumps(description)
        except (RuntimeError, TypeError, ValueError) as error:  # what albumentations and json raise
            raise VocsegError(
                f"The eval_transforms cannot be written into a file: {' '.join(str(error).split())}"
            ) from error
        return {"albumentations": description}
    return {**settings, "interpolation": only.interpolation, "area": only.area_for_downscale is not None}


def transform_as_described(image: np.ndarray, description: dict[str, Any]) -> np.ndarray:
    """Applies transforms that albumentations wrote, to an image RGB uint8 [H, W, 3]."""
    return A.from_dict(description)(image=image)["image"]


class Pipeline:
    """Transforms and then normalisation, with random draws that depend on (seed, epoch, index) only.

    Every sample gets new random generators, so the number of workers and resuming do not change a draw; the generators
    of albumentations repeat themselves across epochs and workers. All transforms of the pipeline share the generators.
    ``Compose.set_random_seed`` would seed each transform alike, and two flips would always happen together.

    Args:
        transforms: albumentations transforms, applied in order.
        num_classes: the number of classes; labels 0 to num_classes - 1 are classes.
        seed: the seed of all random draws.
        void_label: the label that replaces void in the given masks. Pixels that a transform adds are void (255) in any
            case.
    """

    def __init__(self, transforms: Sequence[Any], num_classes: int, seed: int = 0, void_label: int = VOID) -> None:
        self.compose = A.Compose(list(transforms))
        self.num_classes = num_classes
        self.seed = seed
        self.void_label = void_label
        values = np.arange(256)  # tables of labels plus one, to and from; see transform()
        self._shifted = ((np.where(values == VOID, void_label, values) + 1) % 256).astype(np.uint8)
        self._from_shifted = np.where((values >= 1) & (values <= num_classes), values - 1, VOID).astype(np.uint8)

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None = None, epoch: int = 0, index: int = 0, stream: int = 0
    ) -> dict[str, Tensor]:
        """Transforms and normalises one sample.

        Args:
            image: RGB uint8 [H, W, 3].
            mask: labels uint8 [H, W], 255 = void, or None.
            epoch: counted from 0.
            index: the index of the sample in the split's list.
            stream: another number gives other draws for the same epoch and index.

        Returns:
            ``image`` float32 [3, h, w], normalised, and, if a mask is given, ``mask`` int64 [h, w].
        """
        return normalise_batch(self.transform(image, mask, epoch, index, stream))

    def transform(
        self, image: np.ndarray, mask: np.ndarray | None = None, epoch: int = 0, index: int = 0, stream: int = 0
    ) -> dict[str, Tensor]:
        """As :meth:`__call__`, but leaves the normalisation, which is faster for a whole batch, to the caller.

        Returns:
            ``image`` uint8 [3, h, w] and, if a mask is given, ``mask`` uint8 [h, w]. If the transforms give images of
            another type, ``image`` is float32 and normalised.
        """
        seeds = np.random.SeedSequence([self.seed, epoch, index, *([stream] if stream else [])]).generate_state(2)
        self.compose.set_random_state(np.random.default_rng(seeds[0]), random.Random(int(seeds[1])))
        if mask is None:
            return {"image": _channels_first(self.compose(image=image)["image"])}
        # By default transforms fill new mask pixels with 0, which is background. In labels shifted by one (255 wraps
        # around to 0) 0 is void.
        shifted = mask + np.uint8(1) if self.void_label == VOID else cv2.LUT(mask, self._shifted)
        transformed = self.compose(image=image, mask=shifted)
        labels = cv2.LUT(np.ascontiguousarray(transformed["mask"], dtype=np.uint8), self._from_shifted)
        return {"image": _channels_first(transformed["image"]), "mask": torch.from_numpy(labels)}


def normalise(image: Tensor) -> Tensor:
    """Normalises images with ``MEAN`` and ``STD``, on their device.

    Args:
        image: RGB uint8 [..., 3, H, W].

    Returns:
        float32 [..., 3, H, W].
    """
    scale, offset = (torch.from_numpy(values).to(image.device)[:, None, None] for values in scale_and_offset())
    return image.to(torch.float32).mul_(scale).sub_(offset)


def to_pixels(image: Tensor) -> np.ndarray:
    """The image of an item or of a batch, [3, H, W], uint8 or normalised floats, as RGB uint8 [H, W, 3]."""
    if image.dtype != torch.uint8:
        std, mean = (torch.tensor(values)[:, None, None] for values in (STD, MEAN))
        image = ((image.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())


def normalise_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """Returns a batch, or an item, with its uint8 images normalised and its uint8 masks as int64; the rest unchanged.

    The loaders of vocseg's data modules give uint8, which is a quarter of the memory and of the work.
    :meth:`vocseg.data.base.SegmentationDataModule.on_after_batch_transfer` calls this on the batch's device.
    """
    changed = dict(batch)
    if changed["image"].dtype == torch.uint8:
        changed["image"] = normalise(changed["image"])
    if "mask" in changed and changed["mask"].dtype == torch.uint8:
        changed["mask"] = changed["mask"].long()
    return changed


def to_tensor(image: np.ndarray) -> Tensor:
    """Converts RGB [H, W, 3] of 0 to 255 to float32 [3, H, W], normalised with ``MEAN`` and ``STD``."""
    scale, offset = scale_and_offset()
    return torch.from_numpy(np.ascontiguousarray((image * scale - offset).astype(np.float32).transpose(2, 0, 1)))


def _channels_first(image: np.ndarray) -> Tensor:
    if image.dtype != np.uint8:
        return to_tensor(image)  # numbers of 0 to 255 of another type, from somebody's own transform
    return torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)


def scale_and_offset() -> tuple[np.ndarray, np.ndarray]:
    """The factor and what is subtracted, float32 [3] each: ``image * scale - offset`` normalises RGB of 0 to 255."""
    mean, std = np.array(MEAN, dtype=np.float32), np.array(STD, dtype=np.float32)
    return 1.0 / (255.0 * std), mean / std


def check_only_resizes(transforms: Sequence[Any]) -> None:
    """Checks that evaluation transforms move no pixel except by resizing.

    Predictions are resized to the original size of each image, so scores would be wrong if the transforms cropped,
    padded, flipped or rotated it. The check transforms masks of several sizes, whose labels grow with the row or the
    column, and a few times, as transforms may be random. What has a probability is always applied.

    Raises:
        VocsegError: a pixel is not where a resize puts it, or the transforms fail.
    """
    compose = A.Compose([_always(transform) for transform in transforms], seed=0)
    for height, width in ((180, 240), (60, 40), (700, 500)) * 3:
        image = np.zeros((height, width, 3), np.uint8)
        rows, columns = np.meshgrid(*(np.linspace(0, 255, side) for side in (height, width)), indexing="ij")
        for ramp in (rows.astype(np.uint8), columns.astype(np.uint8)):
            try:
                transformed = compose(image=image, mask=ramp)["mask"]
            except Exception as error:  # OpenCV and albumentations raise many kinds
                reason = " ".join(str(error).split())
                raise VocsegError(f"The eval_transforms fail for an image of {width}x{height}: {reason}") from error
            expected = A.Resize(*transformed.shape[:2])(image=image, mask=ramp)["mask"]
            # rounding of two resizes: two pixels of the result, or of the mask
            tolerance = 1 + 2 * 255 / max(min(*transformed.shape[:2], height, width) - 1, 1)
            if np.abs(transformed.astype(int) - expected.astype(int)).max() > tolerance:
                raise VocsegError(
                    "The eval_transforms move pixels (they crop, pad, flip, rotate or warp). Predictions could not be "
                    "compared with the original masks: evaluation transforms may only resize and change colours."
                )


def _always(transform: Any) -> Any:
    """A copy of a transform, and of those in it, that is always applied."""
    transform = copy.deepcopy(transform)
    transform.p = 1.0
    if isinstance(transform, A.BaseCompose):
        transform.transforms = [_always(part) for part in transform.transforms]
    return transform


def _to_builtin(value: Any) -> Any:
    """Converts tuples to lists and numpy scalars to Python numbers, as configurations hold them."""
    if isinstance(value, list | tuple):
        return [_to_builtin(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
