"""ResNets from torchvision as backbones."""

from typing import Literal

from torch import Tensor
from torchvision import models

from vocseg.backbones.base import Backbone
from vocseg.errors import check_choice
from vocseg.layers import xavier_


class ResNet(Backbone):
    """A ResNet from torchvision without its pooling and classifier (He et al. 2016, "Deep Residual Learning").

    The features are the outputs of its four stages, at strides 4, 8, 16 and 32. ``ResNet(34, "IMAGENET1K_V1",
    freeze=True)`` is the encoder of the paper's transfer network (section 3.6.2; 21,284,672 parameters).

    Args:
        depth: 18, 34, 50 or 101.
        weights: ``IMAGENET1K_V1`` (torchvision downloads it), the path of a state dict of torchvision's network, or
            None (Xavier-uniform initialisation).
        freeze: do not train this backbone, and do not update its batch-norm statistics; or the names of the modules to
            freeze (see ``Backbone.freeze``).
    """

    unused_weights = ("fc.",)

    def __init__(
        self, depth: Literal[18, 34, 50, 101] = 34, weights: str | None = None, freeze: bool | list[str] = False
    ) -> None:
        super().__init__(weights=weights, freeze=freeze)
        check_choice("depth", depth, (18, 34, 50, 101))
        self.torchvision_weights = models.get_model_weights(f"resnet{depth}")
        network = models.get_model(f"resnet{depth}", weights=None)
        # same submodule names as in torchvision, so that its state dicts load unchanged
        self.conv1, self.bn1, self.relu, self.maxpool = network.conv1, network.bn1, network.relu, network.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            network.layer1,
            network.layer2,
            network.layer3,
            network.layer4,
        )
        expansion = network.fc.in_features // 512
        self.channels = [width * expansion for width in (64, 128, 256, 512)]
        self.strides = [4, 8, 16, 32]
        xavier_(self)
        if freeze:
            self.freeze(freeze)

    def forward(self, image: Tensor) -> list[Tensor]:
        """See ``Backbone.forward``. Features at strides 4, 8, 16 and 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features
