"""MobileNetV2 from torchvision as a backbone."""

from typing import Literal

from torch import Tensor, nn
from torchvision import models

from vocseg.backbones.base import Backbone
from vocseg.errors import check_choice
from vocseg.layers import xavier_


class MobileNetV2(Backbone):
    """MobileNetV2 from torchvision without its classifier (Sandler et al. 2018, "MobileNetV2").

    The features have 24, 32, 96 and 1280 channels at strides 4, 8, 16 and ``output_stride``. With ``output_stride`` 16
    the last stage does not halve the resolution and uses dilated convolutions instead (Chen et al. 2017, "Rethinking
    Atrous Convolution", section 3.1). The weights are the same; the deepest feature has twice the resolution.

    Args:
        weights: ``IMAGENET1K_V1`` (torchvision downloads it), the path of a state dict of torchvision's network, or
            None (Xavier-uniform initialisation).
        freeze: do not train this backbone, and do not update its batch-norm statistics; or the names of the modules to
            freeze (see ``Backbone.freeze``).
        output_stride: stride of the deepest feature, 32 or 16.
    """

    torchvision_weights = models.MobileNet_V2_Weights
    unused_weights = ("classifier.",)

    def __init__(
        self, weights: str | None = None, freeze: bool | list[str] = False, output_stride: Literal[16, 32] = 32
    ) -> None:
        super().__init__(weights=weights, freeze=freeze)
        check_choice("output_stride", output_stride, (16, 32))
        self.features = models.mobilenet_v2(weights=None).features
        self.channels = [24, 32, 96, 1280]
        self.strides = [4, 8, 16, output_stride]
        if output_stride == 16:
            self._dilate_last_stage()
        xavier_(self)
        if freeze:
            self.freeze(freeze)

    def _dilate_last_stage(self) -> None:
        for block in range(14, 18):
            for layer in self.features[block].modules():
                if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                    layer.stride = (1, 1)
                    if block > 14:  # later blocks now see twice the resolution: dilation 2 keeps their receptive field
                        layer.dilation = layer.padding = (2, 2)

    def forward(self, image: Tensor) -> list[Tensor]:
        """See ``Backbone.forward``. Features at strides 4, 8, 16 and ``output_stride``."""
        features = []
        for number, block in enumerate(self.features):
            image = block(image)
            if number in (3, 6, 13, 18):
                features.append(image)
        return features
