"""Backbones from timm."""

from typing import Any

import torch
from torch import Tensor

from vocseg.backbones.base import Backbone
from vocseg.data.transforms import MEAN, STD
from vocseg.errors import VocsegError, nearest

PRETRAINED = "pretrained"
"""The setting ``weights`` that asks timm for the weights of the network's name."""


class Timm(Backbone):
    """Any network of timm that gives features, convolutional or transformer (Wightman, "PyTorch Image Models").

    Images come normalised with ImageNet's mean and standard deviation. Where timm's pretrained configuration of the
    network has others (EfficientNet-Lite has 0.5 for both), they are normalised again.

    Args:
        name: timm's name, ``resnet50``, ``convnext_tiny.in12k_ft_in1k``, ``vit_small_patch14_dinov2.lvd142m``;
            ``timm.list_models()`` lists them.
        weights: ``pretrained`` (timm downloads them when a new training starts), the path of a state dict of timm's
            network, ``.pth`` or ``.safetensors``, or None (timm's initialisation).
        freeze: as :class:`vocseg.Backbone`; names of modules as in timm's network.
        output_stride: stride of the deepest feature: None, the network's own (mostly 32), or 16 or 8, which replaces
            strides by dilation where the network can (Chen et al. 2017, "Rethinking Atrous Convolution").
        out_indices: which of the network's features are used. None: those of stride 4 and more; of a plain vision
            transformer those after each quarter of its blocks (Ranftl et al. 2021, section 3.1).
        drop_path: largest probability with which a block is skipped in training, for networks that have this
            (Huang et al. 2016, "Deep Networks with Stochastic Depth").

    Raises:
        VocsegError: there is no such network, it has no features, or it cannot have these settings.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        freeze: bool | list[str] = False,
        output_stride: int | None = None,
        out_indices: list[int] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(weights=weights, freeze=freeze)
        self.name = name
        options = {
            **({"output_stride": output_stride} if output_stride else {}),
            **({"drop_path_rate": drop_path} if drop_path else {}),
        }
        self.net = self._build(options, out_indices)
        self.channels = [int(channels) for channels in self.net.feature_info.channels()]
        self.strides = [int(stride) for stride in self.net.feature_info.reduction()]
        if output_stride and self.strides[-1] != output_stride:
            raise VocsegError(
                f"timm's {name} cannot have the output_stride {output_stride}: its deepest feature has the stride "
                f"{self.strides[-1]}."
            )
        config = self.net.model.pretrained_cfg
        mean, std, own_mean, own_std = (
            torch.tensor(each, dtype=torch.float32).view(1, 3, 1, 1)
            for each in (MEAN, STD, config.get("mean") or MEAN, config.get("std") or STD)
        )
        self.renormalises = not (torch.equal(mean, own_mean) and torch.equal(std, own_std))
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)
        self.freeze_as_set(self.net.model)

    def _build(self, options: dict[str, Any], out_indices: list[int] | None) -> Any:
        """Timm's network as a module that returns a list of features, [B, C, H, W] each."""
        import timm

        architecture = self.name.partition(".")[0]
        if not timm.is_model(architecture):
            raise VocsegError(f"timm has no network {architecture!r}.{nearest(architecture, timm.list_models())}")
        try:
            if out_indices is None:
                out_indices = _default_indices(_create(self.name, options))
            return _create(self.name, {**options, "out_indices": tuple(out_indices)})
        except (
            RuntimeError,
            NotImplementedError,
            AssertionError,
            TypeError,
            ValueError,
            IndexError,
            KeyError,
        ) as error:
            settings = {**options, **({} if out_indices is None else {"out_indices": out_indices})}
            given = ", ".join(f"{key} {value}" for key, value in settings.items())
            raise VocsegError(
                f"timm's {self.name} gives no features{' with ' if given else ''}{given}: "
                f"{' '.join(str(error).split()) or type(error).__name__}"
            ) from error

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``Backbone.translate``: drops what timm's network has, but not up to its deepest feature that is used."""
        import timm

        if all(key.startswith("net.") for key in state):
            return state
        whole = timm.create_model(self.name, pretrained=False).state_dict()
        own = self.net.model.state_dict()
        return {f"net.model.{key}": value for key, value in state.items() if key in own or key not in whole}

    def _read_weights(self, source: str) -> dict[str, Tensor]:
        if source != PRETRAINED:
            return super()._read_weights(source)
        import timm

        try:
            return timm.create_model(self.name, pretrained=True).state_dict()
        except Exception as error:  # of the hub, of its cache and of the network
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise VocsegError(
                f"timm's weights of {self.name} could not be loaded ({reason}). Download them on another machine and "
                "pass the file: --model.backbone.weights /path/to/weights.pth"
            ) from error

    def forward(self, image: Tensor) -> list[Tensor]:
        """See ``Backbone.forward``."""
        return list(self.net(image * self.scale + self.shift if self.renormalises else image))


def _create(name: str, options: dict[str, Any]) -> Any:
    """A network for images of any size: transformers have to be told, in one of these ways."""
    import timm

    ways: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False, "dynamic_mask": True})
    for any_size in (*ways, {"strict_img_size": False}):
        try:
            return timm.create_model(
                name, pretrained=False, features_only=True, feature_cls="getter", **any_size, **options
            )
        except TypeError as error:
            if not any(setting in str(error) for setting in any_size):
                raise
    return timm.create_model(name, pretrained=False, features_only=True, feature_cls="getter", **options)


def _default_indices(net: Any) -> list[int]:
    strides = net.feature_info.reduction()
    if len(set(strides)) == 1 and len(strides) > 1:
        blocks = len(net.model.blocks)
        return [blocks * (quarter + 1) // 4 - 1 for quarter in range(4)]
    return [index for index, stride in enumerate(strides) if stride >= 4]
