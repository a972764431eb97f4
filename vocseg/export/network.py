"""The network of an exported file, with the steps around it, in layers that exporters can handle."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vocseg.data.transforms import scale_and_offset
from vocseg.network import SegmentationNetwork


class ExportableNetwork(nn.Module):
    """A network with the steps around it: images in, labels or probabilities, and logits out.

    Args:
        network: which is copied.
        output: the first output: ``labels``, ``probabilities`` or ``logits``. Logits are the last one in any case: an
            image that was resized for the network has its labels at its own size from resized logits.
        image: ``uint8``, which is normalised here, or ``float``.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, network: SegmentationNetwork, output: str = "labels", image: str = "uint8") -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format)
        self.network.channels_last = False
        self.network.requires_grad_(False)
        _replace_layers(self.network)
        self.output, self.image = output, image
        for name, values in zip(("scale", "offset"), scale_and_offset(), strict=True):
            self.register_buffer(name, torch.from_numpy(values)[:, None, None])
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs at the size of the input; see :meth:`vocseg.export.model.ExportedModel.__call__`."""
        if self.image == "uint8":
            image = image.to(torch.float32) * self.scale - self.offset
        logits = self.network(image)
        if self.output == "labels":
            return logits.argmax(1).to(torch.uint8), logits
        return (logits.softmax(1), logits) if self.output == "probabilities" else (logits,)


class PoolingByProduct(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as a product of matrices, which depends on the image's size by no loop.

    Args:
        size: rows and columns of the pooled grid.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Pools, float [B, C, h, w] -> [B, C, rows, columns]."""
        rows, columns = (self._weights(x, -2), self._weights(x, -1))
        return rows @ x @ columns.T

    def _weights(self, x: Tensor, dim: int) -> Tensor:
        """The share of each pixel in each cell: [cells, pixels]."""
        pixels, cells = x.shape[dim], self.size[dim]
        cell, pixel = torch.arange(cells, device=x.device)[:, None], torch.arange(pixels, device=x.device)
        first, end = cell * pixels // cells, ((cell + 1) * pixels + cells - 1) // cells
        return ((pixel >= first) & (pixel < end)).to(x.dtype) / (end - first).to(x.dtype)


def _replace_layers(module: nn.Module) -> None:
    """Puts layers that compute the same in the place of those that exporters cannot handle at any size, or only slowly.

    Of adaptive pooling to several cells ONNX has no operator, and torch writes one for the traced size alone.
    TensorFlow's padding (timm's ``Conv2dSame``) depends on the size, in expressions that torch takes minutes to follow.
    But images are padded to multiples of the stride, so all features have sizes that the next stride divides.
    """
    for name, child in module.named_children():
        if type(child) is nn.AdaptiveAvgPool2d:
            size: Any = child.output_size
            rows, columns = size if isinstance(size, tuple) else (size, size)
            if rows and columns and (rows, columns) != (1, 1):
                setattr(module, name, PoolingByProduct((rows, columns)))
        elif isinstance(child, nn.Conv2d) and type(child).__name__ == "Conv2dSame":
            setattr(module, name, _padded_alike(child))
        else:
            _replace_layers(child)


def _padded_alike(convolution: nn.Conv2d) -> nn.Sequential:
    """Padding and convolution, as ``Conv2dSame`` computes them where the stride divides the size."""
    sizes = zip(convolution.kernel_size, convolution.stride, convolution.dilation, strict=True)
    rows, columns = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, stride, dilation in sizes)
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]  # of two numbers
        convolution.stride,  # type: ignore[arg-type]
        dilation=convolution.dilation,  # type: ignore[arg-type]
        groups=convolution.groups,
        bias=convolution.bias is not None,
    )
    plain.weight, plain.bias = convolution.weight, convolution.bias
    return nn.Sequential(nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)), plain)
