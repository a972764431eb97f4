"""Building blocks that backbones and decoders share."""

import math
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from vocseg.errors import check_choice

Activation = Literal["relu", "leaky_relu"]


def activation_layer(activation: Activation) -> nn.Module:
    """Builds the activation with this name.

    Raises:
        VocsegError: there is none.
    """
    check_choice("activation", activation, get_args(Activation))
    return nn.ReLU(inplace=True) if activation == "relu" else nn.LeakyReLU(inplace=True)


def paper_block(convolution: nn.Conv2d | nn.ConvTranspose2d, activation: Activation) -> nn.Sequential:
    """Builds convolution -> activation -> batch norm, the order of every block in the paper's figures."""
    return nn.Sequential(convolution, activation_layer(activation), nn.BatchNorm2d(convolution.out_channels))


def conv_norm_act(
    in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Builds convolution -> batch norm -> ReLU, the order of ResNet; the resolution stays the same."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def xavier_(module: nn.Module) -> None:
    """Initialises all convolutions in ``module`` in place: Xavier-uniform weights, zero biases (paper, section 3.4)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def kaiming_(module: nn.Module) -> None:
    """Initialises all convolutions in ``module`` in place: Kaiming-normal weights (He et al. 2015), zero biases.

    The kernel size of a transposed convolution must be its stride, as in DPT: each output then sees one input pixel.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.ConvTranspose2d):  # torch would count the kernel's pixels and the output channels
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_channels))
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def resize_like(x: Tensor, target: Tensor) -> Tensor:
    """Resizes ``x`` [B, C, h, w] bilinearly (``align_corners=False``) to the height and width of ``target``.

    Unlike :func:`vocseg.network.resize` it compares no sizes: a comparison would bind an exported program to them.
    """
    return F.interpolate(x, size=target.shape[-2:], mode="bilinear", align_corners=False)
