"""State dicts in files, and their comparison with the network that they are loaded into."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vocseg.errors import VocsegError

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
"""Keys under which training programs store a network's state dict beside other things; averaged weights first."""


def read_weights(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint or a state dict on the CPU without unpickling: code in it is never run.

    Args:
        path: written by ``torch.save``, or a ``.safetensors`` file.

    Raises:
        FileNotFoundError: there is no such file.
        VocsegError: it does not load safely, or holds no dictionary.
    """
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises many kinds of exceptions for a damaged or untrusted file
        raise VocsegError(
            f"The weights file {path} is not a state dict that loads safely: {first_line(error)}"
        ) from error
    if not isinstance(content, Mapping):
        raise VocsegError(f"The weights file {path} holds no plain state dict (a dictionary from names to tensors).")
    return dict(content)


def network_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a network in what a file holds.

    Returns:
        Of a vocseg checkpoint the tensors of backbone and decoder, with keys that begin with these words. Of any other
        file its state dict, without the prefixes of ``DistributedDataParallel`` and ``torch.compile``.
    """
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping):
            content = inner
            break
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "_orig_mod."):
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    tensors = {key.removeprefix("network."): value for key, value in tensors.items()}
    parts = {key: value for key, value in tensors.items() if key.startswith(("backbone.", "decoder."))}
    return parts or tensors


def backbone_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a backbone in what a file holds: those of a vocseg checkpoint's backbone, or all."""
    tensors = network_state(content)
    inner = {key.removeprefix("backbone."): value for key, value in tensors.items() if key.startswith("backbone.")}
    return inner or tensors


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


def first_line(error: Exception) -> str:
    """The first line of an exception's message; its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
