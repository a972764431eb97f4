"""Telling why a state dict does not fit a network."""

from collections.abc import Mapping

from torch import Tensor

from vocseg.errors import VocsegError


def check_fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str, network: str) -> None:
    """Compares the keys and shapes of a state dict with those of a network.

    Args:
        state: what is to be loaded.
        own: the network's own state dict.
        source: where ``state`` comes from, for the message.
        network: what it is meant for, for the message.

    Raises:
        VocsegError: they differ; the message names the first six keys.
    """
    complaints = [f"missing: {key}" for key in own if key not in state and not key.endswith("num_batches_tracked")]
    complaints += [f"not of this network: {key}" for key in state if key not in own]
    complaints += [
        f"{key}: shape {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if complaints:
        shown = "\n".join(f"  {line}" for line in complaints[:6])
        more = f"\n  and {len(complaints) - 6} more" if len(complaints) > 6 else ""
        raise VocsegError(f"{source} does not fit {network}:\n{shown}{more}")
