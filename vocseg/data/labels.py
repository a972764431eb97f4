"""The classes and colours of PASCAL VOC, and the void label."""

import numpy as np

VOID = 255
"""Label of pixels that count neither in the loss nor in the scores: object borders in VOC's masks, and pixels that a
transform added."""

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def _voc_palette() -> np.ndarray:
    """The colour map of the VOC devkit (its function ``VOClabelcolormap``).

    Bits 0, 1, 2 of a label are bit 7 of red, green and blue; its bits 3, 4, 5 are their bit 6; and so on.
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


VOC_PALETTE = _voc_palette()
"""uint8 [256, 3]: RGB of each label; 0 is black, 255 (void) is (224, 224, 192)."""
