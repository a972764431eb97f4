"""The base class of all backbones: deferred loading of pretrained weights, and freezing that lasts."""

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from vocseg.components import NetworkPart
from vocseg.errors import VocsegError, nearest
from vocseg.state_dicts import backbone_state, check_fits, read_weights

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


class Backbone(NetworkPart):
    """A network that turns an image into feature maps, shallow to deep.

    Subclasses set ``channels`` and ``strides`` and implement ``forward``. Any ``nn.Module`` with these three can be the
    backbone of a task. Deriving from this class adds pretrained weights, freezing that survives ``train()``, and
    checkpoints from which the backbone can be rebuilt.

    Args:
        weights: name of one of torchvision's weights for this network (``IMAGENET1K_V1``), the path of a state dict or
            of a vocseg checkpoint with the same backbone, or None. ``load_pretrained`` reads them; the constructor does
            not.
        freeze: True, nothing of this backbone is trained; or patterns of the names of its modules, with ``*`` for any
            characters (``["layer1", "*.bn*"]``): what is in these modules is not trained.
    """

    channels: list[int]
    """Number of channels of each feature."""
    strides: list[int]
    """Stride of each feature: the size of the input divided by the size of the feature."""
    torchvision_weights: "type[WeightsEnum] | None" = None
    """torchvision's enum of the pretrained weights of this network, if there are any."""
    unused_weights: tuple[str, ...] = ()
    """Prefixes of the keys in a pretrained state dict that segmentation does not use."""

    def __init__(self, weights: str | None = None, freeze: bool | list[str] = False) -> None:
        super().__init__()
        self.frozen = freeze is True
        self._freeze = freeze
        self._frozen_modules: list[nn.Module] = []
        self._pending_weights: str | None = weights
        self.register_load_state_dict_post_hook(_forget_pretrained)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Computes the features.

        Args:
            image: float [B, 3, H, W], normalised with ImageNet's mean and standard deviation; H and W are multiples of
                the largest stride.

        Returns:
            One float tensor [B, channels[i], H / strides[i], W / strides[i]] per feature.
        """
        raise TypeError(f"{type(self).__name__} must implement forward(image) -> list of features")

    def freeze(self) -> Self:
        """Stops all training of this backbone: no gradients, and eval mode even after ``train()``."""
        self.frozen = True
        super().freeze()
        return self

    def freeze_as_set(self, network: nn.Module | None = None) -> None:
        """Freezes what the setting ``freeze`` says; subclasses call it when they have their modules.

        A frozen module gets no gradients, and stays in eval mode: the statistics of its batch norms do not change.

        Args:
            network: the names are those of its modules; None: of this backbone's.

        Raises:
            VocsegError: a pattern matches no module.
        """
        if isinstance(self._freeze, bool):
            if self._freeze:
                self.freeze()
            return
        modules = {name: module for name, module in (network or self).named_modules() if name}
        for pattern in self._freeze:
            found = [module for name, module in modules.items() if fnmatchcase(name, pattern)]
            if not found:
                raise VocsegError(
                    f"freeze: no module of {type(self).__name__} is named {pattern!r}.{nearest(pattern, modules)}"
                )
            for module in found:
                module.requires_grad_(False)
            self._frozen_modules += found
        self.train(self.training)

    def unfreeze(self) -> Self:
        """Reverts ``freeze``."""
        self.frozen = False
        self._frozen_modules.clear()
        super().unfreeze()
        return self

    def train(self, mode: bool = True) -> Self:
        """Sets training mode, except of what is frozen: its batch-norm statistics must not change."""
        super().train(mode and not self.frozen)
        for module in self._frozen_modules:
            module.eval()
        return self

    def load_pretrained(self) -> None:
        """Loads the pretrained weights. The task calls this when a new training starts.

        Does nothing if ``weights`` is None, or if a state dict has been loaded since construction. Loading or resuming
        a checkpoint therefore never needs the pretrained weights.

        Raises:
            VocsegError: the weights are neither a file nor a known name, cannot be downloaded, are not a state dict, or
                do not fit this network (the message lists the keys).
        """
        if self._pending_weights is None:
            return
        source = self._pending_weights
        state = self.translate(self._read_weights(source))
        check_fits(state, self.state_dict(), f"The weights file or name {source!r}", type(self).__name__)
        self.load_state_dict(state, strict=False)

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives a pretrained state dict the keys of this backbone, without what segmentation does not use."""
        return {key: value for key, value in state.items() if not key.startswith(self.unused_weights)}

    def _read_weights(self, source: str) -> dict[str, Tensor]:
        enum = self.torchvision_weights
        names: list[str] = [] if enum is None else list(enum.__members__)
        if enum is not None and source in names:
            try:
                return enum[source].get_state_dict(progress=True, check_hash=True)
            except OSError as error:
                raise VocsegError(
                    f"The weights {source} could not be downloaded ({error}). Download them on another machine and "
                    "pass the file: --model.backbone.weights /path/to/weights.pth"
                ) from error
        try:
            state = backbone_state(read_weights(source))
        except FileNotFoundError as error:
            raise VocsegError(
                f"There are no weights {source!r}: no such file"
                + (f", and not one of the names {', '.join(names)}." if names else ".")
                + nearest(source, names)
            ) from error
        if not state:
            raise VocsegError(
                f"The weights file {source} holds no plain state dict (a dictionary from names to tensors)."
            )
        return state


def _forget_pretrained(backbone: Backbone, _incompatible_keys: Any) -> None:
    """Cancels the pending weights; runs after each ``load_state_dict``."""
    backbone._pending_weights = None
