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
        freeze: False, True for the whole backbone, or the names of the modules to freeze; see ``freeze``.
    """

    channels: list[int]
    """Number of channels of each feature."""
    strides: list[int]
    """Stride of each feature: the size of the input divided by the size of the feature."""
    torchvision_weights: "type[WeightsEnum] | None" = None
    """torchvision's enum of the pretrained weights of this network, if there are any."""
    unused_weights: tuple[str, ...] = ()
    """Prefixes of the keys in a pretrained state dict that segmentation does not use."""
    weights_prefix: str = ""
    """What the keys of this backbone begin with and those of a pretrained state dict do not."""

    def __init__(self, weights: str | None = None, freeze: bool | list[str] = False) -> None:
        super().__init__()
        self.frozen = freeze is True
        self._frozen_modules: list[str] = []
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

    @property
    def _named_network(self) -> nn.Module:
        """The module to which the names in ``freeze`` belong: the backbone itself."""
        return self

    def freeze(self, modules: bool | list[str] = True) -> Self:
        """Stops the training of this backbone or of parts of it: no gradients, and eval mode even after ``train()``.

        Batch norms in frozen parts keep their statistics; dropout and drop path in them are off. Frozen stages before
        the first trained one build no graph for gradients.

        Args:
            modules: True for the whole backbone, or names of modules as in ``named_modules()``, with the wildcards of
                ``fnmatch``: ``["conv1", "layer[12]", "*.bn?"]``. A module is frozen with everything in it. What was
                frozen before stays frozen; False and an empty list freeze nothing more.

        Raises:
            VocsegError: no module has such a name.
        """
        if modules is True:
            self.frozen = True
            super().freeze()
            return self
        names = [name for name, _ in self._named_network.named_modules() if name]
        for pattern in modules or ():
            found = [name for name in names if fnmatchcase(name, pattern)]
            if not found:
                raise VocsegError(f"freeze: {self._title} has no module {pattern!r}.{nearest(pattern, names)}")
            self._frozen_modules += found
        for name in self._frozen_modules:
            self._named_network.get_submodule(name).requires_grad_(False)
        return self.train(self.training)

    def unfreeze(self) -> Self:
        """Reverts ``freeze``."""
        self.frozen = False
        self._frozen_modules = []
        super().unfreeze()
        return self

    def train(self, mode: bool = True) -> Self:
        """Sets training mode, except in what is frozen: its batch-norm statistics must not change."""
        super().train(mode and not self.frozen)
        for name in self._frozen_modules:
            self._named_network.get_submodule(name).eval()
        return self

    @property
    def _title(self) -> str:
        """The network's name in messages."""
        return type(self).__name__

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
        given, own = (
            {key.removeprefix(self.weights_prefix): value for key, value in tensors.items()}
            for tensors in (state, self.state_dict())
        )
        check_fits(given, own, f"The weights file or name {source!r}", self._title)
        self.load_state_dict(state, strict=False)

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives a pretrained state dict the keys of this backbone, without what segmentation does not use."""
        used = {key: value for key, value in state.items() if not key.startswith(self.unused_weights)}
        return {f"{self.weights_prefix}{key}": value for key, value in used.items()}

    def _names_of_weights(self) -> list[str]:
        """Names of the weights that ``_download`` knows."""
        return [] if self.torchvision_weights is None else list(self.torchvision_weights.__members__)

    def _download(self, name: str) -> dict[str, Tensor]:
        """The state dict with this name; raises OSError if it cannot be had."""
        assert self.torchvision_weights is not None
        return self.torchvision_weights[name].get_state_dict(progress=True, check_hash=True)

    def _read_weights(self, source: str) -> dict[str, Tensor]:
        names = self._names_of_weights()
        if source in names:
            try:
                return self._download(source)
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
