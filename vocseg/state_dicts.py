"""Comparison of a state dict with the network that it is loaded into."""

from collections.abc import Mapping

from torch import Tensor

from vocseg.errors import VocsegError


def check_fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str, network: str) -> None:
    """Checks that a state dict has the keys and shapes of a network.

    Args:
        state: the state dict to load.
        own: the network's own state dict.
        source: where ``state`` comes from, for the message.
        network: name of the network, for the message.

    Raises:
        VocsegError: keys or shapes differ; the message lists the first six differences.
    """
    problems = [f"missing: {key}" for key in own if key not in state and not key.endswith("num_batches_tracked")]
    problems += [f"not of this network: {key}" for key in state if key not in own]
    problems += [
        f"{key}: shape {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        shown = "\n".join(f"  {line}" for line in problems[:6])
        more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise VocsegError(f"{source} does not fit {network}:\n{shown}{more}")
