"""From the bytes of an upload to what the page shows of it."""

import base64
import io
import time
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vocseg.errors import VocsegError
from vocseg.inference import label_map
from vocseg.network import resize
from vocseg.saving import encode_mask
from vocseg.task import SegmentationTask

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Formats that are opened, by Pillow's names. Others may run programs: Pillow has Ghostscript draw an EPS file."""

MOST_PROBABILITIES = 4_000_000
"""Probabilities that are sent of an image: 8 MB. Of more, those of a smaller map are sent."""

STEPS = 1000
"""Steps in 1 of the natural logarithm of a probability, as it is sent."""


def segment_upload(task: SegmentationTask, content: bytes, max_megapixels: float) -> dict[str, Any]:
    """Segments the image in ``content`` as :meth:`vocseg.task.SegmentationTask.segment` does.

    Args:
        task: in eval mode.
        content: of an image file.
        max_megapixels: size above which an image is refused before it is decoded.

    Returns:
        Plain values: ``width`` and ``height`` of the image in pixels; ``photograph``, a JPEG of it, upright; ``mask``,
        the PNG that ``vocseg predict`` writes; ``labels``, uint8 [height, width], deflated; ``probabilities``,
        ``{"height", "width", "values"}`` with -1000 times the natural logarithm of each class's probability, at most
        65535, little-endian uint16 [C, height, width]; ``input_size``, height and width that the network saw; and
        ``seconds``. All bytes are in base64.

    Raises:
        VocsegError: it is no image, damaged, or too large.
    """
    _check_size(content, max_megapixels)
    start = time.perf_counter()
    pixels, logits = task.image_logits(content)
    labels = label_map(logits, pixels.shape[:2], torch.uint8).cpu().numpy()
    probabilities = _probabilities(logits)
    seconds = time.perf_counter() - start
    photograph, mask = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(photograph, "JPEG", quality=92)
    encode_mask(labels, mask)
    return {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "input_size": list(logits.shape[-2:]),
        "seconds": seconds,
        "photograph": _text(photograph.getvalue()),
        "mask": _text(mask.getvalue()),
        "labels": _text(zlib.compress(labels.tobytes(), 1)),
        "probabilities": {
            "height": probabilities.shape[1],
            "width": probabilities.shape[2],
            "values": _text(probabilities.tobytes()),
        },
    }


def _check_size(content: bytes, max_megapixels: float) -> None:
    """Reads the header only: a small file may hold pixels that fill the memory."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        raise VocsegError("The file is no JPEG, PNG, WebP, BMP or TIFF image that can be shown.") from error
    except Image.DecompressionBombError as error:
        raise VocsegError(f"The image is too large; at most {max_megapixels:g} megapixels are taken.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # what broken files raise
        raise VocsegError(f"The file cannot be read: {' '.join(str(error).split())}.") from error
    if width * height > max_megapixels * 1e6:
        raise VocsegError(
            f"The image has {width}x{height} pixels; at most {max_megapixels:g} megapixels are taken "
            "(--max_megapixels)."
        )


def _probabilities(logits: Tensor) -> np.ndarray:
    """Negative logarithms of the class probabilities in ``STEPS``, uint16 [C, h, w].

    A page that interpolates them gets what resized logits give: their softmax does not change where the same number is
    taken off all classes.
    """
    classes, height, width = logits.shape
    scale = min(1.0, (MOST_PROBABILITIES / (classes * height * width)) ** 0.5)
    if scale < 1:
        logits = resize(logits[None], [max(1, int(side * scale)) for side in (height, width)])[0]
    steps = logits.float().log_softmax(0).mul_(-STEPS).round_().clamp_(0, 65535)
    return steps.cpu().numpy().astype("<u2")


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
