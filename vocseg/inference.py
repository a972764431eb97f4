"""From a batch to label maps: the same steps in validation, test, prediction and ``segment``."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vocseg.components import SavesInitArgs
from vocseg.errors import VocsegError
from vocseg.network import resize

LOGITS_AT_ONCE = 64_000_000
"""Resized logits that :func:`label_map` holds at a time on a GPU: 256 MB of float32."""

LOGITS_IN_CACHE = 4_000_000
"""The same on a CPU: 16 MB, which its cache holds."""

SMALLEST_BY_CELLS = 129
"""Least sum of a label map's height and width for ``_labels_by_cells``. Torch has another kernel for smaller maps,
which rounds otherwise."""

BORDER_LOGITS = 2**17
"""Logits of pixels at borders that ``_labels_by_cells`` resizes at a time: 0.5 MB, which a core's cache holds."""

MOST_BORDERS = 0.25
"""Share of a label map's pixels that lie at a border of the classes, up to which ``_labels_by_cells`` is faster."""


class Inference(SavesInitArgs):
    """How a network is applied to an image: once as a whole, or several times with the mean of the probabilities.

    The image is resized to each scale, and with ``flip`` also mirrored left to right. Each of these images is passed
    through the network as a whole or, with ``window``, in overlapping windows. In an overlap the probabilities are a
    weighted mean; the weights of a window fall linearly towards its borders, so no seam remains. The probabilities
    return to the size of the input before they are averaged.

    One image or window is in the network at a time, and one sum of probabilities is kept per scale.

    Args:
        scales: factors of the image's height and width.
        flip: average with the mirrored image.
        window: side of the square windows in pixels, of the resized image; None: the whole image. An image that fits
            into one window is not divided.
        overlap: least share of a window that the next one covers again, from 0 to below 1.
        fold: fold batch norm into the convolutions before it (see :mod:`vocseg.folding`): faster, with other rounding.
            The task does so.

    Raises:
        VocsegError: a value is out of its range.
    """

    def __init__(
        self,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        window: int | None = None,
        overlap: float = 0.5,
        fold: bool = False,
    ) -> None:
        if isinstance(scales, int | float | str):
            raise VocsegError(f"inference.scales must be a list of numbers; got {scales!r}.")
        self.scales = [float(scale) for scale in scales]
        self.flip, self.window, self.overlap, self.fold = flip, window, overlap, fold
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise VocsegError(f"inference.scales must be positive numbers, at least one; got {self.scales}.")
        if window is not None and window <= 0:
            raise VocsegError(f"inference.window must be a positive number of pixels, or null; got {window}.")
        if not 0 <= overlap < 1:
            raise VocsegError(f"inference.overlap is a share of the window, from 0 to below 1; got {overlap}.")

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments as plain values."""
        names = ("scales", "flip", "window", "overlap", "fold")
        return {name: getattr(self, name) for name in names}

    @property
    def is_plain(self) -> bool:
        """Whether the network is simply called."""
        return self.scales == [1.0] and not self.flip and self.window is None and not self.fold

    @torch.no_grad()
    def __call__(self, network: Callable[[Tensor], Tensor], image: Tensor, stride: int = 1) -> Tensor:
        """Applies a network.

        Args:
            network: images [B, 3, h, w] of any size -> logits [B, C, h, w].
            image: float [B, 3, H, W].
            stride: the network's; windows start at multiples of it, as the network's own cells do.

        Returns:
            float32 [B, C, H, W]: the network's logits where it is applied once to the image itself, else the logarithm
            of the mean probabilities, whose softmax is the mean again.

        Raises:
            VocsegError: the window is smaller than the stride.
        """
        if self.window is not None and self.window < stride:
            raise VocsegError(
                f"inference.window is {self.window} pixels, but the network's stride is {stride}: give a larger window."
            )
        size = image.shape[-2:]
        if self.scales == [1.0] and not self.flip and self._fits(size):
            return network(image)
        mean: Tensor | None = None
        for scale in self.scales:
            resized = resize(image, [max(round(side * scale), 1) for side in size])
            for mirrored in (False, True) if self.flip else (False,):
                probabilities = self._probabilities(network, resized.flip(-1) if mirrored else resized, stride)
                if mean is None:
                    mean = probabilities.new_zeros(*probabilities.shape[:2], *size)
                for label in range(mean.shape[1]):  # one class at a time takes less memory
                    share = resize(probabilities[:, label : label + 1], size)
                    mean[:, label : label + 1] += share.flip(-1) if mirrored else share
        assert mean is not None
        mean /= len(self.scales) * (1 + self.flip)
        # a probability of 0 would be -inf, which makes NaN where logits are resized
        return mean.clamp_(min=torch.finfo(mean.dtype).tiny).log_()

    def __str__(self) -> str:
        """What differs from one pass over the whole image, such as ``scales 0.75, 1, flip``; empty if nothing does."""
        return describe_inference(self.settings)

    def _fits(self, size: Sequence[int]) -> bool:
        return self.window is None or max(size) <= self.window

    def _probabilities(self, network: Callable[[Tensor], Tensor], image: Tensor, stride: int) -> Tensor:
        """Class probabilities of one scale, float32 [B, C, h, w]."""
        height, width = image.shape[-2:]
        if self.window is None or self._fits((height, width)):
            return network(image).softmax(1)
        blended: Tensor | None = None
        for rows, row_weights in _windows(height, self.window, self.overlap, stride):
            for columns, column_weights in _windows(width, self.window, self.overlap, stride):
                part = network(image[..., rows, columns]).softmax(1)
                if blended is None:
                    blended = part.new_zeros(*part.shape[:2], height, width)
                part *= row_weights.to(part)[:, None]
                blended[..., rows, columns] += part.mul_(column_weights.to(part))
        assert blended is not None
        return blended


def describe_inference(settings: Mapping[str, Any]) -> str:
    """The settings of :class:`Inference` in a few words; empty for one pass over the whole image."""
    words = []
    scales = settings.get("scales") or [1.0]
    if list(scales) != [1.0]:
        words.append(f"scale{'s' if len(scales) > 1 else ''} {', '.join(f'{scale:g}' for scale in scales)}")
    if settings.get("flip"):
        words.append("flip")
    if settings.get("window") is not None:
        words.append(f"windows of {settings['window']}, overlap {settings.get('overlap')}")
    if settings.get("fold"):
        words.append("batch norm folded")
    return ", ".join(words)


def _windows(size: int, window: int, overlap: float, stride: int) -> list[tuple[slice, Tensor]]:
    """The windows along one side, each with its weights, float32; at each pixel the weights sum to 1.

    All start at multiples of the stride. The last one may therefore end beyond the image, where it is cut off; the
    network pads it as it pads the whole image.
    """
    last = -(-max(size - window, 0) // stride) * stride
    step = max(int(window * (1 - overlap)) // stride, 1) * stride
    slices = [slice(start, min(start + window, size)) for start in [*range(0, last, step), last]]
    if len(slices) == 1:
        return [(slices[0], torch.ones(size))]
    ramp = 1 - (2 * (torch.arange(window) + 0.5) / window - 1).abs()
    weights = [ramp[: part.stop - part.start] for part in slices]
    total = torch.zeros(size)
    for part, values in zip(slices, weights, strict=True):
        total[part] += values
    return [(part, values / total[part]) for part, values in zip(slices, weights, strict=True)]


def batch_logits(
    network: Callable[[Tensor], Tensor], image: Tensor, input_sizes: Sequence[Any] | Tensor | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Computes a batch's logits, images of one size together and without the padding that made them one batch.

    An image's logits must not depend on what else is in its batch.

    Args:
        network: images [b, 3, h, w] -> logits [b, C, h, w].
        image: float [B, 3, H, W].
        input_sizes: [B, 2] height and width of each image without padding; None: there is no padding.

    Yields:
        Indices in the batch, and the logits of these images [b, C, h, w].
    """
    sizes = [image.shape[-2:]] * len(image) if input_sizes is None else torch.as_tensor(input_sizes).tolist()
    indices_by_size: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(sizes):
        indices_by_size.setdefault((height, width), []).append(index)
    for size, indices in indices_by_size.items():
        yield indices, network(without_padding(image, indices, size))


