"""The classes and colours of PASCAL VOC, and the label that means "do not count this pixel"."""

import numpy as np

VOID = 255
"""Label of pixels that neither train nor count: VOC's borders, and every pixel a transform had to invent."""

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
    """The VOC devkit's colour map: the bits of the label, dealt to red, green and blue from the top bit down."""
    labels = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


VOC_PALETTE = _voc_palette()
"""uint8 [256, 3]: RGB of each label; 0 is black, 255 (void) is (224, 224, 192)."""
