"""Networks of the library timm as backbones."""

import contextlib
import sys
from typing import Any

import torch
from torch import Tensor, nn

from vocseg.backbones.base import Backbone
from vocseg.errors import VocsegError, nearest
from vocseg.state_dicts import first_line

# How a network is asked to take images of any size: plain and shifted-window transformers, others, and all that do so
# anyway. The constructors of timm refuse arguments that they do not know.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class Timm(Backbone):
    """A network of timm without its classifier: ResNet, EfficientNet, ConvNeXt, Swin, PVT, ViT, DINOv2 and many more.

    Hierarchical networks give the outputs of their stages from stride 4 to the deepest. Plain vision transformers give
    the outputs of four evenly spaced blocks (of 12: 2, 5, 8 and 11, counted from 0), all at the stride of their
    patches. These are reshaped to maps without class and register tokens, after the network's last layer norm, as in
    DINOv2 (Oquab et al. 2024, "DINOv2", section 7.4); their position embeddings are resized to the image. timm
    initialises all parameters.

    Images come normalised with ImageNet's mean and standard deviation, as for every backbone. Where the network's
    pretrained configuration has others, ``forward`` changes the normalisation first.

    Names in ``freeze`` and the keys of weights are those of timm's own network: ``conv_stem``, ``blocks.0``,
    ``*.bn*``.

    Args:
        name: a name of ``timm.list_models()``, with or without a tag: ``resnet50``, ``tf_efficientnet_lite2.in1k``.
        weights: ``default`` (timm downloads the weights of the name's tag, or else its first choice), a tag of this
            network (``in1k``), the path of a state dict of timm's whole network (``.safetensors`` or torch's format),
            or None (timm's initialisation).
        freeze: do not train this backbone, and do not update its batch-norm statistics; or the names of the modules to
            freeze (see ``Backbone.freeze``).
        output_stride: stride of the deepest feature, for networks that can dilate their convolutions instead of
            reducing the resolution: 8, 16 or 32. None for the network's own.
        out_indices: which features to give, as indices into timm's ``feature_info``: the stages of a hierarchical
            network (many begin with one at stride 2), the blocks of a transformer. Negative ones count from the end.
            What only deeper features need is removed.
        drop_path: probability of skipping a residual block in training, rising from 0 to this value over the depth
            (Huang et al. 2016, "Deep Networks with Stochastic Depth", section 3).

    Raises:
        VocsegError: there is no network with this name, it does not give features that fit images of any size, or it
            cannot have this ``output_stride``, ``drop_path`` or ``out_indices``.
    """

    weights_prefix = "net."

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
        import timm  # takes a second

        architecture, tag = timm.models.split_model_name_tag(name)
        if not timm.is_model(architecture):
            raise VocsegError(
                f"timm has no network {name!r}.{nearest(architecture, timm.list_models())} "
                "timm.list_models('*part*') lists the names that contain a part."
            )
        configs = timm.models.get_arch_pretrained_cfgs(architecture)
        self._tags = [timm.models.split_model_name_tag(full_name)[1] for full_name in configs]
        if tag and tag not in self._tags:
            raise VocsegError(
                f"timm has no weights {tag!r} of {architecture}, but {', '.join(self._tags)}.{nearest(tag, self._tags)}"
            )
        self._name = f"{architecture}.{weights}" if weights in self._tags else name
        self._settings: dict[str, Any] = {}
        if output_stride is not None:
            self._settings["output_stride"] = output_stride
        if drop_path:
            self._settings["drop_path_rate"] = drop_path

        self.net = self._create()
        if not (hasattr(self.net, "forward_intermediates") and hasattr(self.net, "prune_intermediate_layers")):
            raise VocsegError(f"timm's {name} does not give features, only class scores: choose another network.")
        every_key = set(self.net.state_dict())
        info = self.net.feature_info
        strides = [int(entry["reduction"]) for entry in info]
        if output_stride is not None and max(strides) != output_stride:
            raise VocsegError(
                f"timm cannot give {name} the output_stride {output_stride}: its deepest stride is {max(strides)}."
            )
        self._plain = len(set(strides)) == 1
        self._indices = _choose(strides, out_indices, name)
        self.channels = [int(info[index]["num_chs"]) for index in self._indices]
        self.strides = [strides[index] for index in self._indices]
        self.net.prune_intermediate_layers(self._indices, prune_norm=not self._plain, prune_head=True)
        config = self.net.pretrained_cfg
        classifiers = config.get("classifier") or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
        self.unused_weights = (*(every_key - set(self.net.state_dict())), *(f"{layer}." for layer in classifiers))
        self._set_normalisation(config["mean"], config["std"])
        self._check_shapes()
        if freeze:
            self.freeze(freeze)

    def forward(self, image: Tensor) -> list[Tensor]:
        """See ``Backbone.forward``."""
        if self.scale is not None and self.shift is not None:
            image = image * self.scale + self.shift
        return self.net.forward_intermediates(
            image, indices=self._indices, norm=self._plain, output_fmt="NCHW", intermediates_only=True
        )

    def _create(self, pretrained: bool = False) -> Any:
        """Timm's whole network."""
        import timm

        for any_size in _ANY_SIZE:
            try:
                return timm.create_model(self._name, pretrained=pretrained, **self._settings, **any_size)
            except TypeError as error:
                if any_size is _ANY_SIZE[-1]:
                    refused = [setting for setting in self._settings if setting in str(error)]
                    raise VocsegError(
                        f"timm's {self._name} cannot change its {' or '.join(refused)}: leave it out."
                        if refused
                        else f"timm cannot build {self._name}: {first_line(error)}"
                    ) from error
            except AssertionError as error:
                settings = " and ".join(f"{setting} {value}" for setting, value in self._settings.items())
                reason = f": {first_line(error)}" if str(error) else "."
                raise VocsegError(
                    f"timm cannot build {self._name} with {settings or 'its defaults'}{reason}"
                ) from error

    def _set_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        self.scale: Tensor | None
        self.shift: Tensor | None
        scale = shift = None
        if (tuple(mean), tuple(std)) != (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
            given_mean, given_std, own_mean, own_std = (
                torch.tensor(values).view(3, 1, 1)
                for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, mean, std)
            )
            scale, shift = given_std / own_std, (given_mean - own_mean) / own_std
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    @torch.no_grad()
    def _check_shapes(self) -> None:
        """Runs one small image; some networks take only images of certain sizes."""
        stride = max(self.strides)
        height, width = 2 * stride, 3 * stride
        self.eval()
        try:
            shapes = [tuple(feature.shape) for feature in self(torch.zeros(1, 3, height, width))]
        except Exception as error:  # each network has its own
            raise VocsegError(
                f"timm's {self._name} does not take images of any size, as segmentation needs: {first_line(error)}"
            ) from error
        self.train()
        expected = [
            (1, channels, height // stride, width // stride)
            for channels, stride in zip(self.channels, self.strides, strict=True)
        ]
        if shapes != expected:
            raise VocsegError(
                f"The features of timm's {self._name} do not have the sizes that its strides promise: {shapes} instead "
                f"of {expected}."
            )

    @property
    def _named_network(self) -> nn.Module:
        return self.net

    @property
    def _title(self) -> str:
        return f"timm's {self._name}"

    def _names_of_weights(self) -> list[str]:
        return ["default", *self._tags]

    def _download(self, name: str) -> dict[str, Tensor]:
        try:
            return self._create(pretrained=True).state_dict()
        except Exception as error:  # timm and the hub's client raise many kinds
            raise OSError(first_line(error)) from error

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``Backbone.translate``: the keys are those of timm's whole network, or of a vocseg checkpoint."""
        if all(key.startswith(self.weights_prefix) for key in state):
            return state
        # what timm itself does to a downloaded file: older names, other sizes of position embeddings
        convert = getattr(sys.modules[type(self.net).__module__], "checkpoint_filter_fn", None)
        if convert is not None:
            with contextlib.suppress(Exception):  # of another network: the comparison of the keys says it better
                state = convert(dict(state), self.net)
        return super().translate(state)


def _choose(strides: list[int], out_indices: list[int] | None, name: str) -> list[int]:
    """The indices of the features to give, in ascending order."""
    count = len(strides)
    if out_indices is None:
        if len(set(strides)) > 1:
            return [index for index, stride in enumerate(strides) if stride >= 4]
        return sorted({max(round(count * part / 4) - 1, 0) for part in (1, 2, 3, 4)})
    if not out_indices or any(not -count <= index < count for index in out_indices):
        raise VocsegError(
            f"out_indices must be numbers from 0 to {count - 1}: {name} has {count} features, at strides "
            f"{', '.join(map(str, strides))}; got {out_indices}."
        )
    return sorted({index % count for index in out_indices})