def without_padding(batch: Tensor, indices: Sequence[int], size: Sequence[int]) -> Tensor:
    """Some entries of a batch, [B, ..., H, W], cropped to their size: [len(indices), ..., *size].

    Indexing with a list would wait for the device: it copies the list there.
    """
    height, width = size
    cropped = batch[..., :height, :width]
    return cropped if len(indices) == len(batch) else torch.stack([cropped[index] for index in indices])


def label_map(logits: Tensor, size: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor:
    """Resizes one image's logits, float [C, h, w], to ``size`` and takes the argmax.

    Of equal values the lowest class is the label. On the CPU, logits are resized only where neighbouring pixels have
    different labels; elsewhere nothing is read from the device.

    Args:
        logits: float [C, h, w].
        size: height and width of the result.
        dtype: of the result; uint8 takes an eighth of the memory, and holds up to 256 classes.

    Returns:
        Labels of the dtype, [H, W].
    """
    height, width = (int(side) for side in size)
    if not len(logits):
        raise ValueError("Logits of no class have no label.")
    logits = logits.detach()
    on_cpu = logits.device.type == "cpu"
    small = torch.uint8 if len(logits) <= 256 else torch.int64  # at 6000x4000 each int64 map takes 192 MB
    is_resized = logits.shape[1:] != (height, width) and height + width >= SMALLEST_BY_CELLS
    if on_cpu and is_resized and logits.dtype == torch.float32 and len(logits) != 3:  # 3 classes: see _at_once
        by_cells = _labels_by_cells(logits, (height, width), small)
        if by_cells is not None:
            return by_cells.to(dtype)
    at_once = _at_once(len(logits), (LOGITS_IN_CACHE if on_cpu else LOGITS_AT_ONCE) // (height * width))
    best = labels = None
    for first in range(0, len(logits), at_once):
        part = resize(logits[None, first : first + at_once].contiguous(), (height, width))[0]
        if len(part) == 1:
            values, found = part[0], torch.full_like(part[0], first, dtype=small)
        else:
            # over a leading axis that is contiguous, max is several times faster than argmax
            values, indices = part.max(0)
            indices += first
            found = indices.to(small)
        if best is None or labels is None:
            best, labels = values, found
        else:
            torch.where(values > best, found, labels, out=labels)
            best = torch.maximum(best, values)  # not in place: it may be the caller's logits
    assert labels is not None
    return labels.to(dtype)


def _labels_by_cells(logits: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor | None:
    """The label map; None if a large part of it lies at borders of classes, or if a value is NaN or infinite.

    Bilinear resizing gives a pixel the weighted mean of the 2x2 values around it. A class that is the argmax of all
    four is the pixel's label. Only the other pixels, at the borders, need the means of all classes.

    Args:
        logits: float32 [C, h, w] on the CPU.
        size: height and width of the result.
        dtype: of the result.
    """
    classes, height, width = logits.shape
    axis = int(logits.stride(0) == 1)  # of the classes: the last one as channels-last networks return them
    values = logits.permute(1, 2, 0).flatten(0, 1) if axis else logits.flatten(1)
    if not math.isfinite(float(values.sum())):
        return None
    own = values.max(axis).indices.to(dtype).view(height, width)
    above, below, down = _neighbours(height, size[0])
    left, right, across = _neighbours(width, size[1])
    of_left, of_right = own[:, left], own[:, right]
    differ = of_left != of_right
    labels = of_left[above]
    border = (differ[above] | differ[below] | (labels != of_left[below])).flatten().nonzero()[:, 0]
    if len(border) > MOST_BORDERS * labels.numel():
        return None
    for pixels in border.split(max(BORDER_LOGITS // classes, 1)):
        row, column = pixels // size[1], pixels % size[1]
        # addcmul rounds as torch's resize does: one product is rounded, the other one only with the sum
        weight = across[column].unsqueeze(axis)
        upper, lower = (
            torch.addcmul(
                weight * values.index_select(1 - axis, first + right[column]),
                1 - weight,
                values.index_select(1 - axis, first + left[column]),
            )
            for first in (above[row] * width, below[row] * width)
        )
        weight = down[row].unsqueeze(axis)
        mean = torch.addcmul(weight * lower, 1 - weight, upper)
        labels.view(-1)[pixels] = mean.max(axis).indices.to(dtype)
    return labels


def _neighbours(side: int, resized: int) -> tuple[Tensor, Tensor, Tensor]:
    """Between which two of ``side`` pixels each pixel of the resized side lies, int64; the weight of the second."""
    position = ((torch.arange(resized, dtype=torch.float32) + 0.5) * (side / resized) - 0.5).clamp(min=0)
    first = position.long()
    return first, (first + 1).clamp(max=side - 1), position - first


def _at_once(classes: int, most: int) -> int:
    """How many classes to resize at a time.

    Not 3, nor 3 at the end, of more: torch resizes 3 channels, which an image has, by another kernel on CPUs. Its
    rounding is another one, and so a label could depend on how the classes are divided.
    """
    at_once = max(most, 1)
    if classes <= max(at_once, 3):
        return classes
    while at_once > 1 and (at_once == 3 or classes % at_once == 3):
        at_once -= 1
    return at_once


def probability_map(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes one image's logits, float [C, h, w], to ``size`` and takes the softmax: float32 [C, H, W]."""
    return resize(logits[None].contiguous(), [int(side) for side in size])[0].softmax(0)


def preprocess(pixels: Any, data_settings: Mapping[str, Any], num_classes: int) -> Tensor:
    """Prepares one image as a data module prepares its evaluation images.

    Args:
        pixels: RGB uint8 [H, W, 3].
        data_settings: the data module's hyperparameters; without ``eval_transforms`` the image keeps its size.
        num_classes: C.

    Returns:
        float32 [1, 3, h, w], normalised.
    """
    # imported here: a network in use elsewhere needs no albumentations
    from vocseg.data.transforms import Pipeline, make_eval_transforms

    return Pipeline(make_eval_transforms(data_settings), num_classes)(pixels)["image"][None]
