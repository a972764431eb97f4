"""Batch norm folded into the convolutions before it: fewer operations for a network that is not trained."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vocseg.errors import VocsegError
from vocseg.network import SegmentationNetwork

LARGEST_DIFFERENCE = 1e-3
"""How much folding may change logits, relative to the largest; rounding changes them by about 1e-6."""


class Folding:
    """Makes the folded copy of a network when it is first asked for, and again when the weights have changed."""

    def __init__(self) -> None:
        self._folded: SegmentationNetwork | None = None
        self._state: list[tuple[int, int]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Folding, ()  # copies and pickles begin without a network

    def __call__(self, network: SegmentationNetwork, image: Tensor) -> SegmentationNetwork:
        """The folded copy; arguments and errors as of :func:`fold_batch_norm`."""
        state = [(value.data_ptr(), value._version) for value in (*network.parameters(), *network.buffers())]
        if self._folded is None or state != self._state:
            self._folded, self._state = fold_batch_norm(network, image), state
        return self._folded

    def clear(self) -> None:
        """Forgets the copy: writing to ``weight.data`` changes a weight unseen."""
        self._folded, self._state = None, []


def fold_batch_norm(network: SegmentationNetwork, image: Tensor) -> SegmentationNetwork:
    """Copies a network, with each batch norm folded into the convolution before it.

    The network is applied to a small image once, to find the convolutions whose output nothing but one batch norm
    reads. The formula is that of ``torch.nn.utils.fusion``. All other layers remain as they are.

    Args:
        network: in eval mode; it is not changed.
        image: float [B, 3, H, W], normalised; B may be 0.

    Raises:
        VocsegError: the copy computes something else, because a layer of the network is no usual convolution or batch
            norm though it derives from one.
    """
    side = 4 * network.stride
    # Lightning evaluates in inference mode, whose tensors nothing can use outside of it
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        values = torch.linspace(-2, 2, 3 * side**2, device=image.device, dtype=image.dtype)
        probe = values.reshape(1, 3, side, side)
        cache, network.feature_cache = network.feature_cache, None  # large, and of no use to a copy
        try:
            folded = copy.deepcopy(network)
            expected = network(probe)
        finally:
            network.feature_cache = cache
        for convolution, norm, rest in _pairs(folded, probe):
            fused = fuse_conv_bn_eval(convolution, norm)
            convolution.weight, convolution.bias = fused.weight, fused.bias
            norm.forward = rest.forward  # type: ignore[method-assign]
        difference = (folded(probe) - expected).abs().max()
    if not difference <= LARGEST_DIFFERENCE * expected.abs().max():
        raise VocsegError(
            "The batch norm of this network cannot be folded into its convolutions: logits would differ by "
            f"{float(difference):.1g}. Leave out --inference.fold."
        )
    return folded


def _pairs(network: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Module]]:
    """Convolutions, the batch norm that alone reads their output, and what that batch norm does besides."""
    calls: Counter[nn.Module] = Counter()
    made_by: dict[int, nn.Conv2d] = {}
    read_by: list[tuple[int, nn.BatchNorm2d]] = []

    def on_convolution(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[module] += 1
        made_by[id(output)] = module  # type: ignore[assignment]  # registered with convolutions only

    def on_norm(module: nn.Module, inputs: Any) -> None:
        calls[module] += 1
        read_by.append((id(inputs[0]), module))  # type: ignore[arg-type]

    hooks = [module.register_forward_hook(on_convolution) for module in network.modules() if _is(module, nn.Conv2d)]
    hooks += [module.register_forward_pre_hook(on_norm) for module in network.modules() if _is(module, nn.BatchNorm2d)]
    with _Reads() as reads:
        network(image)
    for hook in hooks:
        hook.remove()
    pairs = []
    for tensor, norm in read_by:
        convolution, rest = made_by.get(tensor), _besides(norm)
        if convolution is None or rest is None or norm.running_mean is None:
            continue
        if calls[convolution] == calls[norm] == reads.count[tensor] == 1:
            pairs.append((convolution, norm, rest))
    return pairs


def _is(module: nn.Module, kind: type[nn.Module]) -> bool:
    return isinstance(module, kind) and not module.training


def _besides(norm: nn.BatchNorm2d) -> nn.Module | None:
    """What a batch norm does after normalising; None if unknown."""
    if type(norm).forward is nn.BatchNorm2d.forward:
        return nn.Identity()
    drop, activation = getattr(norm, "drop", None), getattr(norm, "act", None)  # timm's BatchNormAct2d
    if isinstance(drop, nn.Module) and isinstance(activation, nn.Module):
        return nn.Sequential(drop, activation)
    return None


class _Reads(TorchDispatchMode):
    """Counts how often each tensor is an argument of an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self._kept: list[Any] = []  # so that no later tensor gets the id of an earlier one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        self._kept += [args, kwargs, result]
        return result
