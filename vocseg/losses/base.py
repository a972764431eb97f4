"""The base class of all losses."""

from torch import nn

from vocseg.components import SavesInitArgs


class Loss(SavesInitArgs, nn.Module):
    """A module ``(logits, mask) -> scalar`` that a checkpoint can rebuild.

    Any ``nn.Module`` with this call serves as the loss of a task. A short name in a config or on the command line means
    the loss that derives from this class, also where another library has a loss of the same name.
    """
