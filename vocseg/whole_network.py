"""A finished network, image -> logits, in the place of a backbone and a decoder."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vocseg.backbones import Backbone
from vocseg.components import NetworkPart, factory_from_config
from vocseg.errors import VocsegError, nearest

TORCHVISION = "torchvision.models.segmentation."
PRETRAINED = {"weights": None, "weights_backbone": None, "encoder_weights": None, "pretrained": False}
"""Settings by which torchvision, segmentation_models_pytorch and timm load weights, and their values for none."""


class WholeNetwork(Backbone):
    """A finished network: of torchvision.models.segmentation, segmentation_models_pytorch or any other library.

    It takes no decoder: ``SegmentationTask(WholeNetwork("torchvision.models.segmentation.fcn_resnet50",
    {"num_classes": 21}))``.

    A network given by its import path is recorded in checkpoints and built from them. Its settings ``weights``,
    ``weights_backbone``, ``encoder_weights`` and ``pretrained`` take effect when a new training starts; one that is not
    given means no pretrained weights. A finished module is recorded only if its constructor takes no arguments. Any
    other is passed again: ``SegmentationTask.load_from_checkpoint(path, backbone=WholeNetwork(module))``.

    Args:
        network: import path of a builder in ``torchvision.models.segmentation`` or of an ``nn.Module`` class, or a
            finished module. It maps images [B, 3, H, W] to logits [B, C, h, w], or to a mapping that has them as
            ``out`` or ``logits``.
        settings: arguments of the builder or class, the number of classes among them.
        stride: images are padded to multiples of it; 1 means no padding.
        weights: path of a state dict of the network, instead of the weights that the settings name.

    Raises:
        VocsegError: the network cannot be built, or its path names anything but such a builder or class.
    """

    def __init__(
        self,
        network: str | nn.Module,
        settings: dict[str, Any] | None = None,
        stride: int = 32,
        weights: str | None = None,
    ) -> None:
        if not isinstance(network, str | nn.Module):
            raise VocsegError(f"WholeNetwork: network must be an import path or a module; got {network!r}.")
        if isinstance(network, nn.Module) and settings:
            raise VocsegError("WholeNetwork: settings are for a network by import path; the given one is finished.")
        if stride < 1:
            raise VocsegError(f"WholeNetwork: stride must be at least 1, which means no padding; got {stride}.")
        named = {name: value for name, value in (settings or {}).items() if PRETRAINED.get(name, value) != value}
        super().__init__(weights or (", ".join(f"{name}={value}" for name, value in named.items()) or None))
        self._builds_pretrained = weights is None
        self._source = (network, settings or {}) if isinstance(network, str) else None
        self.network = _build(network, settings or {}, pretrained=False) if isinstance(network, str) else network
        self.channels, self.strides = [], [stride]
        if not hasattr(self.network, "aux_classifier"):
            self.unused_weights = ("network.aux_classifier.",)  # which torchvision's pretrained networks have

    def forward(self, image: Tensor) -> list[Tensor]:
        """Computes the logits: a list of one tensor, float [B, C, h, w].

        Raises:
            VocsegError: the network returns something else.
        """
        output = self.network(image)
        if isinstance(output, Mapping):
            output = next((output[name] for name in ("out", "logits") if name in output), output)
        if not isinstance(output, Tensor) or output.ndim != 4:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise VocsegError(
                f"{type(self.network).__name__} returns {found}: WholeNetwork needs logits [B, C, h, w], or a mapping "
                "that has them as 'out' or 'logits'."
            )
        return [output]

    def _read_weights(self, source: str) -> dict[str, Tensor]:
        if self._builds_pretrained and self._source is not None:
            state = _build(*self._source, pretrained=True).state_dict()
        else:
            state = super()._read_weights(source)
        return {f"network.{key}": value for key, value in state.items()}


class Logits(NetworkPart):
    """The decoder of a :class:`WholeNetwork`: passes its logits on, and checks the number of classes."""

    def __init__(self, channels: list[int], strides: list[int], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, features: list[Tensor]) -> Tensor:
        """Returns the logits, float [B, num_classes, h, w].

        Raises:
            VocsegError: they are of another number of classes.
        """
        (logits,) = features
        if logits.shape[1] != self.num_classes:
            raise VocsegError(
                f"The network's logits are of {logits.shape[1]} classes, but the data has {self.num_classes}: set its "
                "number of classes (--model.backbone.settings.num_classes for torchvision's networks)."
            )
        return logits


def _build(path: str, settings: Mapping[str, Any], pretrained: bool) -> nn.Module:
    """Builds a network; calls nothing but the builders and classes that :class:`WholeNetwork` names.

    The path may come from an untrusted checkpoint.
    """
    name = path.removeprefix(TORCHVISION)
    if name != path:
        from torchvision import models

        names = models.list_models(module=models.segmentation)
        if name not in names:
            raise VocsegError(f"WholeNetwork: {TORCHVISION[:-1]} has no network {name!r}.{nearest(name, names)}")
        builder: Any = getattr(models.segmentation, name)
    else:
        builder = factory_from_config({"class_path": path}, "backbone.network", nn.Module).func
    accepted = inspect.signature(builder).parameters
    without = {name: value for name, value in PRETRAINED.items() if name in accepted}
    try:
        return builder(**({**without, **settings} if pretrained else {**settings, **without}))
    except (TypeError, ValueError, KeyError, OSError) as error:
        raise VocsegError(f"WholeNetwork: {path} cannot be built with {dict(settings)}: {error}") from error
