"""What a backbone is, and what every backbone of ours can do: load pretrained weights late, and stay frozen."""

import lightning as L
import torch
from torch import Tensor

from vocseg.components import SavesInitArgs
from vocseg.errors import VocsegError, nearest
from vocseg.state_dicts import check_fits


class Backbone(SavesInitArgs, L.LightningModule):
    """Turns an image into features, shallow to deep.

    Subclasses set ``channels`` and ``strides`` (one entry per feature; a stride is the input's size divided by the
    feature's) and implement ``forward``. Any ``nn.Module`` with these three serves the task as well; deriving from this
    class adds pretrained weights, freezing that lasts, and checkpoints that can rebuild the backbone.

    Args:
        weights: name of one of torchvision's weights for this network (``IMAGENET1K_V1``), the path of a state dict, or
            None. They are read by :meth:`load_pretrained`, not here.
        freeze: see :meth:`freeze`.
    """

    channels: list[int]
    strides: list[int]
    torchvision_weights = None
    """torchvision's enum of weights for this network, if it has any."""
    unused_weights: tuple[str, ...] = ()
    """Prefixes of the keys in such a state dict that segmentation does not use."""

    def __init__(self, weights: str | None = None, freeze: bool = False) -> None:
        super().__init__()
        self.frozen = freeze
        self._pending_weights = weights
        self.register_load_state_dict_post_hook(_forget_pretrained)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Computes the features.

        Args:
            image: float [B, 3, H, W], normalised; H and W divisible by the largest stride.

        Returns:
            One float tensor [B, channels[i], H / strides[i], W / strides[i]] per feature.
        """
        raise TypeError(f"{type(self).__name__} must implement forward(image) -> list of features")

    def freeze(self) -> None:
        """Stops training this backbone for good: no gradients, and eval mode even after ``train()``."""
        self.frozen = True
        super().freeze()

    def unfreeze(self) -> None:
        """Undoes :meth:`freeze`."""
        self.frozen = False
        super().unfreeze()

    def train(self, mode: bool = True) -> "Backbone":
        """Sets training mode; a frozen backbone stays in eval mode, else its batch-norm statistics would move."""
        return super().train(mode and not self.frozen)

    def load_pretrained(self) -> None:
        """Reads the pretrained weights; the task calls this when a new training starts.

        Does nothing when there are none, when they have been read, or when a state dict has been loaded meanwhile: a
        checkpoint never needs the weights it started from.

        Raises:
            VocsegError: the file or name is unknown, is no state dict, or does not fit (with the keys).
        """
        if self._pending_weights is None:
            return
        source = self._pending_weights
        state = {
            key: value for key, value in self._read_weights(source).items() if not key.startswith(self.unused_weights)
        }
        check_fits(state, self.state_dict(), f"The weights file or name {source!r}", type(self).__name__)
        self.load_state_dict(state, strict=False)

    def _read_weights(self, source: str) -> dict[str, Tensor]:
        names = [] if self.torchvision_weights is None else list(self.torchvision_weights.__members__)
        if source in names:
            try:
                return self.torchvision_weights[source].get_state_dict(progress=True, check_hash=True)
            except OSError as error:
                raise VocsegError(
                    f"The weights {source} could not be downloaded ({error}). Download them elsewhere and give the "
                    "file: --model.backbone.weights /path/to/weights.pth"
                ) from error
        try:
            state = torch.load(source, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise VocsegError(
                f"There are no weights {source!r}: it is neither a file nor one of {', '.join(names) or 'no names'}."
                + nearest(source, names)
            ) from error
        except Exception as error:  # torch raises half a dozen kinds for a file that is not its own
            raise VocsegError(
                f"The weights file {source} is no state dict that loads safely: {_first_line(error)}"
            ) from error
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise VocsegError(f"The weights file {source} holds no plain state dict (a dictionary of tensors).")
        return state


def _forget_pretrained(backbone: Backbone, _incompatible_keys) -> None:
    backbone._pending_weights = None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
