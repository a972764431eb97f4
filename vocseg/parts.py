"""The parts of a task, built from what its user or a checkpoint gave: an object, a class, or a configuration."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from vocseg.components import factory_from_config, from_config
from vocseg.data.labels import VOID
from vocseg.errors import VocsegError
from vocseg.losses import CrossEntropy
from vocseg.schedules import Schedule
from vocseg.whole_network import Logits, WholeNetwork


def build_backbone(backbone: Any) -> Any:
    """The backbone, if it keeps the contract.

    Raises:
        VocsegError: it lacks ``channels`` or ``strides``, as a network for classification does.
    """
    built = from_config(backbone, "backbone", nn.Module)
    if not isinstance(built, nn.Module):
        raise VocsegError(f"The backbone must be a module; got {built!r}.")
    missing = [name for name in ("channels", "strides") if not hasattr(built, name)]
    if missing:
        raise VocsegError(
            f"The backbone {type(built).__name__} has no {' and no '.join(missing)}. A backbone returns a list of "
            "features, shallow to deep, and has one entry per feature in channels and in strides. A network of timm: "
            "vocseg.Timm(name). A network that gives logits: vocseg.WholeNetwork(network)."
        )
    return built


def build_decoder(decoder: Any, backbone: Any, num_classes: int) -> nn.Module:
    """The decoder of a backbone's features, or that of a whole network, which changes nothing.

    Raises:
        VocsegError: a backbone has no decoder, or a whole network has one.
    """
    if isinstance(backbone, WholeNetwork):
        if decoder is not None:
            raise VocsegError("A WholeNetwork gives logits and takes no decoder: --model.decoder null")
        decoder = Logits
    elif decoder is None:
        raise VocsegError(
            f"The backbone {type(backbone).__name__} needs a decoder. One that takes any backbone: --model.decoder "
            "SkipDecoder"
        )
    return _decoder_of(decoder, "decoder", list(backbone.channels), list(backbone.strides), num_classes)


def build_auxiliary(decoder: Any, weight: float, backbone: Any, num_classes: int) -> nn.Module | None:
    """The auxiliary decoder, of all features but the deepest; None for None.

    Raises:
        VocsegError: there is one feature only, or the weight is negative.
    """
    if decoder is None:
        return None
    channels, strides = list(backbone.channels), list(backbone.strides)
    if len(channels) < 2 or weight < 0:
        raise VocsegError(
            "auxiliary needs a backbone with two features or more, and an auxiliary_weight of at least 0; got "
            f"{len(channels)} and {weight}."
        )
    return _decoder_of(decoder, "auxiliary", channels[:-1], strides[:-1], num_classes)


def build_loss(loss: Any, num_classes: int) -> nn.Module:
    """The loss, for this number of classes; cross-entropy for None.

    Raises:
        VocsegError: it is no module, or its class weights are of another number.
    """
    built = from_config(loss, "loss", nn.Module) or CrossEntropy()
    if not isinstance(built, nn.Module):
        hint = f": give an object, {loss.__name__}(...)" if isinstance(loss, type) else ""
        raise VocsegError(f"The loss must be a module (logits, mask) -> scalar; got {loss!r}{hint}.")
    for part in built.modules():  # a sum has losses in it
        if getattr(part, "ignore_index", VOID) != VOID:
            raise VocsegError(
                f"The loss {type(part).__name__} has the ignore_index {part.ignore_index}, but void pixels have the "
                f"label {VOID}: give it ignore_index={VOID}, or use vocseg's CrossEntropy."
            )
    prepare: Any = getattr(built, "prepare", None)
    if prepare is not None:
        prepare(num_classes)
    return built


def build_optimizer(optimizer: Any, default: Callable) -> Any:
    """The function from parameters to their optimizer."""
    return factory_from_config(optimizer, "optimizer", torch.optim.Optimizer) or default


def build_schedule(schedule: Any) -> Schedule | Callable:
    """The schedule, or the function from an optimizer to its scheduler; constant learning rates for None.

    Raises:
        VocsegError: it is a word.
    """
    if isinstance(schedule, str):
        raise VocsegError(f"The schedule must be an object: Schedule({schedule!r}) for the word {schedule!r}.")
    if not isinstance(schedule, Mapping):
        return Schedule() if schedule is None else schedule
    factory = factory_from_config(schedule, "schedule", (Schedule, LRScheduler, ReduceLROnPlateau))
    return factory() if issubclass(factory.func, Schedule) else factory


def _decoder_of(decoder: Any, role: str, *sizes: Any) -> nn.Module:
    """A decoder, built from channels, strides and the number of classes unless it is a finished module."""
    head = factory_from_config(decoder, role, nn.Module)
    return head if isinstance(head, nn.Module) else head(*sizes)
