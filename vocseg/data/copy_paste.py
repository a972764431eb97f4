"""Copy-paste augmentation: the objects of one training image are pasted onto another."""

from collections.abc import Mapping

import cv2  # albumentations' own dependency
import numpy as np
import torch
from torch import Tensor

from vocseg.data.labels import VOID
from vocseg.errors import VocsegError

BACKGROUND = 0
BAND = 3
"""Width in pixels of the void band around pasted objects."""


def paste_objects(
    target: Mapping[str, Tensor], source: Mapping[str, Tensor], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Pastes objects of ``source`` onto ``target``.

    Half of the object classes of the source, rounded up and drawn at random, are pasted with all their pixels, as in
    ClassMix (Olsson et al. 2021); the labels are true ones, as in Simple Copy-Paste (Ghiasi et al. 2021), whose scale
    jitter is a matter of the transforms. A band of ``BAND`` pixels around them also comes from the source and is void,
    like the outlines in VOC's masks. A source without objects changes nothing.

    Args:
        target: ``image`` [3, H, W] and ``mask`` [H, W] with 0 = background and 255 = void, uint8 or as a network
            gets them.
        source: the same, of the same size.
        rng: draws the classes.

    Returns:
        ``image`` and ``mask``; the arguments are not changed.

    Raises:
        VocsegError: the sizes differ.
    """
    mask, pasted_mask = target["mask"], source["mask"]
    if mask.shape != pasted_mask.shape:
        sizes = " and ".join(f"{width}x{height}" for height, width in (mask.shape, pasted_mask.shape))
        raise VocsegError(
            f"copy_paste needs images of one size, but the transforms give {sizes}: use a pipeline with a fixed size, "
            "for example --data.train_transforms jitter"
        )
    classes = [label for label in pasted_mask.unique().tolist() if label not in (BACKGROUND, VOID)]
    if not classes:
        return {"image": target["image"], "mask": mask}
    chosen = rng.choice(classes, (len(classes) + 1) // 2, replace=False)
    pasted = torch.isin(pasted_mask, torch.from_numpy(chosen))
    kernel = np.ones((2 * BAND + 1, 2 * BAND + 1), np.uint8)
    with_band = torch.from_numpy(cv2.dilate(pasted.numpy().astype(np.uint8), kernel)).bool()
    return {
        "image": torch.where(with_band, source["image"], target["image"]),
        "mask": torch.where(pasted, pasted_mask, torch.where(with_band, VOID, mask)),
    }
