"""The few building blocks that backbones and decoders share."""

from typing import Literal

from torch import nn

Activation = Literal["relu", "leaky_relu"]


def activation_layer(activation: Activation) -> nn.Module:
    """The activation by its name in a config."""
    return nn.ReLU(inplace=True) if activation == "relu" else nn.LeakyReLU(inplace=True)


def paper_block(convolution: nn.Module, activation: Activation) -> nn.Sequential:
    """Convolution -> activation -> batch norm: the order of every block in the paper's figures."""
    return nn.Sequential(convolution, activation_layer(activation), nn.BatchNorm2d(convolution.out_channels))


def conv_norm_act(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Convolution -> batch norm -> ReLU at unchanged size, the order in use since ResNet."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def xavier_(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every convolution inside ``module`` (paper, section 3.4)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
